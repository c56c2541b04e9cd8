"""Checkpoints that others quantized: held to their own claims, to the scheme and to the 16-bit model; named by the study."""

import copy
import json
import struct

import pytest
from quantbench import prequantized, schemes
from quantbench.errors import UserError
from quantbench.manifest import build_manifest
from quantbench.model_fit import quantized_layers
from quantbench.quantize import checkpoint
from quantbench.quantize.layouts import native_config
from quantbench.study import ROOT, load_study

SCHEMES = schemes.load_schemes(ROOT / "config" / "schemes")
READY_MADE = [name for name, scheme in SCHEMES.items() if scheme["toolkit"] == "prequantized"]
BASE = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 768,
    "vocab_size": 2048,
    "max_position_embeddings": 512,
}
ITEM_BYTES = {"I8": 1, "U8": 1, "F8_E4M3": 1, "I32": 4, "F32": 4, "BF16": 2, "F16": 2}


def described(scheme):
    """The quantization_config of an honest checkpoint of a scheme."""
    layout, weights = schemes.layout_of(scheme), scheme["format"]["weights"]
    if layout in ("gptq", "awq"):
        return native_config(layout, weights, scheme["ignore"])
    if layout == "fp8":
        return {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    return schemes.compressed_tensors_config(scheme["format"], scheme["targets"], scheme["ignore"])


def honest(name):
    """(scheme, config.json, tensors) of a checkpoint that is what it claims."""
    scheme = SCHEMES[name]
    found = {"lm_head.weight": {"dtype": "BF16", "shape": [2048, 256]}}
    for layer, (n, k) in quantized_layers(scheme, BASE).items():
        for part, (dtypes, shapes) in prequantized.expected_tensors(scheme, n, k).items():
            found[f"{layer}.{part}"] = {"dtype": dtypes[0], "shape": list(shapes[0])}
    return copy.deepcopy((scheme, {**BASE, "quantization_config": described(scheme)}, found))


@pytest.mark.parametrize("name", READY_MADE)
def test_an_honest_checkpoint_passes(name):
    scheme, config, found = honest(name)
    prequantized.check_claims(scheme, config, found, BASE)
    # down_proj, [256, 768]: 32-bit words of eight 4-bit numbers along the inputs, or along the outputs
    shapes = {part.rpartition(".")[2]: entry["shape"] for part, entry in found.items() if "down_proj" in part}
    if name == "prequantized-int4":
        assert shapes == {"weight_packed": [256, 96], "weight_scale": [256, 6]}
    if name == "prequantized-int4-gptq":
        assert shapes == {"qweight": [96, 256], "scales": [6, 256], "qzeros": [6, 32]}
    if name == "prequantized-int4-awq":
        assert shapes == {"qweight": [768, 32], "scales": [6, 256], "qzeros": [6, 32]}
    if name == "prequantized-fp8-block":
        assert shapes == {"weight": [256, 768], "weight_scale_inv": [2, 6]}
    if name == "prequantized-nvfp4":
        assert shapes == {"weight_packed": [256, 384], "weight_scale": [256, 48], "weight_global_scale": [1]}


def other_width(scheme, config, found):
    config["hidden_size"] = 512


def no_claim(scheme, config, found):
    del config["quantization_config"]


def other_method(scheme, config, found):
    config["quantization_config"]["quant_method"] = "bitsandbytes"


def other_layout(scheme, config, found):
    config["quantization_config"] = native_config("gptq", scheme["format"]["weights"], ["lm_head"])


def other_group(scheme, config, found):
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = 32


def other_inputs(scheme, config, found):
    config["quantization_config"]["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8, "type": "int"}


def two_formats(scheme, config, found):
    config["quantization_config"]["config_groups"]["group_1"] = {}


def not_quantized(scheme, config, found):
    for name in [name for name in found if name != "lm_head.weight"]:
        del found[name]
    found["model.layers.0.mlp.up_proj.weight"] = {"dtype": "BF16", "shape": [768, 256]}


def one_left(scheme, config, found):
    del found["model.layers.0.mlp.up_proj.weight_packed"], found["model.layers.0.mlp.up_proj.weight_scale"]


def one_missing(scheme, config, found):
    del found["model.layers.0.mlp.up_proj.weight_packed"]


def other_type(scheme, config, found):
    found["model.layers.0.mlp.up_proj.weight_packed"]["dtype"] = "I8"


def coarser_groups(scheme, config, found):
    found["model.layers.0.mlp.up_proj.weight_scale"]["shape"] = [768, 1]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (other_width, "checkpoint of another model: hidden_size is 512 in it, and 256 in the model"),
        (no_claim, "has no quantization_config"),
        (other_method, "has quant_method 'bitsandbytes'; valid are: awq, compressed-tensors, fp8, gptq"),
        (other_layout, "claims layout gptq, the scheme says compressed-tensors"),
        (other_group, "claims weights.group_size 32, the scheme says 128"),
        (other_inputs, "claims quantized input_activations, the scheme says they are 16-bit"),
        (two_formats, "has 2 formats"),
        (not_quantized, "holds no weight scale"),
        (one_left, "leaves model.layers.0.mlp.up_proj 16-bit"),
        (one_missing, "model.layers.0.mlp.up_proj.weight_packed is missing"),
        (other_type, r"up_proj.weight_packed is I8 \[768, 32\] instead of I32 \[768, 32\]"),
        (coarser_groups, r"up_proj.weight_scale is F16 \[768, 1\] instead of F16 \[768, 2\]"),
    ],
)
def test_a_checkpoint_that_is_not_what_it_claims_is_refused(spoil, words):
    scheme, config, found = honest("prequantized-int4")
    spoil(scheme, config, found)
    with pytest.raises(UserError, match=words):
        prequantized.check_claims(scheme, config, found, BASE)


