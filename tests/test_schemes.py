"""The schemes that come along, and what is refused in a scheme."""

import json

import jsonschema
import pytest
import yaml
from quantbench import schemes
from quantbench.errors import UserError
from quantbench.keys import key

FOLDER = schemes.SCHEMA.parents[2] / "config" / "schemes"


@pytest.fixture(scope="module")
def shipped():
    return schemes.load_schemes(FOLDER)


def load(tmp_path, scheme, name="mine"):
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(scheme))
    return schemes.load_schemes(tmp_path)[name]


# The first 16 digits of each recipe's key before schemes shared base settings: another one would make every checkpoint of
# everybody's store anew.
KEYS = {
    "bf16": "52bc433bcc7385e2",
    "int8-smoothquant": "f201944890adc25d",
    "rtn-int4": "953932a0c19d12eb",
    "gptq-int4": "bdb8c01c2ea30ac7",
    "awq-int4": "8d1e9abd7dadb931",
    "fp8-block": "27ce4a2bb12d1673",
    "nvfp4": "111e432c43dd1eab",
}


def test_shared_base_settings_leave_recipes_as_they_were(shipped):
    assert {name: key(schemes.recipe_identity(shipped[name]))[:16] for name in KEYS} == KEYS


@pytest.mark.parametrize(
    ("computes", "names"),
    [
        (
            "w8a8-fp8",
            {"fp8-dynamic", "fp8-static", "fp8-block", "fp8-dynamic-kv8", "fp8-online", "torchao-float8-rowwise"},
        ),
        ("w8a8-int8", {"int8-rtn", "int8-gptq", "int8-smoothquant", "torchao-int8-dynamic"}),
        ("w8a16-int8", {"int8-weight-only", "torchao-int8-weight-only", "int8-online"}),
        ("w4a16", {"rtn-int4", "gptq-int4", "gptq-int4-g64", "gptq-int4-g32", "gptq-int4-unordered", "awq-int4"}),
        ("w4a16", {"awq-int4-symmetric", "gptq-int4-native", "awq-int4-native", "torchao-int4-weight-only"}),
        ("w4a8", {"gptq-int4-a8"}),
        ("w4a8-fp8", {"gptq-int4-fp8"}),
        ("w4a4-fp4", {"nvfp4"}),
        ("w4a16-fp4", {"nvfp4a16"}),
        ("w4a4-mxfp4", {"mxfp4"}),
        ("w4a16-nf4", {"nf4-bitsandbytes"}),
    ],
)
def test_the_schemes_that_come_along(shipped, computes, names):
    assert names <= {name for name, scheme in shipped.items() if scheme["computes"] == computes}


def test_what_data_free_schemes_need_no_rows_for(shipped):
    free = {
        name for name, scheme in shipped.items() if scheme["toolkit"] == "llmcompressor" and not scheme["calibrated"]
    }
    assert free == {
        "fp8-dynamic", "fp8-block", "int8-rtn", "int8-weight-only", "rtn-int4", "rtn-int4-asymmetric", "nvfp4a16", "mxfp4",
        "mxfp4a16", "rtn-int4-spared",
    }  # fmt: skip


def test_schemes_of_a_family_differ_in_one_thing(shipped):
    def changed(name, other):
        one, two = schemes.recipe_identity(shipped[name]), schemes.recipe_identity(shipped[other])
        return {key for key in one | two if one.get(key) != two.get(key)}

    assert changed("gptq-int4", "gptq-int4-g32") == {"format"}
    assert changed("gptq-int4", "gptq-int4-unordered") == {"modifiers"}
    assert changed("gptq-int4", "gptq-int4-native") == {"layout"}
    assert changed("int8-gptq", "int8-smoothquant") == {"modifiers"}
    assert changed("fp8-dynamic", "fp8-dynamic-kv8") == {"kv_cache"}
    sizes = {name: shipped[name]["format"]["weights"]["group_size"] for name in ("gptq-int4-g64", "gptq-int4-g32")}
    assert sizes == {"gptq-int4-g64": 64, "gptq-int4-g32": 32}


