"""What every raw operator has: its description, and how a library's refusal becomes a sentence."""

import torch

BLOCK = 128
FP8_MAX = 448.0  # largest float8_e4m3fn
INSTALL = "{package} is not installed in the engine's environment: `pip install {pip}` there, a release for its torch"


class Op:
    """One product.

    kernel                 what runs, for the table
    computes               as in engine/kernels.py
    includes_quantization  whether the call quantizes its activations; None: they stay as wide as they are
    device, dtypes         where it runs, and the types of activations and results it has
    """

    kernel = None
    computes = None
    includes_quantization = None
    device = "cuda"
    dtypes = (torch.bfloat16, torch.float16)

    def prepare(self, x):
        """The operand of the timed call for [m, k] activations; the product is tried once, to be refused here."""
        with Refusals(self.kernel):
            operand = self.operand(x)
            self(operand)
        return operand

    def operand(self, x):
        return x

    def __call__(self, operand):
        raise NotImplementedError


class Refusals:
    """Turns a library's refusal of a device, a shape or a type into NotImplementedError with its own words.

    A failed allocation stays what it is, and so does an error of the device, after which nothing can be trusted.
    """

    def __init__(self, who):
        self.who = who

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None or isinstance(error, torch.OutOfMemoryError):
            return
        # torch explains at length why an operator has no kernel for a device.
        words = str(error).strip().split("\n")[0].split(". This could be")[0] or kind.__name__
        if isinstance(error, NotImplementedError) and words == str(error):
            return
        missing = isinstance(error, AttributeError) and "_OpNamespace" in words
        if missing or isinstance(error, AssertionError):
            raise NotImplementedError(f"{self.who}: {words}") from error
        if not isinstance(error, RuntimeError) or "can't allocate memory" in words:
            return
        if "CUDA error" not in words or "no kernel image" in words:
            raise NotImplementedError(f"{self.who}: {words}") from error


def require(fits, sentence):
    """Raises ValueError: a weight that is not of the op's format."""
    if not fits:
        raise ValueError(sentence)


def refuse_unless(possible, sentence):
    """Raises NotImplementedError: a shape or a device that the op cannot."""
    if not possible:
        raise NotImplementedError(sentence)