# --- the study ------------------------------------------------------------------------------------------------------


def write_safetensors(path, found):
    header, begin = {}, 0
    for name, entry in found.items():
        size = ITEM_BYTES[entry["dtype"]]
        for length in entry["shape"]:
            size *= length
        header[name] = {**entry, "data_offsets": [begin, begin + size]}
        begin += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(begin))


@pytest.fixture
def config(tmp_path):
    _, ready_made, found = honest("prequantized-int4")
    for name, content in (("model", BASE), ("ready", ready_made)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(content))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    write_safetensors(tmp_path / "ready" / "model.safetensors", found)
    return {
        "study": "mine",
        "title": "Which?",
        "store": str(tmp_path / "store"),
        "models": [
            {
                "name": "small",
                "source": str(tmp_path / "model"),
                "prequantized": [{"scheme": "prequantized-int4", "source": str(tmp_path / "ready")}],
            }
        ],
        "schemes": ["bf16", "prequantized-int4"],
        "gpus": ["cpu"],
        "latency": {"batch_sizes": [1], "lengths": [{"input_tokens": 8, "output_tokens": 8}]},
    }


def test_the_study_says_which_checkpoint_stands_for_which_model(config, tmp_path):
    manifest = build_manifest(load_study(config))
    bf16, ready_made = manifest["checkpoints"]
    assert not ready_made["quantized"] and ready_made["key"] != bf16["key"]
    assert set(ready_made["identity"]["files"]) == {"config.json", "model.safetensors"}
    measured = {
        p["identity"]["checkpoint"] for p in manifest["points"] if p["scheme"] == "prequantized-int4" and p["model"]
    }
    assert measured == {ready_made["key"]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prequantized": []}, "prequantized.*empty"),
        (
            None,
            r"scheme 'prequantized-int4' needs the checkpoint that stands for it: - \{scheme: prequantized-int4, source",
        ),
        ({"prequantized": [{"scheme": "bf16", "source": "x"}]}, "'bf16' is made here"),
        (
            {"prequantized": [{"scheme": "prequantized-int", "source": "x"}]},
            "not among the study's schemes; did you mean",
        ),
        (
            {"prequantized": [{"scheme": "prequantized-int4", "source": "nowhere"}]},
            r"prequantized\[0\]: nowhere .*config.json",
        ),
    ],
)
def test_a_checkpoint_that_is_missing_or_too_many_is_refused(config, change, words):
    model = config["models"][0]
    del model["prequantized"]
    model |= change or {}
    with pytest.raises(UserError, match=words):
        load_study(config)


def test_a_false_claim_is_refused_before_anything_runs(config, tmp_path):
    path = tmp_path / "ready" / "config.json"
    path.write_text(path.read_text().replace('"group_size": 128', '"group_size": 64'))
    with pytest.raises(UserError, match=r"models\[0\].prequantized\[0\]: .*ready claims weights.group_size 64"):
        load_study(config)


def test_a_checkpoint_on_the_hub_is_staged_first(config):
    config["models"][0]["prequantized"][0]["source"] = "hf://org/quantized@main"
    assert load_study(config).unstaged == [("models", "small@prequantized-int4")]


def test_bits_of_a_checkpoint_made_elsewhere():
    _, _, found = honest("prequantized-int4")
    sized = {
        name: {**entry, "bytes": ITEM_BYTES[entry["dtype"]] * entry["shape"][0] * entry["shape"][1]}
        for name, entry in found.items()
    }
    layers = quantized_layers(SCHEMES["prequantized-int4"], BASE)
    # 4 bits and a 16-bit scale per 128
    assert checkpoint.bits_per_weight(sized, layers) == 4.125
