"""How far each quantized layer is from the 16-bit layer that it stands for: its weights, and its outputs on given texts.

Signal-to-quantization-noise ratios in dB, 10 log10(sum of squares / sum of squared errors), of layer y = W x in the 16-bit
model and y' = r (W' Q(x c)) in the checkpoint:

    weights   of W against r W' c: what rounding to the nearest makes least
    outputs   of y against y', x being what the 16-bit model's layer sees: what GPTQ and AWQ make least

W' is the dequantized weight and Q rounds the inputs as the scheme does (not at all where it is weight-only). A recipe that
smooths (SmoothQuant, AWQ) multiplies inputs by c and outputs by 1/r and gives that back to neighbours: c is what the norm
before the layer was changed by, or 1/r of the layer before it; r is fitted to W, row by row, by least squares. Each layer is
measured alone, on inputs without the other layers' errors. Sums are in float64, products in float32.

The 16-bit model lies in host memory, as it does to be quantized; the checkpoint is read layer by layer. On a machine with an
accelerator one decoder block at a time is on it.
"""

import numpy as np
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
from safetensors import safe_open

from quantbench.quantize import checkpoint, layouts
from quantbench.schemes import QUANTIZING, format_name, layout_of, modifier_names

# A ratio of sums over thousands of tokens is steady to a tenth of a dB; more would be the calibration's cost once more.
ROWS, TOKENS = 16, 512
# What smoothing takes a layer's inputs from, in a Llama-like block: the norm before it, or the layer whose outputs they are.
NORM_BEFORE = dict.fromkeys(("q_proj", "k_proj", "v_proj"), "input_layernorm")
NORM_BEFORE |= dict.fromkeys(("gate_proj", "up_proj"), "post_attention_layernorm")
LAYER_BEFORE = {"o_proj": "v_proj", "down_proj": "up_proj"}


class NotComparable(Exception):
    """The checkpoint cannot be held against the model, for the reason that the message gives."""


def layer_errors(model, folder, recipe, rows=None):
    """[{"layer", "n", "k", "weight_sqnr_db", "output_sqnr_db", "tokens"}] of each quantized layer, in the model's order.

    model    the 16-bit model; its blocks are moved to the accelerator and back
    folder   the checkpoint; recipe: what it was made by
    rows     token ids of the texts, at least one to a row; None: weights alone, and no outputs
    A ratio is None where there is no error or no signal; outputs also where no token reached the layer.
    Raises NotComparable.
    """
    saved = Saved(folder, recipe)
    modules = dict(model.named_modules())
    layers = [name for name in modules if name in saved.layers]
    if len(layers) < len(saved.layers):
        unknown = ", ".join(sorted(saved.layers - modules.keys())[:3])
        raise NotComparable(f"the checkpoint names its layers otherwise than the model: {unknown}")
    sums = {name: {"signal": 0.0, "noise": 0.0, "tokens": 0} for name in layers}
    with torch.no_grad():
        weights = {} if rows else {name: _weight_error(modules, saved, name) for name in layers}
        if rows:
            _run(model, modules, saved, rows, sums, weights)
    found = []
    for name in layers:
        n, k = modules[name].weight.shape
        # No token reached it: the weights have to be looked at by themselves.
        weight = weights.get(name) or _weight_error(modules, saved, name)
        total = sums[name]
        ratios = {"weight_sqnr_db": decibels(*weight), "output_sqnr_db": decibels(total["signal"], total["noise"])}
        found.append({"layer": name, "n": n, "k": k, **ratios, "tokens": total["tokens"] if rows else None})
    return found


def decibels(signal, noise):
    """10 log10(signal / noise); None where either is zero. 100 to 1 are 20 dB."""
    return 10 * float(np.log10(signal / noise)) if signal > 0 and noise > 0 else None


