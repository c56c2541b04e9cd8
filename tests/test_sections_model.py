"""A whole model's decode step beside the engine's, and FP4 where there is none: by hand."""

import polars as pl
import pytest
from quantbench.gpus import load_gpus
from quantbench.model_step import NVFP4, TARGET, decode_rows, fp4_projection
from quantbench.roofline import gemm_bytes
from quantbench.schemes import load_schemes
from quantbench.sections_model import _best_words, _kv_bytes, _where_it_went
from quantbench.study import ROOT

# Two blocks; one token keeps 2 x 2 blocks x 2 heads x 16 x 2 bytes = 256 bytes.
MODEL = {
    "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
    "intermediate_size": 128, "vocab_size": 64,
}  # fmt: skip
BODY = {"qkv_proj": (128, 64), "o_proj": (64, 64), "gate_up_proj": (256, 64), "down_proj": (64, 128)}
US = 1e-6


def cell(entry, layer, m, microseconds, computes="bf16", share=None, spread=0.1, gpu="h200"):
    """One product's cell, its interval a tenth of its time to both sides."""
    n, k = BODY.get(layer, (64, 64))
    value = microseconds * US
    times = {"median_s": value, "low_s": value * (1 - spread), "high_s": value * (1 + spread), "datasheet_share": share}
    where = {"gpu": gpu, "model": "tiny", "layer": layer, "n": n, "k": k, "m": m}
    return where | {"kind": "scheme", "entry": entry, "computes": computes} | times


def cells(entry, body, head=2, tokens=(1, 64), computes="bf16", share=None, head_share=None, **more):
    """A scheme's cells: `body` microseconds each of four products, `head` the output head's, whatever M."""
    found = [cell(entry, layer, m, body, computes, share, **more) for layer in BODY for m in tokens]
    return found + [cell(entry, "lm_head", m, head, "bf16", head_share or share, **more) for m in tokens]


def latency(steps, batch=1, output_tokens=20, ttft=100):
    """Three equal repeats of each scheme, {scheme: microseconds of a decode step}: 19 steps after the first token."""
    rows = [
        {
            "gpu": "h200", "model": "tiny", "scheme": scheme, "input_tokens": 100, "output_tokens": output_tokens,
            "batch_size": batch, "elapsed_s": ((ttft or 100) + (output_tokens - 1) * step) * US,
            "ttft_s": None if ttft is None else ttft * US,
        }
        for scheme, step in steps.items()
        for _ in range(3)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema_overrides={"ttft_s": pl.Float64})


# 100 + 20 / 2 = 110 tokens x 256 bytes = 28160 bytes in 2 us.
BANDWIDTHS = {"h200": 28160 / 2e-6}
KV = {"bf16": 2, "int8": 2}
BOTH = cells("bf16", 1) + cells("int8", 0.5, computes="w8a8-int8")


def rows_of(frame, found=BOTH, kv_bytes=KV):
    rows = decode_rows(frame, found, {"tiny": MODEL}, BANDWIDTHS, "bf16", kv_bytes)
    return {(row["scheme"], row["batch_size"]): row for row in rows}


# --- the decode step ------------------------------------------------------------------------------------------------


def test_a_step_is_its_products_its_cache_and_a_rest():
    found = rows_of(latency({"bf16": 20, "int8": 18}))
    # 2 blocks x 4 x 1 us + 2 us = 10 us, and 2 us of cache; 20 us measured: 8 us are neither
    base = found["bf16", 1]
    assert base["gemm_s"] == pytest.approx((10e-6, 9e-6, 11e-6))
    assert base["kv_s"] == pytest.approx(2e-6) and base["predicted_s"][0] == pytest.approx(12e-6)
    assert base["measured_s"] == pytest.approx((20e-6,) * 3) and base["rest_s"] == pytest.approx((8e-6, 7e-6, 9e-6))
    assert base["shares"] == pytest.approx({"gemm": 0.5, "kv": 0.1, "rest": 0.4})
    # 2 x 4 x 0.5 + 2 = 6 us, the head being the same; 18 us measured: 18 - 6 - 2 = 10 us of rest
    row = found["int8", 1]
    assert row["shares"] == pytest.approx({"gemm": 6 / 18, "kv": 2 / 18, "rest": 10 / 18})
    assert row["predicted_speedup"][0] == pytest.approx(12 / 8)
    # with the baseline's 8 us on top: 20 us over 8 + 8
    assert row["with_rest_speedup"] == pytest.approx(20 / 16)
    assert row["measured_speedup"] == pytest.approx((20 / 18,) * 3)
    # the whole batch: 100 us until the first token, 19 steps
    assert row["speedup"][0] == pytest.approx((100 + 19 * 20) / (100 + 19 * 18))
    assert row["gemm_saved_s"] == pytest.approx((4e-6, 9e-6 - 6.6e-6, 11e-6 - 5.4e-6))
    # 10 us less 8 us; at worst 10.6 less 7
    assert row["rest_added_s"] == pytest.approx((2e-6, 9.4e-6 - 9e-6, 10.6e-6 - 7e-6))
    assert _where_it_went(row) == "products save 4 µs; rest takes 2 µs more"
    assert "1.50× if a step were only products and KV reads, 1.25× with bf16’s rest on top" in _best_words("bf16", row)
    assert "Measured: 1.11×, less than the products give: the rest takes longer" in _best_words("bf16", row)


