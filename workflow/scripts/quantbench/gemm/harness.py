"""Matrix products of one shape: through vLLM's own linear layer, whose packing and kernel then are those that serve,
through that layer with another kernel forced, or through one operator alone.

    with Harness("cpu") as harness:
        for outcome in harness.measure(n, k, tokens, dtype, product, format, quantization_config, contender, repeats): ...

Correct before fast: a product whose result is off is not timed. Seen with vLLM 0.32.0, written for 0.25.1 too.
"""

import contextlib
import copy
import os
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import torch

from quantbench.contenders import checkpoint_config
from quantbench.engine.kernels import describe_layer, find_kernel
from quantbench.engine_failure import classify_failure
from quantbench.gemm import raw_ops
from quantbench.gemm.timing import Stopwatch
from quantbench.gemm.weights import make_activations, make_weight, static_input_scales

# Greatest relative error, ||y - y64|| / ||y64||, against a float64 product of the same dequantized weights, by the
# width of the activations that the kernel multiplies. Gaussian activations; about four times what each rounding costs:
#   fp32     2^-24 for each number, and sums of up to 30 000 of them in fp32: 1e-7 to 5e-6
#   tf32     10 bits of mantissa, cut off rather than rounded: 2^-10 at most, 0.0004 to 0.0008
#   16 bits  weights and results are rounded to bfloat16, 2^-9 at most, 0.0011 to 0.0025 in all
#   int8     a row's step is its largest / 127, about 4 sigma / 127, over sqrt(12): 0.009
#   fp8      e4m3 has 3 bits of mantissa: 2^-4 at most, 0.026 on average
#   fp4      e2m1 in groups of 16 has 1 bit of mantissa: 0.1
# A wrong zero point, a missing group of scales or a transposed block costs more than any of these.
BOUNDS = {"fp32": 2e-5, "tf32": 0.003, "a16": 0.01, "int8": 0.035, "fp8": 0.1, "fp4": 0.25}

CHECKED_ROWS = 32  # of the result; the kernel still sees all m
REFERENCE_ELEMENTS = 1 << 24  # of the float64 weight at a time: 128 MiB
# A product that takes longer is a row that says so: twenty repeats of it would take minutes.
LONGEST_CALL_S = 10.0

# How vLLM says that a device, a shape or this build cannot run a format, when it is not in engine_failure.py.
REFUSALS = re.compile(
    r"not support|unsupported|min(imum)? capability|not available|not implemented|divisible|a multiple of"
    r"|no '\w+' kernel exists",
    re.IGNORECASE,
)


@dataclass
class Product:
    """One way to compute a linear layer, with its weights: call(prepare(x)) is the [m, n] result."""

    call: Callable
    prepare: Callable
    kernel: str
    computes: str | None
    quantized: bool
    includes_quantization: bool | None


