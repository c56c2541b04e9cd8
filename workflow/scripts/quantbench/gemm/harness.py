"""Matrix products through vLLM's own linear layer, so that the packing and the kernel are the ones that serve.

    with Harness("cpu") as harness:
        for outcome in harness.measure(n, k, tokens, dtype, format, quantization_config, repeats): ...

Correct before fast: a layer whose result is off is not timed. Seen with vLLM 0.32.0, written for 0.25.1 too.
"""

import contextlib
import copy
import re
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from quantbench.engine.kernels import describe_layer
from quantbench.engine_failure import classify_failure
from quantbench.gemm.timing import Stopwatch
from quantbench.gemm.weights import make_activations, make_weight, static_input_scales

# Greatest relative error, ||y - y64|| / ||y64||, against a float64 product of the same dequantized weights, by the
# width of the activations that the kernel multiplies. Gaussian activations; about four times what each rounding costs:
#   16 bits  weights and results are rounded to bfloat16, 2^-9 at most, 0.0011 to 0.0025 in all
#   int8     a row's step is its largest / 127, about 4 sigma / 127, over sqrt(12): 0.009
#   fp8      e4m3 has 3 bits of mantissa: 2^-4 at most, 0.026 on average
#   fp4      e2m1 in groups of 16 has 1 bit of mantissa: 0.1
# A wrong zero point, a missing group of scales or a transposed block costs more than any of these.
BOUNDS = {"a16": 0.01, "int8": 0.035, "fp8": 0.1, "fp4": 0.25}

CHECKED_ROWS = 32  # of the result; the kernel still sees all m
REFERENCE_ELEMENTS = 1 << 24  # of the float64 weight at a time: 128 MiB

# How vLLM says that a device, or this build, cannot run a format, when it is not a ValueError.
REFUSALS = re.compile(r"not support|unsupported|min(imum)? capability|not available|not implemented", re.IGNORECASE)


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

    def measure(self, n, k, tokens, dtype, format, quantization_config, repeats):
        """Check and time one layer at each of several m: yields (m, status, reason, rows, seconds).

        dtype                "bfloat16", ...: of activations and unquantized weights
        format               {"weights", "input_activations"} or None
        quantization_config  what a checkpoint of this format says; None for an unquantized layer
        repeats              {"least", "most", "relative_ci", "confidence"}
        rows                 per repeat {"repeat", "kernel", "computes", "latency_s", "relative_error",
                             "includes_quantization"}; [] unless status is ok
        """
        started = time.perf_counter()
        torch_dtype = getattr(torch, dtype)
        default_dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch_dtype)
        # There is no model here; schemes and kernels ask its configuration for little more than its type.
        no_model = {"hf_config": SimpleNamespace(), "hf_text_config": SimpleNamespace(), "is_moe": False}
        self.config.model_config = SimpleNamespace(dtype=torch_dtype, **no_model)
        try:
            with torch.device(self.device), torch.inference_mode():
                yield from self._measure(n, k, tokens, torch_dtype, format, quantization_config, repeats, started)
        finally:
            torch.set_default_dtype(default_dtype)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _measure(self, n, k, tokens, dtype, format, quantization_config, repeats, started):
        try:
            weight = make_weight(n, k, format, dtype, self.device)
            weight.tensors |= static_input_scales(format, self.device)
            layers = [build_layer(n, k, dtype, quantization_config, weight.tensors)]
        except Exception as error:
            status, reason = _expected_failure(error)
            for m in tokens:
                yield m, status, reason, [], time.perf_counter() - started
                started = time.perf_counter()
            return
        described = describe_layer(layers[0])
        for m in tokens:
            try:
                status, reason, rows = self._measure_one(
                    m, layers, weight, described, n, k, dtype, format, quantization_config, repeats
                )
            except Exception as error:
                status, reason = _expected_failure(error)
                rows = []
            yield m, status, reason, rows, time.perf_counter() - started
            started = time.perf_counter()

    def _measure_one(self, m, layers, weight, described, n, k, dtype, format, quantization_config, repeats):
        kernel, computes = described["kernel"], described["computes"]
        if (computes or "").startswith("emulated"):
            return "unsupported", f"{kernel} only emulates this format: its numbers without its speed", []
        if quantization_config is not None and not described["quantized"]:
            return "invalid", f"a quantized layer was asked for, {kernel} is not", []
        x = make_activations(m, k, dtype, self.device)
        error = relative_error(layers[0](x), x, weight, n, k)
        bound = error_bound(computes, format)
        # Written so that NaN fails.
        if not error <= bound:
            return "invalid", f"{kernel} is off by {error:.3g} (relative), at most {bound} is rounding: not timed", []

        def more(count):
            while len(layers) < count:
                layers.append(build_layer(n, k, dtype, quantization_config, weight.tensors))
            return layers[:count]

        weight_bytes = max(sum(t.numel() * t.element_size() for t in weight.tensors.values()), 1)
        latencies = self.stopwatch.repeat(more, x, weight_bytes, repeats)
        row = {"kernel": kernel, "computes": computes, "relative_error": error,
               "includes_quantization": bool(re.search(r"a[48]", computes or ""))}  # fmt: skip
        return "ok", None, [{"repeat": i, "latency_s": s, **row} for i, s in enumerate(latencies)]


def build_layer(n, k, dtype, quantization_config, tensors):
    """vLLM's ReplicatedLinear of k inputs and n outputs with these weights, processed as after loading a model."""
    from vllm.model_executor.layers.linear import ReplicatedLinear
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig

    quantization = None
    if quantization_config is not None:
        # from_config changes what it is given. This one layer is the target, whatever names the scheme targets.
        config = copy.deepcopy(quantization_config)
        for group in config["config_groups"].values():
            group["targets"] = ["Linear"]
        quantization = CompressedTensorsConfig.from_config({**config, "ignore": []})
    layer = ReplicatedLinear(
        k, n, bias=False, params_dtype=dtype, quant_config=quantization, prefix="layer", return_bias=False
    )
    for name, parameter in layer.named_parameters():
        parameter.data.copy_(tensors[name].view(parameter.shape))
    layer.quant_method.process_weights_after_loading(layer)
    return layer


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