def test_a_difference_within_the_noise_is_none():
    # 6 + 2 + 8 us: the rest as long as the baseline's
    row = rows_of(latency({"bf16": 20, "int8": 16}))["int8", 1]
    assert _where_it_went(row) == "products save 4 µs; rest: no clear change"
    assert _best_words("bf16", row).endswith("Measured: 1.25×, as the products explain it.")
    row = rows_of(latency({"bf16": 20, "int8": 12}))["int8", 1]
    assert _where_it_went(row) == "products save 4 µs; rest saves 4 µs"
    assert "give: the rest is shorter too" in _best_words("bf16", row)


def test_products_that_take_longer_than_the_step_leave_no_rest_to_add():
    row = rows_of(latency({"bf16": 6, "int8": 5}))
    assert row["bf16", 1]["shares"]["rest"] < 0
    assert row["int8", 1]["with_rest_speedup"] is None and row["int8", 1]["predicted_speedup"] is not None


def test_between_measured_m_is_interpolated_and_beyond_is_left_out():
    frame = pl.concat([latency({"bf16": 40}, batch) for batch in (1, 8, 128)])
    found = rows_of(frame)
    assert [batch for _, batch in found] == [1, 8]
    assert [row["interpolated"] for row in found.values()] == [False, True]
    # eight times the cache, the products as they are at 1 and at 64
    assert found["bf16", 8]["predicted_s"][0] == pytest.approx((10 + 16) * US)


@pytest.mark.parametrize(
    "found",
    [
        [c for c in BOTH if (c["entry"], c["layer"]) != ("int8", "o_proj")],
        [c | {"n": 999} if c["entry"] == "int8" else c for c in BOTH],
        [c | {"kind": "contender"} if c["entry"] == "int8" else c for c in BOTH],
    ],
    ids=["a layer is missing", "another shape", "a contender of that name"],
)
def test_without_its_products_a_scheme_is_left_out(found):
    assert list(rows_of(latency({"bf16": 20, "int8": 18}), found)) == [("bf16", 1)]


def test_without_a_baseline_there_is_no_speedup_and_without_a_first_token_no_step():
    row = rows_of(latency({"int8": 18}))["int8", 1]
    assert row["shares"]["rest"] == pytest.approx(10 / 18) and row["predicted_speedup"] is row["speedup"] is None
    row = rows_of(latency({"bf16": 20, "int8": 18}, ttft=None))["int8", 1]
    assert row["measured_s"] is row["measured_speedup"] is row["rest_added_s"] is None
    assert row["predicted_speedup"][0] == pytest.approx(1.5) and row["speedup"][0] > 1
    assert _where_it_went(row) == "products save 4 µs"
    assert rows_of(latency({"bf16": 20}, output_tokens=1))["bf16", 1]["measured_s"] is None
    # All tokens came at once, as some engines answer.
    assert rows_of(latency({"bf16": 0}))["bf16", 1]["measured_s"] is None


def test_a_cache_of_8_bits_is_half_and_an_unknown_one_is_left_out():
    assert (_kv_bytes({}), _kv_bytes({"kv_cache_dtype": "fp8_e4m3"}), _kv_bytes({"kv_cache_dtype": "x"})) == (
        2,
        1,
        None,
    )
    found = rows_of(latency({"bf16": 20, "int8": 18}), kv_bytes={"bf16": 1, "int8": None})
    assert list(found) == [("bf16", 1)] and found["bf16", 1]["kv_s"] == pytest.approx(1e-6)


