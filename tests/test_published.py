"""Published figures: what is shipped holds together, and a wrong file is refused by file, row and column."""

import math
from pathlib import Path

import pytest
import yaml
from quantbench.errors import UserError
from quantbench.published import citations, flops_per_s, latency_s, load_published, load_sources, match
from quantbench.relu_linear import RECIPES, expected_speedup, recipe_of, relu_linear_times
from quantbench.roofline import RATES

CONFIG = Path(__file__).parents[1] / "config"
FOLDER = CONFIG / "published"
ROWS = load_published(FOLDER)
GPUS = yaml.safe_load((CONFIG / "gpus.yaml").read_text())

HEADER = "gpu,device,label,computes,product,includes_quantization,model,phase,m,n,k,metric,value,note\n"
ROW = "h100,H100,torch bf16,bf16,linear,,,,16,4096,8192,tflops,700.5,\n"
SOURCE = {
    "title": "A table", "url": "https://example.org", "version": "2026", "measured": "TFLOPS", "hardware": "H100",
    "license": "MIT",
}  # fmt: skip


def folder(tmp_path, text=HEADER + ROW, sources=None):
    (tmp_path / "one.csv").write_text(text)
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump({"one": SOURCE} if sources is None else sources))
    return tmp_path


# --- what is shipped


def test_every_source_that_the_report_promises_is_there():
    labels = {row["label"] for row in ROWS}
    assert {row["gpu"] for row in match(ROWS, product="relu_linear", metric="speedup_over_bf16")} >= {"b200"}
    assert any("Marlin" in label for label in labels)
    assert any("ExLlama" in label for label in labels)
    # dense products by precision on an H100
    assert {row["computes"] for row in match(ROWS, "h100", product="linear")} >= {"bf16", "fp16", "tf32", "w8a8-fp8"}


def test_rows_name_devices_and_arithmetic_that_this_workflow_knows():
    assert {row["gpu"] for row in ROWS} - set(GPUS) == {None}
    assert {row["computes"] for row in ROWS} - set(RATES) == {None}


def test_sources_can_be_looked_up():
    for name, source in load_sources(FOLDER).items():
        assert source["url"].startswith("https://"), name
        # A branch moves; a commit, or a pull request's own page, does not.
        assert "/main/" not in source["url"] and "/master/" not in source["url"], name


def test_no_figure_beats_its_data_sheet():
    checked = 0
    for row in ROWS:
        rate, gpu = flops_per_s(row), GPUS.get(row["gpu"])
        peak = gpu and row["computes"] and gpu["matrix_flops_per_s"].get(RATES[row["computes"]])
        if rate and peak:
            checked += 1
            # A GeForce card clocks above its data sheet's boost while power and temperature allow.
            assert rate <= peak * (1.2 if row["gpu"].startswith("rtx") else 1), row
            # A weight larger than L2 crosses the bus whole.
            bits = int(row["computes"][1]) if row["computes"].startswith("w") else 16
            weight_bytes = row["n"] * row["k"] * bits / 8
            if weight_bytes > (gpu.get("l2_bytes") or math.inf):
                assert latency_s(row) >= weight_bytes / gpu["memory_bandwidth_bytes_per_s"], row
    assert checked > 300


@pytest.mark.parametrize("metric", ["speedup_over_fp16", "speedup_over_bf16"])
def test_printed_speedups_are_the_printed_times_ratio(metric):
    """A speedup in a table that also prints both times or rates must be their quotient."""
    base = metric.removeprefix("speedup_over_")
    checked = 0
    for row in match(ROWS, metric=metric, product="linear"):
        same = [r for r in ROWS if all(r[c] == row[c] for c in ("source", "m", "n", "k")) and latency_s(r)]
        ours = [latency_s(r) for r in same if r["label"] == row["label"]]
        theirs = [latency_s(r) for r in same if r["computes"] == base]
        if ours and theirs:
            checked += 1
            assert theirs[0] / ours[0] == pytest.approx(row["value"], rel=0.005), row
    assert checked >= 10


def test_a_figure_as_its_source_prints_it():
    # torchao, inference.md: "4  16384  16384  16384  3.82  2.98" under nvfp4_static
    rows = match(ROWS, "b200", product="relu_linear", label="nvfp4_static", m=16384)
    assert {row["metric"]: row["value"] for row in rows} == {
        "expected_speedup_over_bf16": 3.82,
        "speedup_over_bf16": 2.98,
    }
    # q4f16: "|1  |8192|8192|exllama |True |0.0675 |" (milliseconds) on the A100
    (row,) = match(ROWS, "a100", label="ExLlama, activation order", n=8192)
    assert row["value"] == pytest.approx(67.5e-6)


