"""The named shape sets, by hand; and what a slip in the file is told."""

import re
from pathlib import Path

import pytest
import yaml
from quantbench.errors import UserError
from quantbench.shapes import load_shapes, shapes_of

PATH = Path(__file__).parents[1] / "config" / "shapes.yaml"
SHAPES = load_shapes(PATH)


def products(name, devices=1):
    return {s["layer"]: (s["n"], s["k"], s["count"]) for s in shapes_of(SHAPES[name], devices)}


def test_llama_3_1_8b():
    assert products("llama-3.1-8b") == {
        "qkv_proj": (6144, 4096, 32),  # (32 + 2 x 8) heads x 128
        "o_proj": (4096, 4096, 32),
        "gate_up_proj": (28672, 4096, 32),  # 2 x 14336
        "down_proj": (4096, 14336, 32),
        "lm_head": (128256, 4096, 1),  # 2004 x 64: no padding
    }


def test_llama_3_1_8b_on_two_devices():
    # Rows of qkv, gate_up and lm_head are split; columns of o and down.
    assert products("llama-3.1-8b", 2) == {
        "qkv_proj": (3072, 4096, 32),
        "o_proj": (4096, 2048, 32),
        "gate_up_proj": (14336, 4096, 32),
        "down_proj": (4096, 7168, 32),
        "lm_head": (64128, 4096, 1),
    }


def test_heads_without_groups_and_heads_that_do_not_fill_the_width():
    assert products("llama-2-7b")["qkv_proj"] == (12288, 4096, 32)  # 3 x 4096
    assert products("qwen2.5-7b")["qkv_proj"] == (4608, 3584, 28)  # (28 + 2 x 4) x 128
    assert products("llama-2-70b", 8)["qkv_proj"] == (1280, 8192, 80)  # torchao's Llama 2 70B table: (8 + 2) x 128


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # as published, less the input embeddings (vocabulary x hidden), which no product reads
        ("llama-2-7b", 6.74e9 - 32000 * 4096),
        ("mistral-7b", 7.24e9 - 32000 * 4096),
        ("qwen2.5-7b", 7.62e9 - 152064 * 3584),
        ("llama-3.1-8b", 8.03e9 - 128256 * 4096),
        ("llama-2-70b", 68.98e9 - 32000 * 8192),
        ("llama-3.1-70b", 70.55e9 - 128256 * 8192),
    ],
)
def test_the_layers_of_a_model_add_up_to_its_parameters(name, parameters):
    assert sum(n * k * count for n, k, count in products(name).values()) == pytest.approx(parameters, rel=1e-3)


def test_explicit_products_are_taken_as_they_are_and_never_divided():
    assert products("reference-4096") == {
        "4096x4096": (4096, 4096, 1),
        "11008x4096": (11008, 4096, 1),
        "4096x11008": (4096, 11008, 1),
    }
    assert products("reference-4096", 8) == products("reference-4096")
    assert products("square-8192") == {"8192x8192": (8192, 8192, 1)}
    assert [n for n, _, _ in products("torchao-roofline").values()] == [1024, 2048, 4096, 8192, 16384]
    assert all(n == k for n, k, _ in products("torchao-roofline").values())


@pytest.mark.parametrize("name", SHAPES)
def test_every_set_says_where_it_comes_from(name):
    assert re.search(r"https://\S+\.\S+", SHAPES[name]["source"])


def test_devices_that_a_model_does_not_divide_among_are_refused():
    with pytest.raises(UserError, match="3 devices"):
        shapes_of(SHAPES["llama-3.1-8b"], 3)


MODEL = SHAPES["mistral-7b"]
EXPLICIT = SHAPES["square-8192"]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"m": {**MODEL, "model": {**MODEL["model"], "hiden_size": 1}}}, ["m.model", "'hiden_size'", "'hidden_size'"]),
        ({"m": {**MODEL, "model": {"hidden_size": 4096}}}, ["m.model", "'num_attention_heads' is missing"]),
        ({"m": {**MODEL, "model": {**MODEL["model"], "head_dim": 128.5}}}, ["m.model.head_dim", "128.5", "integer"]),
        ({"m": {**EXPLICIT, "shapes": [{"n": 4096, "m": 1}]}}, ["m.shapes.0", "'m'"]),
        ({"m": {**EXPLICIT, "shapes": [{"n": 4096, "k": 0}]}}, ["m.shapes.0.k", "0"]),
        ({"m": {**EXPLICIT, "shapes": []}}, ["m.shapes"]),
        ({"m": {**EXPLICIT, **MODEL}}, ["m: give either 'model'", "'shapes'"]),
        ({"m": {key: MODEL[key] for key in ("description", "source")}}, ["m: give either 'model'", "'shapes'"]),
        ({"m": {key: MODEL[key] for key in ("description", "model")}}, ["m: key 'source' is missing"]),
        ({"../m": MODEL}, ["'../m'", "lower-case"]),
        ({}, ["the file"]),
    ],
)
def test_a_bad_set_is_refused_by_name(tmp_path, entries, words):
    path = tmp_path / "shapes.yaml"
    path.write_text(yaml.safe_dump(entries))
    with pytest.raises(UserError) as error:
        load_shapes(path)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_a_missing_file_and_a_broken_one_are_named(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        load_shapes(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("m: [")
    with pytest.raises(UserError, match="not valid YAML"):
        load_shapes(tmp_path / "broken.yaml")
