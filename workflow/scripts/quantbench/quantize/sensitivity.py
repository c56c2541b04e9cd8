"""One part of a model as a scheme's checkpoint has it, all else in 16 bits: what that does to next-token distributions.

The parts are sensitivity.parts. Weights are the checkpoint's, dequantized by compressed-tensors; inputs of a quantized layer
are rounded as the scheme rounds them, by compressed-tensors' own quantize and dequantize, and then multiplied in the model's
own number type: the scheme's numbers, without its kernels. The KV cache is left alone.
"""

import contextlib
import json
from pathlib import Path

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme, QuantizationStatus
from compressed_tensors.quantization.lifecycle.forward import forward_quantize
from safetensors import safe_open

from quantbench.errors import UserError
from quantbench.quantize.checkpoint import WEIGHT_SCALES

# What tells a quantized layer how to round its inputs.
INPUT_TENSORS = ("input_scale", "input_zero_point", "input_global_scale")


class Checkpoint:
    """A quantized checkpoint in compressed-tensors layout, read tensor by tensor.

    device  where its numbers are unpacked: on a CPU that takes seconds for a large layer
    """

    def __init__(self, folder, device="cpu"):
        self.device = device
        config = json.loads((Path(folder) / "config.json").read_text())["quantization_config"]
        (group,) = config["config_groups"].values()
        self.scheme = QuantizationScheme.model_validate(group)
        # Of several groups the whole would be "mixed-precision"; the one that there is says its own.
        self.compressor = BaseCompressor.get_value_from_registry(group.get("format") or config["format"])
        self.modules = {}
        for path in sorted(Path(folder).glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    module, _, tensor = name.rpartition(".")
                    self.modules.setdefault(module, {})[tensor] = path

    def is_quantized(self, module):
        return any(name in self.modules[module] for name in WEIGHT_SCALES)

    def tensors(self, module):
        """{local name: tensor} of a module, its weights dequantized."""
        found = {}
        for name, path in self.modules[module].items():
            with safe_open(path, framework="pt") as file:
                found[name] = file.get_tensor(f"{module}.{name}").to(self.device)
        return self.compressor.decompress(found, self.scheme) if self.is_quantized(module) else found


class Scan:
    """A 16-bit model, and the distributions that it expects on some documents.

    model      transformers' model on its device, its head in 32 bits (exact_head)
    documents  token ids of each, at least two
    """

    def __init__(self, model, documents):
        self.model = model
        self.documents = [torch.tensor([ids], device=model.device) for ids in documents]
        # In host memory: as many numbers as the vocabulary has, per token.
        self.expected = [self._logs(ids).cpu() for ids in self.documents]

    def rows(self, checkpoint, part):
        """Rows of table `sensitivity` with one part (of sensitivity.parts) quantized, one per document."""
        rows = []
        with quantized(self.model, checkpoint, part):
            for number, (ids, expected) in enumerate(zip(self.documents, self.expected, strict=True)):
                found = self._logs(ids)
                rows.append({"document": number, **compared(expected.to(found.device), found, ids[0, 1:])})
        return rows

    @torch.inference_mode()
    def _logs(self, ids):
        """[tokens - 1, vocabulary] log-probabilities of what follows each token."""
        return self.model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(dim=-1)


def compared(expected, found, following):
    """One document's numbers, summed over its tokens.

    expected, found  [tokens, vocabulary] log-probabilities, of the 16-bit model and of the one with a part quantized
    following        [tokens] ids of the tokens that do follow
    """
    places = following.to(found.device)[:, None]
    kl = (expected.exp() * (expected - found)).sum(dim=-1, dtype=torch.float64)
    return {
        "tokens": len(following),
        "negative_log_likelihood": -found.gather(1, places).double().sum().item(),
        "baseline_negative_log_likelihood": -expected.gather(1, places).double().sum().item(),
        # A divergence is never negative, its 32-bit sum may be, by 1e-7.
        "kl_divergence": kl.clamp(min=0).sum().item(),
        "top1_agreement": int((expected.argmax(dim=-1) == found.argmax(dim=-1)).sum()),
    }


def exact_head(model):
    """Give the output head 32-bit weights and inputs, in place: logits in 16 bits differ by more than one layer's rounding.

    A head that shares its weights with the embedding gets its own.
    """
    head = model.get_output_embeddings()
    for name, parameter in list(head.named_parameters(recurse=False)):
        setattr(head, name, torch.nn.Parameter(parameter.detach().float(), requires_grad=False))
    head.register_forward_pre_hook(lambda module, inputs: (inputs[0].float(), *inputs[1:]))
    return model


@contextlib.contextmanager
def quantized(model, checkpoint, part):
    """Within the block the part's modules hold the checkpoint's numbers, and its quantized layers round their inputs.

    Raises RuntimeError where the checkpoint quantizes other layers of these modules than the part names.
    """
    names = [name for name in checkpoint.modules if _below(name, part["modules"])]
    layers = [name for name in names if checkpoint.is_quantized(name)]
    if sorted(layers) != sorted(part["layers"]):
        wrong = ", ".join(sorted(set(layers) ^ set(part["layers"]))[:5])
        raise RuntimeError(f"the checkpoint quantizes other layers than the scheme names: {wrong}")
    own, kept, hooks = dict(model.named_parameters()), [], []
    try:
        for name in names:
            tensors = checkpoint.tensors(name)
            for local, tensor in tensors.items():
                # Scales of a KV cache, and what a layer's inputs need, are no parameter of the model.
                parameter = own.get(f"{name}.{local}")
                if parameter is not None:
                    kept.append((parameter, parameter.data))
                    parameter.data = tensor.to(parameter.device, parameter.dtype)
            if name in layers and checkpoint.scheme.input_activations:
                hooks.append(_round_inputs(model.get_submodule(name), tensors, checkpoint.scheme.input_activations))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, data in kept:
            parameter.data = data


def _below(name, modules):
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _round_inputs(module, tensors, arguments):
    """A hook that rounds what goes into a layer."""
    scales = torch.nn.Module()
    scales.quantization_status = QuantizationStatus.FROZEN
    for name in INPUT_TENSORS:
        if name in tensors:
            scales.register_buffer(name, tensors[name].to(module.weight.device))

    def rounded(_, inputs):
        return (forward_quantize(scales, inputs[0], "input", arguments).to(inputs[0].dtype), *inputs[1:])

    return module.register_forward_pre_hook(rounded)


def check_rest(model, checkpoint, parts):
    """Raise UserError where the recipe has changed more than its parts: alone, they would be another function."""
    own = dict(model.named_parameters())
    covered = [module for part in parts.values() for module in part["modules"]]
    for name in checkpoint.modules:
        if _below(name, covered) or checkpoint.is_quantized(name):
            continue
        for local, tensor in checkpoint.tensors(name).items():
            parameter = own.get(f"{name}.{local}")
            if parameter is not None and not torch.equal(tensor.to(parameter.device, parameter.dtype), parameter):
                raise UserError(
                    f"the recipe has changed {name}.{local} besides the layers that it quantizes, so no part of this "
                    "model can be quantized alone; try `per: block`"
                )