def test_a_scheme_says_only_what_it_changes(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "rtn.yaml").write_text((FOLDER / "base" / "llmcompressor.yaml").read_text())
    numbers = "{num_bits: 4, type: int, strategy: group, group_size: 128, symmetric: true, dynamic: false}"
    (tmp_path / "base" / "four.yaml").write_text(
        f"extends: rtn\nformat:\n  weights: {numbers}\n  input_activations: null\ncomputes: w4a16\n"
    )
    (tmp_path / "mine.yaml").write_text("extends: four\ndescription: Mine.\nformat:\n  weights: {group_size: 64}\n")
    weights = schemes.load_schemes(tmp_path)["mine"]["format"]["weights"]
    assert weights == {**yaml.safe_load(numbers), "group_size": 64}
    (tmp_path / "mine.yaml").write_text("extends: fuor\n")
    with pytest.raises(UserError, match=r"mine.yaml: extends is 'fuor'; valid are: four, rtn"):
        schemes.load_schemes(tmp_path)
    (tmp_path / "base" / "rtn.yaml").write_text("extends: four\n")
    (tmp_path / "mine.yaml").write_text("extends: four\n")
    with pytest.raises(UserError, match="extends goes round in a circle: four -> rtn"):
        schemes.load_schemes(tmp_path)


def test_the_schema_is_closed_and_describes_every_key():
    schema = json.loads(schemes.SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    seen = []

    def walk(node):
        for name, described in node.get("properties", {}).items():
            assert described.get("description"), name
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
        ({"toolkit": "prequantized"}, ["modifiers must be [] when toolkit is prequantized"]),
        ({"layout": "exllama"}, ["layout is 'exllama'; valid are: 'compressed-tensors', 'gptq', 'awq', 'fp8'"]),
        ({"layout": "fp8"}, ["layout fp8 is only read"]),
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


def test_a_layout_holds_only_what_its_tool_makes(shipped, tmp_path):
    with pytest.raises(UserError, match="layout gptq holds symmetric integer weights in groups"):
        load(tmp_path, {**shipped["awq-int4"], "layout": "gptq"})
    with pytest.raises(UserError, match="layout awq holds 4-bit integer weights in groups"):
        load(tmp_path, {**shipped["int8-rtn"], "layout": "awq"})


def test_layers_may_be_left_alone_only_by_what_quantizes(shipped, tmp_path):
    assert shipped["fp8-online"]["ignore"] == shipped["torchao-int8-dynamic"]["ignore"] == ["lm_head"]
    with pytest.raises(UserError, match=r"ignore must be \[\] when toolkit is none"):
        load(tmp_path, {**shipped["bf16"], "ignore": ["lm_head"]})


def test_scales_of_the_cache_need_data(shipped, tmp_path):
    with pytest.raises(UserError, match="calibrated must be true"):
        load(tmp_path, {**shipped["fp8-dynamic-kv8"], "calibrated": False})


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
    wanted = {
        "int8-smoothquant": "int-quantized",
        "int8-weight-only": "pack-quantized",
        "awq-int4": "pack-quantized",
        "gptq-int4-a8": "pack-quantized",
        "fp8-static": "float-quantized",
        "fp8-block": "float-quantized",
        "nvfp4": "nvfp4-pack-quantized",
        "mxfp4a16": "mxfp4-pack-quantized",
    }
    assert names | wanted == names


def test_compressed_tensors_config_is_a_copy(shipped):
    scheme = shipped["gptq-int4"]
    config = schemes.compressed_tensors_config(scheme["format"], scheme["targets"], scheme["ignore"])
    assert config["config_groups"]["group_0"]["weights"] == scheme["format"]["weights"]
    assert config["config_groups"]["group_0"]["targets"] == ["Linear"] and config["ignore"] == ["lm_head"]
    config["config_groups"]["group_0"]["weights"]["num_bits"] = 2
    assert scheme["format"]["weights"]["num_bits"] == 4
