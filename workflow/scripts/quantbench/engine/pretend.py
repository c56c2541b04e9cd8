"""What vLLM is told of a device and of packages that are not there: its platform object, its compiled library's answers and
Python's modules, patched wherever they were imported to, and put back afterwards."""

import contextlib
import functools
import importlib
import importlib.util
import os
import sys
import types
from types import SimpleNamespace

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


def optional_packages(pinned):
    """The optional modules that an environment has, from what its file pins: {distribution: version}."""
    return {module for module, distribution in OPTIONAL_MODULES.items() if distribution in pinned}


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
        stack.enter_context(attribute(importlib.util, "find_spec", pretended_spec))
        stack.enter_context(_everywhere(import_utils._has_module, pretended_module))
        stack.enter_context(_everywhere(flashinfer._get_submodule, pretended_submodule))
        # FlashInfer compiles its kernels with the node's CUDA toolkit, which this machine may lack.
        stack.enter_context(environment(VLLM_HAS_FLASHINFER_CUBIN="1"))
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
def attribute(module, name, value):
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextlib.contextmanager
def environment(**variables):
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
