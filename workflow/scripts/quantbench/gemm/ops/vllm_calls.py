"""vLLM's operators and helpers, of whatever release is installed."""

import inspect

import torch


def vllm_ops():
    from vllm import _custom_ops

    return _custom_ops


def scalar_type(bits, zeros):
    """vLLM's name of unsigned integers with zero points, or less half of 2^bits."""
    from vllm.scalar_type import scalar_types

    return getattr(scalar_types, f"uint{bits}" if zeros else f"uint{bits}b{2 ** (bits - 1)}")


def call(function, **arguments):
    """Calls with those arguments that this release's function has."""
    return function(**_known(function, arguments))


def bind(function, **arguments):
    """The function with those arguments that this release's has, for keywords yet to come."""
    known = _known(function, arguments)
    return lambda **more: function(**known, **more)


def _known(function, arguments):
    names = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in names}


def indexed(device):
    """A CUDA device with its number, which vLLM's helpers read."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