class Saved:
    """A checkpoint's tensors, layer by layer, and what its recipe makes of them."""

    def __init__(self, folder, recipe):
        self.recipe = recipe
        self.smoothed = any(name not in QUANTIZING for name in modifier_names(recipe))
        found = checkpoint.tensors(folder)
        self.layers = checkpoint.quantized_layers(found)
        self._files = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)

    def tensors(self, module):
        """{name within the module: tensor}"""
        names = [name for name in self._files if name.rpartition(".")[0] == module]
        found = {}
        for name in names:
            with safe_open(self._files[name], framework="pt") as file:
                found[name.rpartition(".")[2]] = file.get_tensor(name)
        return found

    def weight(self, layer):
        """The dequantized weight [n, k], float32; of a layer that was left alone, its own."""
        state = self.tensors(layer)
        if layer not in self.layers:
            return state["weight"].float()
        if layout_of(self.recipe) != "compressed-tensors":
            return torch.from_numpy(_native_weight(state, self.recipe))
        # Scales in the model's 16-bit type; FP8 and power-of-two scales keep theirs, which says what they are.
        wide = {n: t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for n, t in state.items()}
        format_ = self.recipe["format"]
        scheme = QuantizationScheme(
            targets=[], **{side: args and QuantizationArgs(**args) for side, args in format_.items()}
        )
        return BaseCompressor.get_value_from_registry(format_name(format_)).decompress(wide, scheme)["weight"].float()

    def rounded_inputs(self, layer, x):
        """Inputs [tokens, k] as the scheme rounds them."""
        if not self.recipe["format"]["input_activations"]:
            return x
        arguments = QuantizationArgs(**self.recipe["format"]["input_activations"])
        state = {n: t.float().to(x.device) for n, t in self.tensors(layer).items() if n.startswith("input_")}
        whole = state.get("input_global_scale")
        # The toolkit takes tokens for the second of three dimensions.
        x = x[None]
        if arguments.dynamic:
            scale, zero = compute_dynamic_scales_and_zp(x, arguments, None, global_scale=whole)
        else:
            scale, zero = state["input_scale"], state.get("input_zero_point")
        return fake_quantize(x, scale, zero, arguments, global_scale=whole)[0].float()


def _native_weight(state, recipe):
    """[n, k] float32 of a layer in the layout of GPTQ or AWQ, by layouts.py's description of them."""
    weights, awq = recipe["format"]["weights"], layout_of(recipe) == "awq"
    bits, scales = weights["num_bits"], state["scales"].float().numpy()
    order = np.argsort(layouts.AWQ_ORDER) if awq else None
    packed = state["qweight"].numpy()
    values = _unpacked(packed, bits, order) if awq else layouts.unpack(np.ascontiguousarray(packed.T), bits).T
    zeros = _unpacked(state["qzeros"].numpy(), bits, order).astype(np.float32) + (0 if awq else 1)
    groups = np.arange(values.shape[0]) // weights["group_size"]
    return np.ascontiguousarray(((values - zeros[groups]) * scales[groups]).T)


def _unpacked(packed, bits, order):
    values = layouts.unpack(np.ascontiguousarray(packed), bits)
    return values if order is None else values.reshape(*values.shape[:-1], -1, 8)[..., order].reshape(values.shape)


# --- what smoothing did -------------------------------------------------------------------------------------------------


def _around(layer, name):
    """The module called `name` in the block that a layer is in: o_proj's v_proj beside it, q_proj's norm one level up."""
    parent = layer.rpartition(".")[0]
    return f"{parent}.{name}" if name.endswith("proj") else f"{parent.rpartition('.')[0]}.{name}"


