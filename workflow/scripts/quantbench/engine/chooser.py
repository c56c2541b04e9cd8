"""vLLM's own kernel chooser, asked about a device that need not be there.

    with Chooser("9.0", optional_packages(pins)) as chooser:      # as if on an H100
        answer = chooser.ask(quantization_config, "bfloat16")
    with Chooser(None, None) as chooser: ...                      # on the CPU that this is: nothing is pretended

The chooser is Python: it asks the platform object for a compute capability, the compiled library what it was built for,
and Python for optional packages. Those three are answered here; the rest is vLLM's own code and words. Seen with vLLM
0.32.0 on a CPU; written for 0.25.1 and for a CUDA build without a device, too.
"""

import contextlib
import copy
import importlib
import importlib.util
import re
from types import SimpleNamespace

from quantbench.engine.kernels import describe_layer
from quantbench.engine.pretend import attribute, environment, pretend_packages, pretend_platform
from quantbench.engine_failure import LONGEST_REASON, classify_failure

# A shape of every model's: a hidden size of 4096, divisible by whatever a kernel asks for.
SHAPE = (4096, 4096)
# Each round of asking disables what was chosen before; there are never more kernels than this for one format.
MOST_ROUNDS = 20


class Chooser:
    """Answers for one device; a context manager, after which vLLM is as it was.

    capability  "9.0", ...: a CUDA device that need not be there; None: the device that vLLM found itself (a CPU)
    present     optional modules to be taken for installed (see optional_packages); ignored without a capability
    """

    def __init__(self, capability, present):
        self.capability = capability
        self.present = set(present or ())
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        import torch

        if self.capability is None and hasattr(torch.cpu, "_init_amx"):
            # Without it AMX kernels outside an engine die with SIGILL.
            torch.cpu._init_amx()
        _import_vllm()
        with contextlib.ExitStack() as stack:
            if self.capability is not None:
                stack.enter_context(pretend_packages(self.present))
                stack.enter_context(pretend_platform(self.capability))
            stack.enter_context(one_rank())
            stack.enter_context(_engine_config())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        self._stack.close()

    def ask(
        self, quantization_config=None, dtype="bfloat16", quantization=None, shape=SHAPE, torchao=None, backend=None
    ):
        """What vLLM takes for a linear layer: {"kernel", "computes", "refusals", "reason"}.

        quantization_config  what a checkpoint of the format says (schemes.compressed_tensors_config), or None
        dtype                "bfloat16", ...: the engine's
        quantization         the engine argument of that name, for weights that vLLM quantizes while it loads them
        torchao              torchao's configuration as JSON text, where `quantization` is torchao
        backend              the engine argument `linear_backend`: a family of kernels that is forced
        kernel, computes     as in engine/kernels.py; None where vLLM refuses
        refusals             {kernel class: why not} of those that vLLM would not take, and "next in line" for those it
                             would take without the ones before
        reason               vLLM's own sentence where it refuses, else None
        Raises ImportError where the chooser needs a package itself that is only pretended (Humming, for MXFP4).
        """
        with _forced(backend):
            return self._ask(quantization_config, dtype, quantization, shape, torchao)

    def _ask(self, quantization_config, dtype, quantization, shape, torchao):
        try:
            layer = self._build(quantization_config, dtype, quantization, shape, torchao)
            found = describe_layer(layer)
            first = {"kernel": found["kernel"], "computes": found["computes"], "refusals": {}, "reason": None}
            if not found["quantized"]:
                return first
        except (ValueError, RuntimeError, ImportError) as error:
            if isinstance(error, ImportError) and not classify_failure(str(error)):
                raise
            # How vLLM refuses. Anything else is a crash: a package that is pinned and not there, a name that has moved.
            return {"kernel": None, "computes": None, "refusals": refusals(str(error)), "reason": one_line(error)}
        del layer
        if torchao:
            # One way to multiply, and no kernel class to do without.
            return first
        return first | {"refusals": self._others(found["kernel"], quantization_config, dtype, quantization, shape)}

    def _others(self, chosen, *request):
        """Why vLLM takes no other kernel: asked again without the chosen one until nothing is left."""
        disabled, found = [chosen], {}
        for _ in range(MOST_ROUNDS):
            with environment(VLLM_DISABLED_KERNELS=",".join(disabled)):
                try:
                    kernel = describe_layer(self._build(*request, process=False))["kernel"]
                except Exception as error:
                    # What is left may need more than a pretended package; the choice itself is known.
                    said = refusals(str(error))
                    return found | {name: reason for name, reason in said.items() if name not in disabled}
            if kernel in disabled:
                break
            found[kernel] = "next in line"
            disabled.append(kernel)
        return found

    def _build(self, quantization_config, dtype, quantization, shape, torchao=None, process=True):
        """vLLM's linear layer of this format; with its weights processed where the device is really there."""
        import torch
        from vllm.model_executor.layers.linear import ReplicatedLinear
        from vllm.platforms import current_platform

        torch_dtype = getattr(torch, dtype)
        config = _quantization(quantization_config, quantization, torchao)
        _check_platform(current_platform, torch_dtype, config, quantization)
        with _model_of(torch_dtype), torch.device("cpu" if self.capability is None else "meta"):
            n, k = shape
            layer = ReplicatedLinear(
                k, n, bias=False, params_dtype=torch_dtype, quant_config=config, prefix="layer", return_bias=False
            )
            if process and self.capability is None:
                with torch.inference_mode():
                    for parameter in layer.parameters():
                        parameter.data.zero_()
                    layer.quant_method.process_weights_after_loading(layer)
        return layer