class Harness:
    """One vLLM configuration and one-rank group per process; a context manager. `device_type`: "cuda" or "cpu"."""

    def __init__(self, device_type):
        self.device = torch.device(device_type)
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        if hasattr(torch.cpu, "_init_amx"):
            # Without it AMX kernels outside an engine die with SIGILL.
            torch.cpu._init_amx()
        from vllm.config import VllmConfig, set_current_vllm_config
        from vllm.distributed import parallel_state

        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        self.config = VllmConfig()
        self._stack.enter_context(set_current_vllm_config(self.config))
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        meeting = f"file://{Path(folder) / 'rank0'}"
        parallel_state.init_distributed_environment(1, 0, meeting, local_rank=0, backend=backend)
        self._stack.callback(parallel_state.destroy_distributed_environment)
        parallel_state.ensure_model_parallel_initialized(1, 1)
        self._stack.callback(parallel_state.destroy_model_parallel)
        self.stopwatch = Stopwatch(self.device)
        return self

    def __exit__(self, *error):
        self._stack.close()

    def measure(self, n, k, tokens, dtype, product, format, quantization_config, contender, repeats):
        """Check and time one layer at each of several m: yields (m, status, reason, rows, seconds).

        dtype                "bfloat16", ...: of activations and unquantized weights
        product              "linear", or "relu_linear": a ReLU of the activations first, inside the timed call
        format               {"weights", "input_activations"} or None
        quantization_config  what a checkpoint of this format says; None for an unquantized layer, and for a contender,
                             which says itself how its weights lie
        contender            contenders.contender_identity, or None: the engine's own layer and its own choice
        repeats              {"least", "most", "relative_ci", "confidence"}
        rows                 per repeat {"kernel", "computes", "relative_error", "error_bound",
                             "includes_quantization"} and those of Stopwatch.rows; [] unless status is ok
        """
        started = time.perf_counter()
        torch_dtype = getattr(torch, dtype)
        default_dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch_dtype)
        # There is no model here; schemes and kernels ask its configuration for little more than its type.
        no_model = {"hf_config": SimpleNamespace(), "hf_text_config": SimpleNamespace(), "is_moe": False}
        self.config.model_config = SimpleNamespace(dtype=torch_dtype, **no_model)
        if contender:
            quantization_config = checkpoint_config(contender)
        try:
            with torch.device(self.device), torch.inference_mode(), self._forced(contender):
                yield from self._measure(
                    n, k, tokens, torch_dtype, product, format, quantization_config, contender, repeats, started
                )
        finally:
            torch.set_default_dtype(default_dtype)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _measure(self, n, k, tokens, dtype, product, format, quantization_config, contender, repeats, started):
        layout = contender["layout"] if contender else "compressed-tensors"
        try:
            weight = make_weight(n, k, format, dtype, self.device, layout)
            weight.tensors |= static_input_scales(format, self.device)
            build = self._builder(n, k, dtype, product, quantization_config, contender, weight)
            products = [build()]
            refusal = refused(products[0], quantization_config, contender)
        except Exception as error:
            refusal = _expected_failure(error)
        if refusal:
            for m in tokens:
                yield m, *refusal, [], time.perf_counter() - started
                started = time.perf_counter()
            return

        def copies(count):
            while len(products) < count:
                products.append(build())
            return products[:count]

        for m in tokens:
            try:
                status, reason, rows = self._measure_one(m, copies, weight, n, k, dtype, product, format, repeats)
            except Exception as error:
                status, reason = _expected_failure(error)
                rows = []
            yield m, status, reason, rows, time.perf_counter() - started
            started = time.perf_counter()

    def _builder(self, n, k, dtype, product, quantization_config, contender, weight):
        """A function that makes a Product with weights of its own, each time it is called."""
        op = contender and contender["through"] != "engine" and contender["through"].get("op")
        if not op:
            quantization = make_quantization(quantization_config)

            def build():
                layer = build_layer(n, k, dtype, quantization, weight.tensors)
                if contender:
                    check_choice(layer, contender)
                return as_product(layer, contender)

        else:

            def build():
                try:
                    # An operator may keep the tensors it is given, or shuffle them where they lie.
                    made = raw_ops.build(op, n, k, weight.clone(), dtype, self.device)
                except (ImportError, ValueError) as error:
                    raise NotImplementedError(str(error)) from error
                return Product(
                    made, made.prepare, made.kernel, made.computes, contender["format"] is not None,
                    made.includes_quantization,
                )  # fmt: skip

        if product == "linear":
            return build

        def build_relu():
            made = build()
            if made.includes_quantization is False:
                raise NotImplementedError(f"{made.kernel} takes activations that were quantized before the ReLU")
            return replace(made, call=lambda x, call=made.call: call(torch.relu(x)))

        return build_relu

    def _measure_one(self, m, copies, weight, n, k, dtype, product, format, repeats):
        [first] = copies(1)
        x = make_activations(m, k, dtype, self.device)
        operand = first.prepare(x)
        result = first.call(operand)
        seen = torch.relu(x) if product == "relu_linear" else x
        error, bound = relative_error(result, seen, weight, n, k), error_bound(first.computes, format)
        # Written so that NaN fails.
        if not error <= bound:
            wrong = f"{first.kernel} is off by {error:.3g} (relative), at most {bound} is rounding: not timed"
            return "invalid", wrong, []
        del result
        call_s = self.stopwatch.elapsed(lambda: first.call(operand))
        if call_s > LONGEST_CALL_S:
            return "timeout", f"one call of {first.kernel} takes {call_s:.0f} s: not repeated", []
        weight_bytes = max(sum(t.numel() * t.element_size() for t in weight.tensors.values()), 1)

        def calls(count):
            return [made.call for made in copies(count)]

        timed = self.stopwatch.rows(calls, operand, call_s, weight_bytes, repeats)
        row = {"kernel": first.kernel, "computes": first.computes, "relative_error": error, "error_bound": bound,
               "includes_quantization": first.includes_quantization}  # fmt: skip
        return "ok", None, [row | one for one in timed]

    @contextlib.contextmanager
    def _forced(self, contender):
        """vLLM's choice of kernels as a contender wants it, for as long as its layer lives; then as it was."""
        through = contender["through"] if contender else "engine"
        backend, variables = (None, {}) if through == "engine" else (through.get("backend"), through.get("environment"))
        before = {name: os.environ.get(name) for name in variables or {}}
        kernels = self.config.kernel_config
        linear_backend = getattr(kernels, "linear_backend", None)
        # vllm.envs reads the environment anew each time, unless an engine has started in this process.
        os.environ.update(variables or {})
        if backend and backend_kernels(backend):
            kernels.linear_backend = backend
        try:
            yield
        finally:
            if linear_backend is not None:
                kernels.linear_backend = linear_backend
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def make_quantization(quantization_config):
    """vLLM's quantization config object of what a checkpoint says; None for an unquantized layer."""
    if quantization_config is None:
        return None
    from vllm.model_executor.layers.quantization import get_quantization_config

    # from_config changes what it is given. This one layer is the target, whatever names the scheme targets.
    config = copy.deepcopy(quantization_config)
    for group in config.get("config_groups", {}).values():
        group["targets"] = ["Linear"]
    if "config_groups" in config:
        config["ignore"] = []
    if config["quant_method"] == "gptq":
        # An engine finds out in the checkpoint's files; 0.25.1 takes a layer that nobody names for unquantized.
        config["modules_in_block_to_quantize"] = ["layer"]
    return get_quantization_config(config["quant_method"]).from_config(config)


