"""Dummy weights: the speed of an architecture from its config.json alone, in any scheme.

vLLM makes the layers that config.json and a quantization config describe, and fills them with random numbers
(--load-format dummy, vllm/model_executor/model_loader/dummy_loader.py). What a kernel is, and how long it takes, hangs on
shapes and formats; what it answers means nothing, so no stage about quality is measured. A variant has no checkpoint of its
own: its format is laid over the model's config.json as the engine argument `hf_overrides`. Pure, but for write_tokenizer.
"""

import json
from pathlib import Path

from quantbench.errors import UserError
from quantbench.schemes import NATIVE_LAYOUTS, compressed_tensors_config, layout_of, recipe_identity

WEIGHTS = "dummy"
NOT_MEASURED = "not measured: dummy weights"
# Stages that say something about answers.
QUALITY = ("accuracy", "perplexity", "reference", "fidelity")


def is_dummy(entry):
    """Whether a model's entry, or a variant's in the manifest, has dummy weights."""
    return entry.get("weights") == WEIGHTS


def checkpoint_identity(model_key, scheme):
    """Identity of what a variant's engine loads: nothing but a model's config.json and the scheme's recipe."""
    return {"artefact": "checkpoint", "model": model_key, "recipe": recipe_identity(scheme), "weights": WEIGHTS}


def engine_arguments(scheme):
    """vLLM's engine arguments that make a variant of dummy weights from the model's folder."""
    found = quantization_config(scheme)
    overrides = {"quantization_config": found} if found else {}
    overrides |= scheme["engine_args"].get("hf_overrides", {})
    return {"load_format": "dummy", **({"hf_overrides": overrides} if overrides else {})}


def quantization_config(scheme):
    """The `quantization_config` that a checkpoint of the scheme would carry; None where it has no format of its own."""
    if scheme["format"] is None:
        return None
    layout, weights = layout_of(scheme), scheme["format"]["weights"]
    if layout == "fp8":
        # As DeepSeek's checkpoints have it, which vLLM's Fp8Config reads.
        blocks = {"weight_block_size": weights["block_structure"], "ignored_layers": scheme["ignore"]}
        return {"quant_method": "fp8", "activation_scheme": "dynamic", **blocks}
    if layout in NATIVE_LAYOUTS:
        # Here, since it imports numpy: who plans a study without such a scheme need not wait for that.
        from quantbench.quantize.layouts import native_config

        return native_config(layout, weights, scheme["ignore"])
    return compressed_tensors_config(scheme["format"], scheme["targets"], scheme["ignore"], scheme.get("kv_cache"))


def without_quality(points, asked, label):
    """(points, skips) of a variant with dummy weights: without its points about quality, and a skip for each stage asked.

    asked  the stages that the study asks for; label: {"gpu", "model", "scheme"} of the variant
    """
    skips = [{"stage": stage, **label, "reason": NOT_MEASURED} for stage in asked if stage in QUALITY]
    return [point for point in points if point["stage"] not in QUALITY], skips


def vocabulary_size(config):
    """Number of token ids, from a config.json. Raises UserError where it does not say."""
    size = (config.get("text_config") or config).get("vocab_size") or config.get("vocab_size")
    if not size:
        raise UserError("config.json has no vocab_size, which prompts for dummy weights are drawn from")
    return size


def write_tokenizer(folder):
    """Put a made-up tokenizer beside a config.json: one word per id, since an engine turns what it generates into text."""
    size = vocabulary_size(json.loads((Path(folder) / "config.json").read_text()))
    words = {f"t{number}": number for number in range(size)}
    made = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"}}
    made |= dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    made["model"] = {"type": "WordLevel", "vocab": words, "unk_token": "t0"}
    (Path(folder) / "tokenizer.json").write_text(json.dumps(made))
    (Path(folder) / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
