"""What schemes need and yield: the arithmetic, and the page that lists it."""

import json

import pytest
import show_schemes
from quantbench import scheme_needs
from quantbench.schemes import load_schemes
from quantbench.study import ROOT

SCHEMES = load_schemes(ROOT / "config" / "schemes")
# Llama 3.1 8B
LLAMA = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}


def test_an_8b_model_takes_what_the_toolkits_documents_say():
    # "about 16 GB of host memory and 1 GB on the GPU": 8.03e9 parameters of 2 bytes
    assert scheme_needs.parameters(LLAMA) == pytest.approx(8.03e9, rel=1e-3)
    needed = scheme_needs.needs(SCHEMES["gptq-int4"], LLAMA)
    assert needed["host_memory_bytes"] == pytest.approx(16.06e9, rel=1e-3)
    # a block: 2 (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14336 * 4096) = 0.44e9; Hessians: 4 (6 * 4096^2 + 14336^2) = 1.22e9
    assert needed["device_memory_bytes"] == pytest.approx(0.436e9 + 1.225e9, rel=1e-3)
    rounded = scheme_needs.needs(SCHEMES["rtn-int4"], LLAMA)
    assert rounded["device_memory_bytes"] == pytest.approx(0.436e9, rel=1e-3) and not rounded["calibration"]


def test_what_the_engine_quantizes_needs_no_memory_beforehand():
    needed = scheme_needs.needs(SCHEMES["torchao-int4-weight-only"], LLAMA)
    assert needed["host_memory_bytes"] is None and needed["engine_packages"] == ["torchao"]
    assert scheme_needs.yields(SCHEMES["fp8-online"], LLAMA)["checkpoint_bytes"] is None


def test_bits_count_scales_and_zero_points():
    bits = {name: scheme_needs.bits_per_weight(SCHEMES[name]) for name in SCHEMES if SCHEMES[name]["format"]}
    # 16-bit scale per 128, 4-bit zero point with it; per 32; per 16 of 8 bits; per row of 4096; per 128 * 128
    assert bits["gptq-int4"] == 4 + 16 / 128 and bits["awq-int4"] == 4 + 20 / 128
    assert bits["gptq-int4-native"] == 4 + 20 / 128 and bits["gptq-int4-g32"] == 4 + 16 / 32
    assert bits["nvfp4"] == 4 + 8 / 16 and bits["mxfp4"] == 4 + 8 / 32
    assert bits["int8-rtn"] == 8 + 16 / 4096 and bits["fp8-block"] == 8 + 16 / 16384 and bits["fp8-static"] == 8


def test_size_of_a_checkpoint():
    made = scheme_needs.yields(SCHEMES["gptq-int4"], LLAMA)
    # embedding and head, 2 * 128256 * 4096, at 2 bytes; the other 6.98e9 weights at 4.125 bits: 2.10e9 + 3.60e9
    assert made["checkpoint_bytes"] == pytest.approx(5.70e9, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fp8-dynamic", "8.9 up"),
        ("int8-rtn", "7.5 to below 10.0"),
        ("gptq-int4-fp8", "9.0 to below 10.0"),
        ("nvfp4", "10.0 up"),
        ("torchao-int8-dynamic", None),
    ],
)
def test_where_a_scheme_is_native(name, words):
    assert scheme_needs.native_on(SCHEMES[name]) == words


def test_the_page_is_as_the_schemes_are(capsys):
    show_schemes.main([])
    assert capsys.readouterr().out == (ROOT / "docs" / "schemes.md").read_text(), (
        "python workflow/scripts/show_schemes.py > docs/schemes.md"
    )


def test_a_study_sees_its_schemes_and_models(tmp_path, capsys):
    manifest = {
        "study": {"schemes": ["bf16", "gptq-int4"]},
        "models": {"llama": {"config": LLAMA}},
        "schemes": {name: SCHEMES[name] for name in ("bf16", "gptq-int4")},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    show_schemes.main([f"--manifest={tmp_path / 'manifest.json'}"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["bf16", "llama", "-", "-", "-", "-", "-"]
    assert lines[2] == ["gptq-int4", "llama", "calibration", "4.125", "5.7", "GB", "16.1", "GB", "1.7", "GB"]