# --- torchao's roofline, against its own tables

# roofline_utils.py: bf16, fp8 and fp4 peaks; 7680 bit / 8 x 3.996 GHz x 2, and 8 TB/s
BLACKWELL = {"bf16": 2.25e15, "fp8": 4.5e15, "fp4": 9.0e15}
BANDWIDTH = {"NVIDIA B200": 7680 / 8 * 3.996e9 * 2, "NVIDIA GB200": 8.0e12}
THEIR_NAMES = {"mxfp8_cublas": "mxfp8", "nvfp4_no_global_scale": "nvfp4_static"}


@pytest.mark.parametrize(
    "row", match(ROWS, metric="expected_speedup_over_bf16"), ids=lambda r: f"{r['label']}-{r['m']}"
)
def test_expected_speedup_is_torchaos(row):
    recipe = THEIR_NAMES.get(row["label"], row["label"])
    ours = expected_speedup(row["m"], row["k"], row["n"], recipe, BANDWIDTH[row["device"]], BLACKWELL)
    assert round(ours, 2) == row["value"]


def test_sum_of_the_roofline_by_hand():
    rates, m, k, n = {"bf16": 1e12, "fp8": 2e12}, 100, 1000, 2000
    times = relu_linear_times(m, k, n, "rowwise", 1e9, rates, bandwidth_share=1, rate_share=1, least_kernel_s=0)
    # bf16: (2 x (100 x 1000 + 1000 x 2000) + 2 x 100 x 2000) bytes / 1e9 = 4.6 ms > 4e8 / 1e12 = 0.4 ms
    assert times["bf16_gemm_s"] == pytest.approx(4.6e-3)
    assert times["bf16_relu_s"] == pytest.approx(100 * 1000 * 4 / 1e9)
    # FP8: one byte per operand, two per output: 2.1e6 + 0.4e6
    assert times["gemm_s"] == pytest.approx(2.5e-3)
    # reads 2, writes 1 byte per element, and a 4-byte scale per row
    assert times["relu_quantize_s"] == pytest.approx((100 * 1000 * 3 + 100 * 4) / 1e9)
    # per tensor the maximum is sought first: 2 bytes per element more
    tensorwise = relu_linear_times(m, k, n, "tensorwise", 1e9, rates, 1, 1, 0)
    assert tensorwise["relu_quantize_s"] == pytest.approx((100 * 1000 * 2 + 100 * 1000 * 3) / 1e9)
    # MXFP8: (100 x 1000 + 1000 x 2000) / 32 scales of a byte come with the operands, 100 x (1000 // 32) with the activations
    mx = relu_linear_times(m, k, n, "mxfp8", 1e9, rates, 1, 1, 0)
    assert mx["gemm_s"] == pytest.approx((2.1e6 + 65625 + 0.4e6) / 1e9)
    assert mx["relu_quantize_s"] == pytest.approx((300_000 + 3100) / 1e9)
    # NVFP4: half a byte per operand and, as torchao counts, per scale that is read; one block of 16
    fp4 = relu_linear_times(m, k, n, "nvfp4_static", 1e9, {"bf16": 1e12, "fp4": 4e12}, 1, 1, 0)
    assert fp4["gemm_s"] == pytest.approx((2.1e6 / 2 + 131250 / 2 + 0.4e6) / 1e9)
    # no kernel is shorter than the least: four of them at 2 us, so nothing is gained
    assert expected_speedup(1, 16, 16, "rowwise", 1e12, rates) == 1.0


def test_no_expectation_without_a_rate_or_a_recipe():
    assert expected_speedup(1, 64, 64, "nvfp4", 1e12, {"bf16": 1e15, "fp4": None}) is None
    with pytest.raises(UserError, match="rowwise"):
        expected_speedup(1, 64, 64, "delayed", 1e12, BLACKWELL)


