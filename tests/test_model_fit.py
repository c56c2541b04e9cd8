"""Does a scheme fit a model: sizes, patterns and fused layers, told from config.json."""

import pytest
from quantbench import model_fit, schemes
from quantbench.errors import UserError
from quantbench.kernel_verdict import refusal

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


def test_shapes_of_grouped_query_attention():
    layers = model_fit.linear_layers(TINY)
    # 4 heads of 256 / 4 = 64 give 256 outputs, 2 KV heads 128
    assert layers["model.layers.3.self_attn.q_proj"] == (256, 256)
    assert layers["model.layers.3.self_attn.v_proj"] == (128, 256)
    assert layers["model.layers.0.mlp.down_proj"] == (256, 768)
    assert layers["lm_head"] == (2048, 256)
    assert len(layers) == 4 * 7 + 1


def test_a_head_size_of_its_own_decides():
    # as in Qwen3: 4 heads of 128 give 512 although hidden is 256
    assert model_fit.linear_layers({**TINY, "head_dim": 128})["model.layers.0.self_attn.o_proj"] == (256, 512)


def test_every_scheme_fits_the_tiny_model(shipped):
    for scheme in shipped.values():
        model_fit.check_scheme_fits(scheme, TINY)


def test_a_group_that_does_not_divide_is_refused_with_those_that_do(shipped):
    # 704 = 64 * 11, and 256 = 64 * 4: 64 divides all, 128 not 704
    with pytest.raises(UserError) as error:
        model_fit.check_scheme_fits(shipped["gptq-int4"], {**TINY, "intermediate_size": 704})
    assert "group_size 128 does not divide mlp.down_proj (704 input features)" in str(error.value)
    assert "16, 32, 64;" in str(error.value) and "gate_proj" not in str(error.value)


def test_an_ignored_layer_need_not_fit(shipped):
    scheme = {**shipped["gptq-int4"], "ignore": ["lm_head", r"re:.*\.down_proj$"]}
    model_fit.check_scheme_fits(scheme, {**TINY, "intermediate_size": 704})


def test_blocks_have_to_end_inside_a_fused_layer_only(shipped):
    # k_proj of one KV head of 64 ends in the middle of a block of 128, and v_proj follows it in the fused layer
    with pytest.raises(UserError, match=r"block_structure 128 does not divide self_attn.k_proj \(64 output features\)"):
        model_fit.check_scheme_fits(shipped["fp8-block"], {**TINY, "num_key_value_heads": 1})
    model_fit.check_scheme_fits(shipped["fp8-block"], {**TINY, "num_key_value_heads": 4})


def test_activation_groups_have_to_fit_too(shipped):
    with pytest.raises(UserError, match="format.input_activations.group_size 128"):
        model_fit.check_scheme_fits(shipped["fp8-block"], {**TINY, "intermediate_size": 704})


def test_another_architecture_is_left_to_the_toolkit(shipped):
    model_fit.check_scheme_fits(shipped["gptq-int4"], {"n_embd": 100})


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
    assert model_fit.names_layer(name, patterns) == matches


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"targets": ["re:.*down_prj"]}, ["targets: 're:.*down_prj' is no linear layer", "did you mean 'down_proj'?"]),
        ({"targets": ["Linaer"]}, ["targets: 'Linaer'", "q_proj", "mlp.down_proj, lm_head"]),
        ({"ignore": ["lm_haed"]}, ["ignore: 'lm_haed' is no linear layer of the model; did you mean 'lm_head'?"]),
        ({"ignore": ["lm_head", "re:.*[gate"]}, ["ignore: 're:.*[gate' is not a regular expression"]),
        (
            {"targets": ["re:.*q_proj"]},
            ["model.layers.0.self_attn: of q_proj, k_proj, v_proj only q_proj would", "vLLM fuses"],
        ),
        (
            {"ignore": ["lm_head", "model.layers.2.mlp.up_proj"]},
            ["model.layers.2.mlp: of gate_proj, up_proj only gate_proj would be quantized"],
        ),
    ],
)
def test_what_means_no_layer_or_part_of_a_fused_one_is_refused(shipped, change, words):
    with pytest.raises(UserError) as error:
        model_fit.check_scheme_fits({**shipped["rtn-int4"], **change}, TINY)
    for word in words:
        assert word in str(error.value)


def test_whole_fused_layers_may_be_named(shipped):
    for targets in (["re:.*(q|k|v)_proj"], ["re:.*gate_proj", "re:.*up_proj"], ["re:.*self_attn.o_proj"]):
        model_fit.check_scheme_fits({**shipped["rtn-int4"], "targets": targets}, TINY)


def test_a_model_that_is_quantized_already_is_refused(shipped):
    with pytest.raises(UserError, match=r"quantized already \(awq\).*prequantized"):
        model_fit.check_scheme_fits(shipped["rtn-int4"], {**TINY, "quantization_config": {"quant_method": "awq"}})


def test_native_layouts_pack_eight_output_features(shipped):
    # 1 KV head of 60: k and v have 60 outputs, 4 * 60 = 240 inputs for o_proj, which groups of 16 divide
    odd = {**TINY, "head_dim": 60, "num_key_value_heads": 1}
    scheme = {**shipped["gptq-int4-native"], "ignore": ["lm_head", "re:.*o_proj"]}
    with pytest.raises(
        UserError, match="layout gptq needs output features that 8 divides; self_attn.k_proj, self_attn.v_proj"
    ):
        model_fit.check_scheme_fits(scheme, odd)


def test_mixtures_of_experts_are_left_to_the_toolkit(shipped):
    model_fit.check_scheme_fits({**shipped["gptq-int4"], "ignore": ["re:.*router"]}, {**TINY, "num_experts": 8})


def test_layers_left_alone_are_counted_as_the_engine_names_them(shipped):
    scheme = {**shipped["gptq-int4"], "ignore": ["lm_head", r"re:model\.layers\.[01]\.", "re:.*down_proj"]}
    # 2 of the 4 blocks whole, and down_proj of all of them
    expected = {"qkv_proj": 2, "o_proj": 2, "gate_up_proj": 2, "down_proj": 4, "lm_head": 1}
    assert model_fit.left_alone(scheme, TINY) == expected
    assert model_fit.left_alone({**scheme, "targets": ["re:.*mlp"], "ignore": []}, TINY) == {
        "qkv_proj": 4, "o_proj": 4, "lm_head": 1,
    }  # fmt: skip
    assert model_fit.left_alone(shipped["fp8-online"], TINY) == {}


def test_blocks_left_alone_on_purpose_are_no_silent_fallback():
    def group(kind, count, quantized):
        computes = "w4a16" if quantized else "bf16"
        return {"layer_kind": kind, "count": count, "quantized": quantized, "computes": computes, "kernel": "K"}

    expects = {
        "computes": "w4a16",
        "ignore": ["lm_head", r"re:model\.layers\.0\."],
        "left": {"o_proj": 1, "lm_head": 1},
    }
    ran = [group("o_proj", 3, True), group("o_proj", 1, False), group("lm_head", 1, False)]
    assert refusal(expects, ran, "bfloat16") is None
    # two of them: one more than the scheme leaves alone
    ran[1] = group("o_proj", 2, False)
    assert refusal(expects, ran, "bfloat16").startswith("silently ran unquantized: o_proj took K")