def build_layer(n, k, dtype, quantization, tensors):
    """vLLM's ReplicatedLinear of k inputs and n outputs with these weights, processed as after loading a model.

    quantization: as make_quantization has it; None: unquantized.
    """
    from vllm.model_executor.layers.linear import ReplicatedLinear

    layer = ReplicatedLinear(
        k, n, bias=False, params_dtype=dtype, quant_config=quantization, prefix="layer", return_bias=False
    )
    for name, parameter in layer.named_parameters():
        parameter.data.copy_(tensors[name].view(parameter.shape))
    layer.quant_method.process_weights_after_loading(layer)
    return layer


def as_product(layer, contender=None):
    """A Product of vLLM's layer. A forced kernel that engine/kernels.py does not know computes what its entry says."""
    described = describe_layer(layer)
    computes = described["computes"]
    if computes is None and contender and contender["through"] != "engine":
        computes = contender["computes"]
    rounds = re.search(r"a[48]", computes or "")
    return Product(layer, lambda x: x, described["kernel"], computes, described["quantized"], True if rounds else None)


def backend_kernels(backend):
    """The kernel classes that vLLM counts as a backend's; the empty set for a backend that it does not know."""
    from vllm.model_executor.kernels import linear

    return linear._LINEAR_BACKEND_KERNEL_MAP.get(backend, set())


def check_choice(layer, contender):
    """Raise NotImplementedError where vLLM took another kernel than the contender asked for, naming the one it took."""
    through = contender["through"]
    if through == "engine":
        return
    described = describe_layer(layer)
    kernel, computes = described["kernel"], described["computes"]
    if "backend" in through and type(find_kernel(layer)) not in backend_kernels(through["backend"]):
        raise NotImplementedError(f"vLLM has no {through['backend']} kernel for this layer here: it would run {kernel}")
    if computes is not None and computes != contender["computes"]:
        raise NotImplementedError(f"{kernel} computes {computes} here, not {contender['computes']}")


def refused(product, quantization_config, contender):
    """(status, reason) of a layer that is not what was asked for, or None."""
    if (product.computes or "").startswith("emulated"):
        return "unsupported", f"{product.kernel} only emulates this format: its numbers without its speed"
    if quantization_config is not None and not product.quantized:
        return "invalid", f"a quantized layer was asked for, {product.kernel} is not"
    return None


def relative_error(result, x, weight, n, k):
    """||y - y64|| / ||y64|| over a sample of rows; y64 is the float64 product with the dequantized weight."""
    rows = torch.linspace(0, len(x) - 1, min(len(x), CHECKED_ROWS), device=x.device, dtype=torch.float64).round().long()
    inputs, outputs = x[rows].double(), result[rows].double()
    off, whole = 0.0, 0.0
    step = max(1, REFERENCE_ELEMENTS // k)
    for start in range(0, n, step):
        columns = slice(start, min(start + step, n))
        reference = inputs @ weight.dequantize(columns).T
        off += float((outputs[:, columns] - reference).square().sum())
        whole += float(reference.square().sum())
    return (off / whole) ** 0.5


def error_bound(computes, format):
    """The greatest relative error that is rounding, by what a kernel computes; by the format for an unknown kernel."""
    if computes is None:
        inputs = (format or {}).get("input_activations")
        computes = f"a{inputs['num_bits']}-{'fp8' if inputs['type'] == 'float' else 'int8'}" if inputs else "a16"
    if computes in BOUNDS:
        return BOUNDS[computes]
    if "a4" in computes:
        return BOUNDS["fp4"]
    if "a8" in computes:
        return BOUNDS["fp8" if "fp" in computes else "int8"]
    return BOUNDS["a16"]


def _expected_failure(error):
    """(status, reason) of a failure that is a result; raises every other error again."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return "out_of_memory", _one_line(error)
    if known := classify_failure(str(error)):
        return known
    refused = isinstance(error, RuntimeError | ValueError) and REFUSALS.search(str(error))
    if refused or isinstance(error, NotImplementedError):
        return "unsupported", _one_line(error)
    raise error


def _one_line(error):
    # On a device for which vLLM lists no kernel at all, its list of reasons is empty.
    return " ".join(str(error).split()).removesuffix(" Reasons:") or type(error).__name__