def test_recipes_of_formats():
    eight = {"num_bits": 8, "type": "float"}
    weights = {"num_bits": 8}
    assert recipe_of({"weights": weights, "input_activations": {**eight, "strategy": "token"}}) == "rowwise"
    tensor = {**eight, "strategy": "tensor", "dynamic": True}
    assert recipe_of({"weights": weights, "input_activations": tensor}) == "tensorwise"
    assert recipe_of({"weights": weights, "input_activations": {**tensor, "dynamic": False}}) is None
    blocks = {**eight, "strategy": "group", "group_size": 128}
    assert recipe_of({"weights": weights, "input_activations": blocks}) is None
    assert recipe_of({"weights": weights, "input_activations": {**blocks, "group_size": 32}}) == "mxfp8"
    four = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "dynamic": "local"}
    assert recipe_of({"weights": {"num_bits": 4}, "input_activations": four}) == "nvfp4_static"
    token = {"num_bits": 8, "type": "int", "strategy": "token"}
    assert recipe_of({"weights": weights, "input_activations": token}) == "int8_rowwise"
    # 4-bit weights under FP8 activations; weights alone; nothing quantized
    assert recipe_of({"weights": {"num_bits": 4}, "input_activations": {**eight, "strategy": "token"}}) is None
    assert recipe_of({"weights": {"num_bits": 4}, "input_activations": None}) is None
    assert recipe_of(None) is None
    assert {"rowwise", "tensorwise", "mxfp8", "mxfp4", "nvfp4", "nvfp4_static"} <= set(RECIPES)


# --- reading


def test_types_and_matching(tmp_path):
    text = HEADER + ROW + "h100,H100,FP8,w8a8-fp8,linear,false,,,16,4096,8192,latency_s,2e-6,hot\n"
    text += ",GB200,vLLM,bf16,,,a model,decode,,,,tokens_per_s,50,\n"
    first, second, third = load_published(folder(tmp_path, text))
    assert first == {
        "source": "one", "gpu": "h100", "device": "H100", "label": "torch bf16", "computes": "bf16",
        "product": "linear", "includes_quantization": None, "model": None, "phase": None, "m": 16, "n": 4096,
        "k": 8192, "metric": "tflops", "value": 700.5, "note": None,
    }  # fmt: skip
    assert (second["includes_quantization"], second["note"], third["gpu"]) == (False, "hot", None)
    rows = [first, second, third]
    assert match(rows, "h100", computes="w8a8-fp8") == [second]
    assert match(rows, "h100", m=None) == [first, second]
    assert match(rows, "h200") == []
    # 2 x 16 x 4096 x 8192 = 1.0737e9 operations: in 2 us 5.37e14 per second; at 700.5 TFLOPS 1.533 us
    assert flops_per_s(second) == pytest.approx(5.3687e14, rel=1e-4)
    assert latency_s(first) == pytest.approx(1.5328e-6, rel=1e-4)
    assert flops_per_s(third) is None and latency_s(third) is None
    assert citations([second, first], {"one": SOURCE}) == [{"source": "one", **SOURCE}]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("tflops", "gigaflops"), ["one.csv", "row 2", "gigaflops", "tokens_per_s"]),
        (("linear", "conv"), ["row 2", "product", "conv"]),
        (("700.5", "fast"), ["row 2", "value", "fast"]),
        (("700.5", "inf"), ["row 2", "value", "inf"]),
        (("700.5", "0"), ["row 2", "value"]),
        (("700.5", ""), ["row 2", "value is missing"]),
        (("16,4096", "16.5,4096"), ["row 2", "m", "16.5"]),
        (("16,4096", ",4096"), ["row 2", "m, n and k"]),
        (("linear", ""), ["row 2", "a model and a phase"]),
        ((",H100", ","), ["row 2", "device"]),
        (("700.5,", "700.5"), ["row 2", "fewer"]),
        (("700.5,", "700.5,,"), ["row 2", "more"]),
        (("gpu,device", "gpu,card"), ["one.csv", "card", "device"]),
    ],
)
def test_a_wrong_row_is_refused(tmp_path, change, words):
    text = HEADER + ROW
    assert change[0] in text
    with pytest.raises(UserError) as error:
        load_published(folder(tmp_path, text.replace(*change, 1)))
    assert all(word in str(error.value) for word in words)


def test_sources_and_files_belong_together(tmp_path):
    with pytest.raises(UserError, match="one.csv: has no source"):
        load_published(folder(tmp_path, sources={"two": SOURCE}))
    with pytest.raises(UserError, match="two: there is no file two.csv"):
        load_published(folder(tmp_path, sources={"one": SOURCE, "two": SOURCE}))
    with pytest.raises(UserError, match="one: url is missing"):
        load_published(folder(tmp_path, sources={"one": {k: v for k, v in SOURCE.items() if k != "url"}}))
    with pytest.raises(UserError, match="one: unknown key 'link'"):
        load_published(folder(tmp_path, sources={"one": {**SOURCE, "link": "x"}}))
    (tmp_path / "sources.yaml").unlink()
    with pytest.raises(UserError, match="cannot read the sources"):
        load_published(tmp_path)
