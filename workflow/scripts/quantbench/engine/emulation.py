"""A scheme's numbers, without its speed, on a device that has no kernel for it.

vLLM reads the checkpoint as it always does. In place of a kernel its scheme gets EmulatedLinearKernel, which dequantizes the
weights once, rounds each activation as the scheme's format says and back, and multiplies in the engine's own type. What
differs from a native kernel is the rounding of the dequantized numbers to 16 bits and the order of the sums.

vLLM calls `register` in each of its processes, as a plugin: the entry point lies in emulation_plugin, which `switch_on` puts
on the path. Seen with vLLM 0.32.0, written for 0.25.1 too. Imports torch and vLLM inside functions, after the process
environment is set.
"""

import importlib
import json
import os
import sys
from pathlib import Path

from quantbench.schemes import promised_computation

FORMAT = "QUANTBENCH_EMULATE"
PLUGIN = Path(__file__).parent / "emulation_plugin"
PLUGIN_NAME = "quantbench-emulation"
SCHEMES = "vllm.model_executor.layers.quantization.compressed_tensors.schemes"

# Values of the four bits of an E2M1 number, the highest of them its sign (OCP Microscaling Formats 1.0, 5.3.3).
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# An E8M0 scale is 2 to the power of its byte less this (same, 5.4.1).
E8M0_BIAS = 127


def switch_on(format_):
    """Emulate a format ({"weights", "input_activations"} as in config/schemes) in every engine started from here on."""
    os.environ[FORMAT] = json.dumps(format_)
    # Processes that the engine starts inherit both.
    sys.path.append(str(PLUGIN))
    if "VLLM_PLUGINS" in os.environ:
        os.environ["VLLM_PLUGINS"] = ",".join(filter(None, (os.environ["VLLM_PLUGINS"], PLUGIN_NAME)))


def register():
    """Give vLLM's schemes the emulating kernel for their own; without `switch_on`, nothing. May be called repeatedly."""
    if FORMAT not in os.environ:
        return
    format_ = json.loads(os.environ[FORMAT])

    def kernel(*_, **__):
        return EmulatedLinearKernel(format_)

    for module, scheme, chooser, returns_class in (
        ("compressed_tensors_w8a8_fp8", "CompressedTensorsW8A8Fp8", "init_fp8_linear_kernel", False),
        ("compressed_tensors_w8a8_int8", "CompressedTensorsW8A8Int8", "init_int8_linear_kernel", False),
        ("compressed_tensors_w4a8_fp8", "CompressedTensorsW4A8Fp8", "choose_mp_linear_kernel", True),
        ("compressed_tensors_w4a4_nvfp4", "CompressedTensorsW4A4Fp4", "init_nvfp4_linear_kernel", False),
        ("compressed_tensors_w4a4_mxfp4", "CompressedTensorsW4A4Mxfp4", "init_mxfp4_linear_kernel", False),
    ):
        found = importlib.import_module(f"{SCHEMES}.{module}")
        setattr(found, chooser, (lambda *_, **__: kernel) if returns_class else kernel)
        # The least device is that of the native kernels.
        getattr(found, scheme).get_min_capability = classmethod(lambda cls: 0)
    # Of fused layers with a scale for each whole tensor, an operator that builds without a kernel lack too.
    utilities = importlib.import_module("vllm.model_executor.layers.quantization.utils.w8a8_utils")
    utilities.requantize_with_max_scale = to_one_scale
    config = importlib.import_module(f"{SCHEMES.rpartition('.')[0]}.compressed_tensors").CompressedTensorsConfig
    # Asked whether the device is Hopper, too.
    config._is_fp8_w4a8_sm90 = staticmethod(config._is_fp8_w4a8)


class EmulatedLinearKernel:
    """What vLLM's schemes ask of a linear kernel, of whatever kind."""

    def __init__(self, format_):
        import torch
        from compressed_tensors.quantization import QuantizationArgs

        self.format = format_
        self.emulates = promised_computation(format_)
        self.inputs = format_["input_activations"] and QuantizationArgs(**format_["input_activations"])
        # While a model is loaded, the type it computes in.
        self.dtype = torch.get_default_dtype()

    def input_quant_key(self):
        """None: no other layer is to quantize this one's input beforehand."""
        return None

    def process_weights_after_loading(self, layer):
        import torch

        weight = dequantized(layer, self.format["weights"]).to(self.dtype)
        layer.weight = torch.nn.Parameter(weight.contiguous(), requires_grad=False)

    def apply_weights(self, layer, x, bias=None):
        import torch

        if self.inputs:
            scale, global_scale = (getattr(layer, name, None) for name in ("input_scale", "input_global_scale_inv"))
            x = rounded(x, self.inputs, scale, global_scale)
        return torch.nn.functional.linear(x, layer.weight, bias)