def _input_factors(modules, saved, layer):
    """c [k], by which the checkpoint multiplies a layer's inputs; 1.0 where nothing does."""
    kind = layer.rpartition(".")[2]
    if not saved.smoothed:
        return 1.0
    if kind in LAYER_BEFORE:
        before = _around(layer, LAYER_BEFORE[kind])
        same = before in modules and modules[before].weight.shape[0] == modules[layer].weight.shape[1]
        # With grouped queries several heads share v_proj's outputs, and the toolkit leaves them as they are.
        return 1 / _output_factors(modules, saved, before) if same else 1.0
    if kind not in NORM_BEFORE:
        return 1.0
    norm = _around(layer, NORM_BEFORE[kind])
    made = saved.tensors(norm)
    if norm not in modules or not made:
        raise NotComparable(f"the recipe rescales the inputs of {layer}, and {norm} is not there to say by how much")
    # What the norm makes of the same input: some multiply by their weight, some by one more than it.
    signs = 1.0 - 2.0 * (torch.arange(modules[layer].weight.shape[1]) % 2)
    before, after = (_norm(modules[norm], tensors, signs) for tensors in (dict(modules[norm].named_parameters()), made))
    return torch.where(before != 0, after / before, 1.0)


def _norm(module, tensors, x):
    return torch.func.functional_call(module, {name: t.float().cpu() for name, t in tensors.items()}, (x,))


def _output_factors(modules, saved, layer):
    """r [n], by which a layer's outputs were divided; 1.0 where they were not."""
    if not saved.smoothed or layer.rpartition(".")[2] not in LAYER_BEFORE.values():
        return 1.0
    own = modules[layer].weight.float().cpu()
    made = saved.weight(layer) * _input_factors(modules, saved, layer)
    power = made.square().sum(1)
    return torch.where(power > 0, (own * made).sum(1) / power, 1.0)


# --- the errors ---------------------------------------------------------------------------------------------------------


def _weight_error(modules, saved, layer):
    """(sum of squares, sum of squared errors) of a layer's weight."""
    return _of_weight(modules[layer].weight, *_parts(modules, saved, layer))


def _parts(modules, saved, layer):
    """(W', c, r) on the device where the layer's own weight is."""
    device = modules[layer].weight.device
    found = saved.weight(layer), _input_factors(modules, saved, layer), _output_factors(modules, saved, layer)
    return [part.to(device) if isinstance(part, torch.Tensor) else part for part in found]


def _of_weight(own, made, c, r):
    same = made * c * (r[:, None] if isinstance(r, torch.Tensor) else r)
    return _power(own.float()), _power(own.float() - same)


def _power(values):
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def _run(model, modules, saved, rows, sums, weights):
    """One pass of all rows through the decoder; each quantized layer adds to `sums`, and its weight's error to `weights`."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    # What follows a row changes nothing before it, since attention only looks back: it is left out of the sums.
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=device)
    inside = torch.tensor([[i < len(row) for i in range(length)] for row in rows], device=device).flatten()

    def compare(layer, inputs):
        # An expert, say, sees some tokens only, in an order of its own.
        x = inputs.reshape(-1, inputs.shape[-1])
        x = (x[inside.to(x.device)] if len(x) == len(inside) else x).float()
        own, (made, c, r) = modules[layer].weight, _parts(modules, saved, layer)
        y = x @ own.float().T
        other = (saved.rounded_inputs(layer, x * c) @ made.T) * r
        total = sums[layer]
        total["signal"] += _power(y)
        total["noise"] += _power(y - other)
        total["tokens"] += len(x)
        weights[layer] = _of_weight(own, made, c, r)

    decoder, head = model.base_model, model.get_output_embeddings()
    hooks = _moved(decoder, device)
    for layer in sums:
        if modules[layer] is not head:
            hooks.append(
                modules[layer].register_forward_pre_hook(lambda _, given, layer=layer: compare(layer, given[0]))
            )
    try:
        last = decoder(input_ids=ids, use_cache=False).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
        decoder.to("cpu")
    for layer in sums:
        if modules[layer] is head:
            compare(layer, last.cpu())


def _moved(decoder, device):
    """Hooks that keep one block at a time on a device; whatever is no list of blocks is moved there at once."""

    def bring(block, _):
        block.to(device)

    def take_back(block, *_):
        block.to("cpu")

    hooks = []
    for part in decoder.children():
        if not isinstance(part, torch.nn.ModuleList):
            part.to(device)
            continue
        for block in part:
            hooks += [block.register_forward_pre_hook(bring), block.register_forward_hook(take_back)]
    return hooks
