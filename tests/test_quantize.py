"""What quantbench/quantize does without the toolkit: calibration rows, and what a checkpoint's files say about it."""

import json
import struct

import pytest
import yaml
from quantbench.errors import UserError
from quantbench.quantize import calibration, checkpoint


def test_rows_that_are_no_text_are_refused(tmp_path):
    path, one = tmp_path / "train.jsonl", {"dataset": "d", "samples": 1, "seed": 0}
    path.write_text('{"text": "as it is"}\n')
    assert calibration.calibration_texts([path], one) == [("as it is", False)]
    path.write_text('{"prompt": "?"}\n')
    with pytest.raises(UserError, match="row 1: has neither question and answer nor text"):
        calibration.calibration_texts([path], one)
    path.write_text("{\n")
    with pytest.raises(UserError, match="row 1: not valid JSON"):
        calibration.calibration_texts([path], one)


def test_tokens_are_cut_and_checked_against_the_vocabulary():
    assert calibration.calibration_tokens([[1, 2, 3]], 2, vocabulary=3) == [[1, 2]]
    with pytest.raises(UserError, match="gives token 3, but the model's embedding has only 3 rows"):
        calibration.calibration_tokens([[1, 2, 3]], 3, vocabulary=3)
    with pytest.raises(UserError, match="no token"):
        calibration.calibration_tokens([[]], 3, vocabulary=3)


def test_bits_per_weight_counts_scales_and_zero_points(tmp_path):
    # 256 x 128 weights of 4 bits: 16384 bytes; a bf16 scale each 128: 256 * 2 = 512; 4-bit zero points: 256 / 2 = 128.
    # (16384 + 512 + 128) * 8 / 32768 = 4 + 0.125 + 0.03125
    sizes = {"a.weight_packed": 16384, "a.weight_scale": 512, "a.weight_zero_point": 128, "a.bias": 512, "b.weight": 9}
    header, begin = {"__metadata__": {"format": "pt"}}, 0
    for name, size in sizes.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [begin, begin + size]}
        begin += size
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(begin))
    found = checkpoint.tensors(tmp_path)
    assert checkpoint.quantized_layers(found) == {"a"}
    assert checkpoint.bits_per_weight(found, {"a": (256, 128)}) == 4.15625
    assert checkpoint.bits_per_weight(found, {}) is None
    assert checkpoint.safetensors_bytes(tmp_path) == 8 + len(text) + begin


def test_python_tags_leave_the_recipe(tmp_path):
    order = "actorder: !!python/object/apply:a.b.ActivationOrdering [\n  static]\n"
    (tmp_path / "recipe.yaml").write_text(order + "mappings:\n- !!python/tuple\n  - [q]\n  - n\n")
    checkpoint.plain_recipe(tmp_path)
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert recipe == {"actorder": "static", "mappings": [[["q"], "n"]]}