def dequantized(layer, args):
    """A layer's weight [outputs, inputs] in 32 bit, from what vLLM's scheme has made of the checkpoint's tensors.

    args  format.weights of the scheme
    """
    import torch

    scale = layer.weight_scale
    if args["type"] == "int" and args["num_bits"] == 4:
        # Eight to a 32-bit word, the first in the lowest bits, 8 added to each.
        shifts = torch.arange(0, 32, 4, device=scale.device, dtype=torch.int32)
        values = ((layer.weight_packed.unsqueeze(-1) >> shifts & 0xF).flatten(1) - 8).float()
    elif args["num_bits"] == 4:
        values = e2m1(layer.weight)
    else:
        values = layer.weight.float()
    if args["num_bits"] == 8 and args["type"] == "float" and args["strategy"] != "block":
        # Turned over by the scheme, as matrix libraries want it.
        values = values.t()
    if args.get("scale_dtype") == "torch.uint8":
        scale = torch.exp2(scale.float() - E8M0_BIAS)
    scale = scale.float()
    if args["strategy"] == "tensor_group":
        scale = scale * layer.weight_global_scale
    if args["strategy"] == "block":
        rows, columns = args["block_structure"]
        scale = scale.repeat_interleave(rows, 0)[: values.shape[0]]
        return values * scale.repeat_interleave(columns, 1)[:, : values.shape[1]]
    if args["strategy"] in ("group", "tensor_group"):
        return (values.unflatten(1, (scale.shape[1], -1)) * scale.unsqueeze(-1)).flatten(1)
    # One scale for the whole tensor, for each row, or for each of the layers that are fused into this one.
    scale = scale.reshape(-1)
    if scale.numel() not in (1, len(values)):
        widths = torch.tensor(layer.logical_widths, device=scale.device)
        scale = scale.repeat_interleave(widths)
    return values * scale.unsqueeze(-1)


def to_one_scale(weight, weight_scale, logical_widths):
    """(scale, weight) of fused 8-bit floating-point layers, rounded anew to the greatest of their scales, as vLLM has it.

    Scales that were not loaded are the type's least number: such a checkpoint is fused already.
    """
    import torch

    limits, scale = torch.finfo(weight.dtype), weight_scale.max()
    if weight_scale.ndim and weight_scale[-1] > limits.min:
        own = weight_scale.repeat_interleave(torch.tensor(logical_widths, device=weight.device)).unsqueeze(-1)
        weight = (weight.float() * own / scale).clamp(limits.min, limits.max).to(weight.dtype)
    return scale, weight


def e2m1(packed):
    """[rows, 2 n] values of [rows, n] bytes that hold two E2M1 numbers each, the first in the lower four bits."""
    import torch

    table = torch.tensor([*E2M1, *(-value for value in E2M1)], device=packed.device)
    return table[torch.stack((packed & 0xF, packed >> 4), dim=-1).long()].flatten(1)


def rounded(x, args, scale=None, global_scale=None):
    """Activations [..., features] rounded to a number format and back, by compressed-tensors' definition, in x's type;
    dynamic integers with vLLM's own scale.

    args          QuantizationArgs of the activations
    scale         of a static format
    global_scale  of a format whose groups' scales are 8-bit numbers themselves: their common divisor
    """
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    zero_point = None
    # A scale per token is taken over all dimensions but the first two.
    values = x.reshape(1, -1, x.shape[-1]).float()
    if args.dynamic and (args.type, args.strategy) == ("int", "token"):
        # vLLM's kernels take the largest magnitude as 127; compressed-tensors' range is half a step wider.
        scale = values.abs().amax(-1, keepdim=True) / (2 ** (args.num_bits - 1) - 1)
    elif args.dynamic:
        scale, zero_point = compute_dynamic_scales_and_zp(values, args, None, global_scale)
    found = fake_quantize(values, scale, zero_point, args, global_scale=global_scale)
    return found.reshape(x.shape).to(x.dtype)