# --- vLLM's parts that a layer needs ----------------------------------------------------------------------------------


def _import_vllm():
    """Everything that a layer is built from, imported before anything is pretended."""
    for name in (
        "vllm.config",
        "vllm.distributed.parallel_state",
        "vllm.model_executor.kernels.linear",
        "vllm.model_executor.layers.linear",
        "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors",
        "vllm.model_executor.layers.quantization.utils.w8a8_utils",
    ):
        importlib.import_module(name)


def _quantization(quantization_config, quantization, torchao=None):
    """vLLM's configuration object of a checkpoint's format or of an online quantization; None for neither."""
    if quantization_config is not None:
        from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
            CompressedTensorsConfig,
        )

        # from_config changes what it is given. This one layer is the target, whatever names the scheme targets.
        config = copy.deepcopy(quantization_config)
        for group in config["config_groups"].values():
            group["targets"] = ["Linear"]
        return CompressedTensorsConfig.from_config({**config, "ignore": []})
    if quantization is None:
        return None
    from vllm.config.quantization import _ONLINE_SHORTHANDS
    from vllm.model_executor.layers.quantization import get_quantization_config
    from vllm.model_executor.layers.quantization.online.base import OnlineQuantizationConfig

    # "fp8" without a checkpoint's word for it is the same as "fp8_per_tensor".
    shorthand = {"fp8": "fp8_per_tensor"}.get(quantization, quantization)
    if shorthand in _ONLINE_SHORTHANDS:
        return OnlineQuantizationConfig(_ONLINE_SHORTHANDS[shorthand])
    if torchao is not None:
        return get_quantization_config(quantization).from_config_dict_json(torchao)
    return get_quantization_config(quantization).from_config({})


def _check_platform(platform, dtype, config, quantization):
    """Raise what vLLM raises when it reads a model (_verify_quantization, _get_quantization_config)."""
    # Not every platform has an opinion on types.
    with contextlib.suppress(NotImplementedError):
        platform.check_if_supports_dtype(dtype)
    if config is None:
        return
    platform.verify_quantization(quantization or config.get_name())
    has = platform.get_device_capability()
    if has is not None and has.to_int() < config.get_min_capability():
        raise ValueError(
            f"The quantization method {config.get_name()} is not supported for the current GPU. Minimum capability: "
            f"{config.get_min_capability()}. Current capability: {has.to_int()}."
        )


@contextlib.contextmanager
def _engine_config():
    """The engine configuration that layers and kernels look at."""
    from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config

    # Said, since without a device vLLM refuses to guess.
    with set_current_vllm_config(VllmConfig(device_config=DeviceConfig(device="cpu"))):
        yield


@contextlib.contextmanager
def _model_of(dtype):
    """A model configuration of this type and little else, and torch's default type, as while a model is built."""
    import torch
    from vllm.config import get_current_vllm_config

    config, before = get_current_vllm_config(), torch.get_default_dtype()
    model = config.model_config
    no_model = {"hf_config": SimpleNamespace(), "hf_text_config": SimpleNamespace(), "is_moe": False}
    config.model_config = SimpleNamespace(dtype=dtype, **no_model)
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        config.model_config = model


@contextlib.contextmanager
def _forced(backend):
    """vLLM's choice of kernels with a backend forced, or free for None."""
    from vllm.config import get_current_vllm_config

    if backend is None:
        yield
        return
    with attribute(get_current_vllm_config().kernel_config, "linear_backend", backend):
        yield


@contextlib.contextmanager
def one_rank():
    """A tensor-parallel group of one, without starting anything: parameters ask for no more than its size and rank."""
    from vllm.distributed import parallel_state

    with attribute(parallel_state, "_TP", SimpleNamespace(world_size=1, rank_in_group=0)):
        yield


# --- vLLM's words -----------------------------------------------------------------------------------------------------


def refusals(message):
    """{kernel class: vLLM's words} from the list of reasons that ends vLLM's "Failed to find a kernel ..."."""
    found = {}
    _, _, reasons = message.partition("Reasons:")
    for line in reasons.splitlines():
        if match := re.match(r"\s*(\w+Kernel)\b[\s:]*(.*)", line):
            found[match[1]] = re.sub(r"^cannot implement due to: *", "", match[2]).strip().rstrip(".")
    return found


def one_line(error):
    """An exception's message as one line; its class where it has none."""
    text = " ".join(str(error).split()).removesuffix(" Reasons:").replace("..", ".") or type(error).__name__
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"
