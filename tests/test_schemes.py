"""The schemes that come along, what is refused in a scheme, and what is refused for a model."""

import json

import jsonschema
import pytest
import yaml
from quantbench import schemes
from quantbench.errors import UserError

FOLDER = schemes.SCHEMA.parents[2] / "config" / "schemes"

# The tiny model: hidden 256, 4 heads of 64, 2 KV heads, MLP 768.
TINY = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 768,
    "vocab_size": 2048,
}


@pytest.fixture(scope="module")
def shipped():
    return schemes.load_schemes(FOLDER)


def load(tmp_path, scheme, name="mine"):
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(scheme))
    return schemes.load_schemes(tmp_path)[name]


def test_the_schemes_that_come_along(shipped):
    assert {name: scheme["computes"] for name, scheme in shipped.items()} == {
        "bf16": "bf16",
        "int8-smoothquant": "w8a8-int8",
        "rtn-int4": "w4a16",
        "gptq-int4": "w4a16",
        "awq-int4": "w4a16",
        "fp8-block": "w8a8-fp8",
        "nvfp4": "w4a4-fp4",
        "int8-online": "w8a16-int8",
    }


def test_all_but_data_free_rounding_is_calibrated(shipped):
    assert {name for name, scheme in shipped.items() if scheme["calibrated"]} == {
        "int8-smoothquant", "gptq-int4", "awq-int4", "nvfp4",
    }  # fmt: skip


def test_the_schema_is_closed_and_describes_every_key():
    schema = json.loads(schemes.SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    seen = []

    def walk(node):
        for name, key in node.get("properties", {}).items():
            assert key.get("description"), name
            seen.append(name)
        if "properties" in node:
            assert node["additionalProperties"] is False
        for child in node.values():
            if isinstance(child, dict):
                walk(child)

    walk(schema)
    assert {"smoothing_strength", "group_size", "computes"} <= set(seen)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modifers": []}, ["mine.yaml", "unknown key 'modifers'", "did you mean 'modifiers'?"]),
        ({"zzz": 1}, ["unknown key 'zzz'", "valid are: calibrated, computes"]),
        ({"toolkit": "llm-compressor"}, ["toolkit is 'llm-compressor'", "did you mean 'llmcompressor'?"]),
        ({"modifiers": [{"GPTQModifer": {}}]}, ["'GPTQModifer' in modifiers.0", "did you mean 'GPTQModifier'?"]),
        ({"modifiers": [{"GPTQModifier": {"blocksize": 1}}]}, ["modifiers.0.GPTQModifier", "mean 'block_size'?"]),
        ({"modifiers": [{"AWQModifier": {}}]}, ["modifiers must end with", "QuantizationModifier or GPTQModifier"]),
        ({"modifiers": [{"GPTQModifier": {}}, {"QuantizationModifier": {}}]}, ["have no other of these"]),
        ({"modifiers": []}, ["modifiers must end with"]),
        ({"calibrated": False}, ["calibrated must be true"]),
        ({"computes": "w8a8-int8"}, ["computes is w8a8-int8", "promises w4a16"]),
        ({"targets": []}, ["targets is empty"]),
        ({"format": None}, ["format must say"]),
        ({"toolkit": "none"}, ["modifiers must be [] when toolkit is none"]),
        ({"engine_args": {"quantisation": "fp8"}}, ["engine_args", "did you mean 'quantization'?"]),
    ],
)
def test_a_slip_is_refused_in_words(shipped, tmp_path, change, words):
    with pytest.raises(UserError) as error:
        load(tmp_path, {**shipped["gptq-int4"], **change})
    for word in words:
        assert word in str(error.value)


def test_a_missing_key_is_named(shipped, tmp_path):
    scheme = dict(shipped["gptq-int4"])
    del scheme["ignore"]
    with pytest.raises(UserError, match="key 'ignore' is missing"):
        load(tmp_path, scheme)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"strategy": "channel"}, "group_size has no meaning in format.weights with strategy channel"),
        ({"group_size": None}, "format.weights.group_size"),
        ({"num_bits": 3}, "format.weights.num_bits is 3; valid are: 4, 8"),
    ],
)
def test_contradicting_weights_are_refused(shipped, tmp_path, weights, words):
    scheme = shipped["gptq-int4"]
    scheme = {**scheme, "format": {**scheme["format"], "weights": {**scheme["format"]["weights"], **weights}}}
    with pytest.raises(UserError, match=words):
        load(tmp_path, scheme)


def test_a_group_without_a_size_is_refused(shipped, tmp_path):
    scheme = json.loads(json.dumps(shipped["gptq-int4"]))
    del scheme["format"]["weights"]["group_size"]
    with pytest.raises(UserError, match="group_size is missing from format.weights with strategy group"):
        load(tmp_path, scheme)


def test_a_name_that_is_no_slug_is_refused(shipped, tmp_path):
    with pytest.raises(UserError, match="lower-case"):
        load(tmp_path, shipped["bf16"], name="BF_16")


