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
import functools
import importlib
import importlib.util
import os
import re
import sys
import types
from types import SimpleNamespace

from quantbench.engine.kernels import describe_layer
from quantbench.engine_failure import LONGEST_REASON, classify_failure

# A shape of every model's: a hidden size of 4096, divisible by whatever a kernel asks for.
SHAPE = (4096, 4096)

# Optional modules that decide which kernels there are, and the distributions they come in.
OPTIONAL_MODULES = {
    "flashinfer": "flashinfer-python",
    "flashinfer_cubin": "flashinfer-cubin",
    "humming": "humming-kernels",
    "conch": "conch-triton-kernels",
    "fbgemm_gpu": "fbgemm-gpu",
    "quark": "amd-quark",
    "cutlass": "nvidia-cutlass-dsl",
    "deep_gemm": "deep-gemm",
    "aiter": "amd-aiter",
    "b12x": "b12x",
}
# vLLM's CUDA wheel brings it along (cmake/external_projects/deepgemm.cmake).
BUNDLED_MODULES = ("vllm.third_party.deep_gemm",)

# What vLLM's compiled library answers for CUDA 13, by capability (major * 10 + minor): scaled_mm_entry.cu and
# nvfp4_scaled_mm_entry.cu below csrc/libtorch_stable/quantization. Asked of the library itself where it is there.
COMPILED = {
    "cutlass_scaled_mm_supports_fp8": lambda capability: capability >= 89,
    "cutlass_scaled_mm_supports_block_fp8": lambda capability: capability >= 90,
    "cutlass_scaled_mm_supports_fp4": lambda capability: 100 <= capability < 130,
}
# Modules whose cached answers hang on the platform or on packages.
CACHING = ("vllm.utils.", "vllm.platforms", "vllm.model_executor.kernels", "vllm.model_executor.layers.quantization")

# Each round of asking disables what was chosen before; there are never more kernels than this for one format.
MOST_ROUNDS = 20


def optional_packages(pinned):
    """The optional modules that an environment has, from what its file pins: {distribution: version}."""
    return {module for module, distribution in OPTIONAL_MODULES.items() if distribution in pinned}


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

    def ask(self, quantization_config=None, dtype="bfloat16", quantization=None, shape=SHAPE, torchao=None):
        """What vLLM takes for a linear layer: {"kernel", "computes", "refusals", "reason"}.

        quantization_config  what a checkpoint of the format says (schemes.compressed_tensors_config), or None
        dtype                "bfloat16", ...: the engine's
        quantization         the engine argument of that name, for weights that vLLM quantizes while it loads them
        torchao              torchao's configuration as JSON text, where `quantization` is torchao
        kernel, computes     as in engine/kernels.py; None where vLLM refuses
        refusals             {kernel class: why not} of those that vLLM would not take, and "next in line" for those it
                             would take without the ones before
        reason               vLLM's own sentence where it refuses, else None
        Raises ImportError where the chooser needs a package itself that is only pretended (Humming, for MXFP4).
        """
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
            with _environment(VLLM_DISABLED_KERNELS=",".join(disabled)):
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
def one_rank():
    """A tensor-parallel group of one, without starting anything: parameters ask for no more than its size and rank."""
    from vllm.distributed import parallel_state

    with _attribute(parallel_state, "_TP", SimpleNamespace(world_size=1, rank_in_group=0)):
        yield


# --- what is pretended ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def pretend_platform(capability):
    """vLLM's platform object, wherever it was imported to, becomes a CUDA device of this compute capability."""
    from vllm import _custom_ops
    from vllm.platforms import current_platform

    number = int(capability.replace(".", ""))
    before = type(current_platform)
    with contextlib.ExitStack() as stack:
        for name, stand_in in COMPILED.items():
            original = getattr(_custom_ops, name, None)
            if original is not None:
                stack.enter_context(_everywhere(original, _or_stand_in(original, stand_in)))
        current_platform.__class__ = _cuda_platform(capability)
        stack.callback(setattr, current_platform, "__class__", before)
        stack.enter_context(_fresh_caches())
        # Kept in a constant when the module is imported.
        stack.enter_context(_constant("CUTLASS_BLOCK_FP8_SUPPORTED", number >= 90))
        stack.enter_context(_deep_gemm_without_its_library())
        yield current_platform


