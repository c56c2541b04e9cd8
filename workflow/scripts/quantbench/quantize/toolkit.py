"""Quantize one model with llm-compressor: load, check, run the recipe, save.

The checks are the ones the toolkit does not make: it accepts NaN, targets that match nothing, and an unignored lm_head
without a word, and fails on a model that is quantized already with an AttributeError.
"""

import importlib
import json
from pathlib import Path

import torch
from llmcompressor import oneshot
from llmcompressor.pipelines.cache import IntermediatesCache
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from quantbench.errors import UserError
from quantbench.model_fit import check_patterns, names_layer
from quantbench.quantize.calibration import calibration_tokens, described, token_rows
from quantbench.schemes import QUANTIZING, compressed_tensors_config

MODULES = {
    "QuantizationModifier": "llmcompressor.modifiers.quantization",
    "GPTQModifier": "llmcompressor.modifiers.gptq",
    "AWQModifier": "llmcompressor.modifiers.transform.awq",
    "SmoothQuantModifier": "llmcompressor.modifiers.transform.smoothquant",
}


def quantize(model_path, recipe, calibration, texts, folder):
    """Write the checkpoint into `folder`; returns {"parameters", "device", "shapes", "rows"}.

    recipe: the checkpoint identity's; calibration: its calibration or None; texts: what calibration_texts gave, or None.
    shapes: {layer name: (output features, input features)} of the layers quantized; rows: what calibration.described says
    of the calibration rows, or None.
    """
    # Seeded although nothing here draws at random today; calibration rows come in our order, not the toolkit's.
    torch.manual_seed(calibration["seed"] if calibration else 0)
    if not torch.accelerator.is_available():
        # AWQ pins memory so that copies to an accelerator overlap; without one, pinning itself raises an error.
        IntermediatesCache.pin_memory = lambda self, batch_index, input_names=None: None

    model = load_model(model_path)
    shapes = layers_to_quantize(model, recipe["targets"], recipe["ignore"])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tokenizer = load_tokenizer(model_path)
    rows = None if texts is None else tokens_of(texts, tokenizer, model, calibration["max_tokens"])

    oneshot(
        model=model,
        processor=tokenizer,
        recipe=modifiers(recipe),
        dataset=batches(rows) if rows else None,
        num_calibration_samples=len(rows or []),
        shuffle_calibration_samples=False,
        trust_remote_code_model=remote_code_allowed(model_path),
    )
    model.generation_config = GenerationConfig()
    model.save_pretrained(folder, save_compressed=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"parameters": parameters, "device": device, "shapes": shapes, "rows": rows and described(rows)}


def load_tokenizer(path):
    return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=remote_code_allowed(path))


def tokens_of(texts, tokenizer, model, max_tokens):
    """Token ids of calibration texts, cut to `max_tokens`; UserError where they are not the model's."""
    vocabulary = model.get_input_embeddings().num_embeddings
    return calibration_tokens(token_rows(texts, tokenizer), max_tokens, vocabulary)


def remote_code_allowed(path):
    """Whether the study said so of this model: staging has then brought its code along, and its identity says it."""
    record = Path(path) / "quantbench.json"
    return record.exists() and json.loads(record.read_text())["identity"].get("code", False)


def load_model(path, device_map=None):
    """The model in its own number type, from safetensors alone; UserError for missing, infinite or NaN weights.

    device_map  transformers' way to place it, such as "auto"; None: in host memory
    """
    model, report = AutoModelForCausalLM.from_pretrained(
        path,
        dtype="auto",
        local_files_only=True,
        trust_remote_code=remote_code_allowed(path),
        use_safetensors=True,
        output_loading_info=True,
        device_map=device_map,
    )
    if report["missing_keys"]:
        raise UserError(f"{path}: the weights lack {', '.join(sorted(report['missing_keys'])[:5])}")
    for name, parameter in model.named_parameters():
        if not parameter.is_meta and not torch.isfinite(parameter).all():
            raise UserError(f"{path}: {name} holds NaN or infinity, so no scheme can quantize this model")
    return model.eval()


def layers_to_quantize(model, targets, ignore):
    """{layer name: (output features, input features)} that targets and ignore leave, checked against a slip in them."""
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    check_patterns(targets, ignore, linear)
    chosen = {
        name: tuple(module.weight.shape)
        for name, module in linear.items()
        if names_layer(name, targets) and not names_layer(name, ignore)
    }
    if not chosen:
        some = ", ".join(list(linear)[:8])
        raise UserError(f"targets {targets} without ignore {ignore} leave no layer; the model has {some}, ...")
    head = model.get_output_embeddings()
    meant = [target for target in targets if target != "Linear"]
    for name, module in linear.items():
        if module is head and name in chosen and not names_layer(name, meant):
            raise UserError(f"{name} would be quantized too: put it into ignore, or name it in targets if it is meant")
    return chosen


def modifiers(recipe):
    """llm-compressor's modifier objects; the one that quantizes gets the format, the targets and what to ignore."""
    config = compressed_tensors_config(recipe["format"], recipe["targets"], recipe["ignore"])
    weights, inputs = recipe["format"]["weights"], recipe["format"]["input_activations"]
    for group in config["config_groups"].values():
        # The toolkit infers it, but for 4-bit weights with 8-bit inputs: those vLLM reads packed, the toolkit stores bytes.
        if not (inputs and weights["type"] == "int" and weights["num_bits"] == 4):
            group.pop("format")
    made = []
    for modifier in recipe["modifiers"]:
        ((name, arguments),) = modifier.items()
        if name in QUANTIZING:
            arguments = {**arguments, "config_groups": config["config_groups"], "ignore": config["ignore"]}
            if recipe.get("kv_cache"):
                arguments["kv_cache_scheme"] = recipe["kv_cache"]
        made.append(getattr(importlib.import_module(MODULES[name]), name)(**arguments))
    return made


def batches(rows):
    """A loader of one row at a time in the given order, which the toolkit takes as it is."""
    inputs = [torch.tensor([row]) for row in rows]
    examples = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in inputs]
    return torch.utils.data.DataLoader(examples, batch_size=None)


def peak_device_memory_bytes():
    """The most memory torch held on the GPU at once, or None without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
