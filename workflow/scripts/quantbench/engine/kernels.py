"""Which kernel really runs each linear layer of a model, and what it computes.

Kernels are provenance: what a scheme promises and what the engine does are two things (see kernel_verdict.py). Works on
a model inside an engine, inside a server, and on a single layer; seen with vLLM 0.32.0, written for 0.25.1 too. Reads
attributes only, so it needs neither torch nor vLLM to be imported here.
"""

# vLLM's linear layers descend from LinearBase; the output head is an embedding that multiplies.
LINEAR_CLASSES = {"LinearBase", "ParallelLMHead"}
UNQUANTIZED_METHODS = {"UnquantizedLinearMethod", "UnquantizedEmbeddingMethod"}
FLOAT_NAMES = {"torch.bfloat16": "bf16", "torch.float16": "fp16", "torch.float32": "fp32"}

# FP8 kernels that leave the activations in 16 bit. Other FP8 kernels quantize them.
WEIGHT_ONLY_FP8 = {
    "CPUFp8BlockScaledMMKernel",
    "CPUFp8PerTensorScaledMMLinearKernel",
    "MarlinFP8ScaledMMLinearKernel",
    "XPUW8A16FP8LinearKernel",
}


def report_kernels(model):
    """The linear layers of a model, grouped: [{"layer_kind", "count", "kernel", "computes", "quantized"}].

    model       a torch.nn.Module whose layers have had their weights processed (an engine's model)
    layer_kind  last part of the layer's name: qkv_proj, o_proj, gate_up_proj, down_proj, lm_head, ...
    kernel      name of the kernel's class, or of the quantization method that has none
    computes    w4a16, w8a8-int8, bf16, ...; None for a kernel this module does not know
    quantized   False for a layer that multiplies in the model's own type, whatever the scheme asked for
    """
    counts = {}
    for name, module in model.named_modules():
        if LINEAR_CLASSES.isdisjoint(base.__name__ for base in type(module).__mro__):
            continue
        described = describe_layer(module)
        group = (name.rsplit(".", 1)[-1], *described.values())
        counts[group] = counts.get(group, 0) + 1
    return [
        {"layer_kind": kind, "count": count, "kernel": kernel, "computes": computes, "quantized": quantized}
        for (kind, kernel, computes, quantized), count in counts.items()
    ]


def describe_layer(layer):
    """What one linear layer runs: {"kernel", "computes", "quantized"}, as in report_kernels."""
    kernel = find_kernel(layer)
    if kernel is not None:
        return {"kernel": type(kernel).__name__, "computes": what_kernel_computes(kernel, layer), "quantized": True}
    method = type(layer.quant_method).__name__
    if method in UNQUANTIZED_METHODS:
        path = _cpu_path(layer)
        name = f"{method} ({path})" if path else method
        return {"kernel": name, "computes": _float_name(layer), "quantized": False}
    if method == "TorchAOLinearMethod":
        held = type(layer.weight).__name__
        return {"kernel": f"{method} ({held})", "computes": _torchao_computes(held, layer.weight), "quantized": True}
    # A method without a kernel class (plug-ins, older releases): named, and not guessed at.
    return {"kernel": method, "computes": None, "quantized": True}


def find_kernel(layer):
    """The kernel object of a layer: an attribute of its scheme or quantization method whose class is called ...Kernel.

    Two levels deep, because a transform method wraps another method, and a method may wrap a scheme.
    """
    holders = [getattr(layer, name, None) for name in ("scheme", "quant_method")]
    for _ in range(3):
        deeper = []
        for holder in holders:
            for value in getattr(holder, "__dict__", {}).values():
                if type(value).__name__.endswith("Kernel"):
                    return value
                if type(value).__name__.endswith("Method") or "Scheme" in _base_names(value):
                    deeper.append(value)
        holders = deeper
    return None