def test_broken_yaml_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no scheme"):
        schemes.load_schemes(tmp_path)
    (tmp_path / "mine.yaml").write_text("a: [")
    with pytest.raises(UserError, match="mine.yaml: not valid YAML"):
        schemes.load_schemes(tmp_path)


def test_what_does_not_change_the_bytes_is_not_in_the_identity(shipped):
    scheme = shipped["gptq-int4"]
    reworded = {**scheme, "description": "Other words.", "engine_args": {"linear_backend": "marlin"}}
    assert schemes.recipe_identity(reworded) == schemes.recipe_identity(scheme)
    assert schemes.recipe_identity(shipped["rtn-int4"]) != schemes.recipe_identity(scheme)


# --- compressed-tensors ---------------------------------------------------------------------------------------------


def test_format_names(shipped):
    names = {name: schemes.format_name(scheme["format"]) for name, scheme in shipped.items() if scheme["format"]}
    assert names == {
        "int8-smoothquant": "int-quantized",
        "rtn-int4": "pack-quantized",
        "gptq-int4": "pack-quantized",
        "awq-int4": "pack-quantized",
        "fp8-block": "float-quantized",
        "nvfp4": "nvfp4-pack-quantized",
    }


def test_compressed_tensors_config_is_a_copy(shipped):
    scheme = shipped["gptq-int4"]
    config = schemes.compressed_tensors_config(scheme["format"], scheme["targets"], scheme["ignore"])
    assert config["config_groups"]["group_0"]["weights"] == scheme["format"]["weights"]
    assert config["config_groups"]["group_0"]["targets"] == ["Linear"] and config["ignore"] == ["lm_head"]
    config["config_groups"]["group_0"]["weights"]["num_bits"] = 2
    assert scheme["format"]["weights"]["num_bits"] == 4


# --- fitting a model ------------------------------------------------------------------------------------------------


def test_shapes_of_grouped_query_attention():
    layers = schemes.linear_layers(TINY)
    # 4 heads of 256 / 4 = 64 give 256 outputs, 2 KV heads 128
    assert layers["model.layers.3.self_attn.q_proj"] == (256, 256)
    assert layers["model.layers.3.self_attn.v_proj"] == (128, 256)
    assert layers["model.layers.0.mlp.down_proj"] == (256, 768)
    assert layers["lm_head"] == (2048, 256)
    assert len(layers) == 4 * 7 + 1


def test_a_head_size_of_its_own_decides():
    # as in Qwen3: 4 heads of 128 give 512 although hidden is 256
    assert schemes.linear_layers({**TINY, "head_dim": 128})["model.layers.0.self_attn.o_proj"] == (256, 512)


def test_every_scheme_fits_the_tiny_model(shipped):
    for scheme in shipped.values():
        schemes.check_scheme_fits(scheme, TINY)


def test_a_group_that_does_not_divide_is_refused_with_those_that_do(shipped):
    # 704 = 64 * 11, and 256 = 64 * 4: 64 divides all, 128 not 704
    with pytest.raises(UserError) as error:
        schemes.check_scheme_fits(shipped["gptq-int4"], {**TINY, "intermediate_size": 704})
    assert "group_size 128 does not divide mlp.down_proj (704 input features)" in str(error.value)
    assert "16, 32, 64;" in str(error.value) and "gate_proj" not in str(error.value)


def test_an_ignored_layer_need_not_fit(shipped):
    scheme = {**shipped["gptq-int4"], "ignore": ["lm_head", r"re:.*\.down_proj$"]}
    schemes.check_scheme_fits(scheme, {**TINY, "intermediate_size": 704})


def test_blocks_have_to_end_inside_a_fused_layer_only(shipped):
    # k_proj of one KV head of 64 ends in the middle of a block of 128, and v_proj follows it in the fused layer
    with pytest.raises(UserError, match=r"block_structure 128 does not divide self_attn.k_proj \(64 output features\)"):
        schemes.check_scheme_fits(shipped["fp8-block"], {**TINY, "num_key_value_heads": 1})
    schemes.check_scheme_fits(shipped["fp8-block"], {**TINY, "num_key_value_heads": 4})


def test_activation_groups_have_to_fit_too(shipped):
    with pytest.raises(UserError, match="format.input_activations.group_size 128"):
        schemes.check_scheme_fits(shipped["fp8-block"], {**TINY, "intermediate_size": 704})


def test_another_architecture_is_left_to_the_toolkit(shipped):
    schemes.check_scheme_fits(shipped["gptq-int4"], {"n_embd": 100})


@pytest.mark.parametrize(
    ("name", "patterns", "matches"),
    [
        ("lm_head", ["lm_head"], True),
        ("model.lm_head", ["lm_head"], False),
        ("model.layers.0.mlp.up_proj", ["re:.*mlp"], True),
        ("model.layers.0.mlp.up_proj", ["re:mlp"], False),  # anchored at the start, as re.match is
        ("anything", ["Linear"], True),
        ("anything", [], False),
    ],
)
def test_layer_names_match_as_in_compressed_tensors(name, patterns, matches):
    assert schemes.names_layer(name, patterns) == matches