def _cuda_platform(capability):
    """A class of platform: vLLM's own for CUDA where it can be imported, with the answers that a device would give."""
    from vllm.platforms import interface

    with _missing_extensions():
        try:
            from vllm.platforms.cuda import CudaPlatformBase as base
        except ImportError:
            base = interface.Platform
    major, minor = (int(part) for part in capability.split("."))

    class PretendedCuda(base):
        _enum = interface.PlatformEnum.CUDA
        device_name = device_type = "cuda"

        @classmethod
        def get_device_capability(cls, device_id=0):
            return interface.DeviceCapability(major=major, minor=minor)

        @classmethod
        def get_device_name(cls, device_id=0):
            return f"compute capability {capability}"

    return PretendedCuda


@contextlib.contextmanager
def _missing_extensions():
    """vLLM's CUDA platform imports its compiled CUDA library, which a build for CPUs has not."""
    names = [
        name
        for name in ("vllm._C", "vllm._C_stable_libtorch")
        if name not in sys.modules and importlib.util.find_spec(name) is None
    ]
    sys.modules.update({name: types.ModuleType(name) for name in names})
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


@contextlib.contextmanager
def pretend_packages(present):
    """Optional modules are installed or not as `present` says, with every attribute one could ask for."""
    from vllm.utils import flashinfer, import_utils

    find_spec = importlib.util.find_spec

    def pretended_spec(name, package=None):
        if name in BUNDLED_MODULES:
            return SimpleNamespace(name=name)
        if name.split(".")[0] in OPTIONAL_MODULES:
            return SimpleNamespace(name=name) if name.split(".")[0] in present else None
        return find_spec(name, package)

    def pretended_module(name):
        return pretended_spec(name) is not None

    @functools.cache
    def pretended_submodule(name):
        return _Anything(name) if pretended_module(name) else None

    with contextlib.ExitStack() as stack:
        stack.enter_context(_everywhere(find_spec, pretended_spec))
        stack.enter_context(_attribute(importlib.util, "find_spec", pretended_spec))
        stack.enter_context(_everywhere(import_utils._has_module, pretended_module))
        stack.enter_context(_everywhere(flashinfer._get_submodule, pretended_submodule))
        # FlashInfer compiles its kernels with the node's CUDA toolkit, which this machine may lack.
        stack.enter_context(_environment(VLLM_HAS_FLASHINFER_CUBIN="1"))
        stack.enter_context(_fresh_caches())
        yield


class _Anything:
    """A module that has whatever it is asked for."""

    def __init__(self, name):
        self.__name__ = name

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments, **named: None


@contextlib.contextmanager
def _deep_gemm_without_its_library():
    """DeepGEMM's scale format is of no matter to the choice, and finding it out would load the library."""
    from vllm.utils import deep_gemm

    original = getattr(deep_gemm, "is_deep_gemm_e8m0_used", None)
    if original is None:
        yield
    else:
        with _everywhere(original, lambda: False):
            yield


def _or_stand_in(original, stand_in):
    """The compiled library's answer, or ours where this build has no such operator."""

    def answer(capability):
        try:
            return original(capability)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError):
            return stand_in(capability)

    return answer


# --- patching, and back -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _everywhere(original, replacement):
    """Put a function in the place of another in all of vLLM's modules, which import them by name; back afterwards."""
    _replace(original, replacement)
    try:
        yield
    finally:
        # Modules that were imported meanwhile hold the replacement.
        _replace(replacement, original)


def _replace(old, new):
    for module in _vllm_modules():
        for name in [name for name, value in vars(module).items() if value is old]:
            setattr(module, name, new)


@contextlib.contextmanager
def _constant(name, value):
    """Set a module-level constant wherever vLLM imported it to; back afterwards."""
    before = {module: vars(module)[name] for module in _vllm_modules() if name in vars(module)}
    for module in before:
        setattr(module, name, value)
    try:
        yield
    finally:
        old = next(iter(before.values()), None)
        for module in _vllm_modules():
            if name in vars(module):
                setattr(module, name, before.get(module, old))


@contextlib.contextmanager
def _attribute(module, name, value):
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextlib.contextmanager
def _environment(**variables):
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _fresh_caches():
    """Forget cached answers about devices and packages now, and again afterwards."""
    _forget()
    try:
        yield
    finally:
        _forget()


def _forget():
    for module in _vllm_modules():
        if module.__name__.startswith(CACHING):
            for value in list(vars(module).values()):
                if isinstance(value, functools._lru_cache_wrapper):
                    value.cache_clear()


def _vllm_modules():
    return [module for name, module in list(sys.modules.items()) if name.startswith("vllm") and module is not None]


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