def what_kernel_computes(kernel, layer):
    """What a kernel multiplies, e.g. "w4a16": the weights' width, the activations' width, the kind of number."""
    name = type(kernel).__name__
    config = getattr(kernel, "config", None)
    # Ours (engine/emulation.py) knows, and is nothing's speed either.
    if emulates := getattr(kernel, "emulates", None):
        return f"emulated-{emulates}"
    if name.startswith("Emulation"):
        # Right numbers, computed in 16 bit: never to be taken for the scheme's speed.
        computes = _fp4_computes(name, layer) if "NvFp4" in name else None
        return f"emulated-{computes}" if computes else "emulated"
    if "NvFp4" in name:
        return _fp4_computes(name, layer)
    if "Mx" in name:
        return _mx_computes(name)
    if "fp8" in name.lower():
        # Humming decides by its configuration, on the device.
        if name.startswith("Humming"):
            return None
        return "w8a16-fp8" if name in WEIGHT_ONLY_FP8 else "w8a8-fp8"
    if "Int8ScaledMM" in name:
        return "w8a8-int8"
    if config is not None and hasattr(config, "weight_type"):
        return _integer_computes(name, config, layer)
    return None


def _integer_computes(name, config, layer):
    """Mixed-precision kernels: integer weights with 16-bit, or quietly narrower, activations."""
    bits = config.weight_type.size_bits
    # On a CPU with AMX the kernel called WNA16 quantizes the activations to int8, unless VLLM_CPU_INT4_W4A8=0.
    if getattr(layer, "use_w4a8", False) or name == "Dynamic4bitLinearKernel":
        return f"w{bits}a8"
    activation = str(getattr(config, "act_type", None))
    if "float8" in activation:
        return f"w{bits}a8-fp8"
    if "int8" in activation:
        return "w8a8-int8" if bits == 8 else f"w{bits}a8"
    return "w8a16-int8" if bits == 8 else f"w{bits}a16"


def _fp4_computes(name, layer):
    """NVFP4 weights; 16-bit activations where the kernel or the scheme says so."""
    asked = getattr(getattr(layer, "scheme", None), "use_a16", False)
    weight_only = asked or name.startswith("Marlin") or "W4A16" in name
    # Humming decides by its configuration, on the device.
    if name.startswith("Humming") and not weight_only:
        return None
    return "w4a16-fp4" if weight_only else "w4a4-fp4"


def _mx_computes(name):
    """Microscaling formats: Marlin multiplies in 16 bit; of the rest only MXFP8's activations are certain."""
    width = 8 if "xfp8" in name.lower() else 6 if "xfp6" in name.lower() else 4
    if name.startswith("Marlin"):
        return f"w{width}a16-mxfp{width}"
    return "w8a8-mxfp8" if width == 8 else None


def _torchao_computes(held, weight):
    """By the class of tensor that the weight is held in (torchao 0.18), which says whether it rounds the activations, too."""
    rounds = getattr(weight, "act_quant_kwargs", None) is not None
    if held == "Int8Tensor":
        return "w8a8-int8" if rounds else "w8a16-int8"
    if held == "Float8Tensor":
        return "w8a8-fp8" if rounds else "w8a16-fp8"
    return "w4a16" if held.startswith("Int4") else None


def _cpu_path(layer):
    """Which library an unquantized layer calls on a CPU (onednn_mm, weight_packed_linear_cpu, ...); None elsewhere.

    vLLM keeps no name for it, but a lambda, and the lambda knows the names it uses.
    """
    function = getattr(layer, "cpu_linear", None)
    if function is None:
        return None
    used = getattr(getattr(function, "__code__", None), "co_names", ())
    known = ("onednn_mm", "weight_packed_linear_cpu", "weight_packed_linear", "zentorch_linear_unary")
    return next((name for name in known if name in used), "torch linear")


def _float_name(layer):
    """bf16, fp16 or fp32: the type an unquantized layer multiplies in."""
    dtype = getattr(layer, "params_dtype", None) or getattr(getattr(layer, "weight", None), "dtype", None)
    return FLOAT_NAMES.get(str(dtype))


def _base_names(value):
    return " ".join(base.__name__ for base in type(value).__mro__)


class KernelReporter:
    """Worker extension: `worker_extension_cls="quantbench.engine.kernels.KernelReporter"`.

    In process: `llm.collective_rpc("report_kernels")`, one list per worker. In a server started with
    VLLM_SERVER_DEV_MODE=1: POST /collective_rpc {"method": "report_kernels"}.
    """

    def report_kernels(self):
        runner = self.model_runner
        return report_kernels(runner.get_model() if hasattr(runner, "get_model") else runner.model)

    def report_memory(self):
        # Here, since it imports torch, which whoever describes a single layer need not have.
        from quantbench.engine.memory import report_memory

        return report_memory(self)