def test_another_architecture_is_left_out():
    mixture = MODEL | {"num_local_experts": 8}
    assert decode_rows(latency({"bf16": 20}), BOTH, {"tiny": mixture}, BANDWIDTHS, "bf16", KV) == []


# --- FP4 ------------------------------------------------------------------------------------------------------------

# Arithmetic never bounds: floors are bytes over 1e12 bytes/s.
SHEET = {"memory_bandwidth_bytes_per_s": 1e12, "matrix_flops_per_s": {"bf16": 1e30, "fp4": 1e30}}
H200 = {"h200": {"compute_capability": "9.0"}}
PLAIN = cells("bf16", 1, share=0.8)
FP8 = cells("fp8", 1, computes="w8a8-fp8", share=0.5, head_share=0.8)


def projected(found, gpus=H200, batches=(1,)):
    return fp4_projection(found, {"tiny": MODEL}, gpus, SHEET, batches, 110, {"h200": 0.5})


def test_a_projection_is_the_other_devices_floor_over_the_share_reached_here():
    (found,) = projected(PLAIN + FP8)
    assert (found["donor"], found["computes"], found["share"]) == ("fp8", "w8a8-fp8", (0.5, 0.5))
    assert found["projection"] is True
    (row,) = found["rows"]
    # 16 bits, 2 (n k + k + n) bytes: twice 16768 + 8448 + 33408 + 16768, once 8448 = 159232 at a share of 0.8;
    # the cache 28160 bytes at half of the bandwidth
    base = 159232 / 1e12 / 0.8 + 28160 / 0.5e12
    # NVFP4, n k / 2 + n k / 16 + 4 + 2 (n + k) bytes: twice 4996 + 2564 + 9860 + 4996 = 44832 at a share of 0.5
    fp4 = 44832 / 1e12 / 0.5 + 8448 / 1e12 / 0.8 + 28160 / 0.5e12
    assert (row["baseline_s"], row["nvfp4_s"]) == pytest.approx((base, fp4))
    assert row["speedup"] == pytest.approx(base / fp4)
    assert row["datasheet_speedup"] == pytest.approx((159232 + 28160) / (44832 + 8448 + 28160))


def test_without_fp8_the_share_of_16_bits_is_taken():
    others = cells("int8", 1, computes="w8a8-int8", share=0.3) + cells("marlin", 1, computes="w4a16", share=0.2)
    (found,) = projected(others + PLAIN)
    assert (found["donor"], found["share"]) == ("bf16", (0.8, 0.8))
    # A share of more than the data sheet is a product in a cache.
    (found,) = projected(cells("bf16", 1, share=1.7))
    assert found["share"] == (1, 1) and found["rows"][0]["speedup"] < 159232 / (44832 + 8448)


@pytest.mark.parametrize(
    ("found", "gpus"),
    [
        (PLAIN, {"h200": {"compute_capability": "9.0"}, "b200": {"compute_capability": "10.0"}}),
        (PLAIN, {"h200": {"compute_capability": "12.0"}}),
        (PLAIN, {"h200": {"compute_capability": None}}),
        (FP8, H200),
        (cells("int8", 1, computes="w8a8-int8", share=0.3), H200),
        (cells("bf16", 1), H200),
    ],
    ids=["a b200 too", "an rtx 5090", "a cpu", "nothing in 16 bits", "neither", "no rate in the data sheet"],
)
def test_nothing_is_projected(found, gpus):
    assert projected(found, gpus) == []


def test_only_where_products_were_timed():
    (found,) = projected(PLAIN, batches=(1, 8, 128))
    assert [row["batch_size"] for row in found["rows"]] == [1, 8]
    (found,) = projected(cells("bf16", 1, share=0.8, tokens=(1, 64, 8192)), batches=None)
    assert [row["batch_size"] for row in found["rows"]] == [1, 64]


def test_the_format_and_the_device_are_those_of_the_configs():
    scheme = load_schemes(ROOT / "config" / "schemes")["nvfp4"]
    assert NVFP4["weights"].items() <= scheme["format"]["weights"].items() and scheme["ignore"] == ["lm_head"]
    assert gemm_bytes(1, 128, 64, NVFP4) == 4996
    sheet = load_gpus(ROOT / "config" / "gpus.yaml")[TARGET]
    assert float(sheet["compute_capability"]) >= 10 and sheet["matrix_flops_per_s"]["fp4"]
