"""A whole model's time from its products, by hand."""

import pytest
from quantbench.errors import UserError
from quantbench.performance_model import (
    Gemms,
    account,
    achieved_shares,
    attention_flops,
    decode_step,
    kv_bytes_per_token,
    layer_times,
    predicted_speedup,
    prefill,
    project,
    time_at,
)
from quantbench.roofline import layer_shapes

LLAMA_8B = {
    "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32,
    "intermediate_size": 14336, "vocab_size": 128256,
}  # fmt: skip

# Two kinds of layer, three blocks.
MODEL = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}
SHAPES = [{"layer": "mlp", "n": 100, "k": 50, "count": 3}, {"layer": "lm_head", "n": 200, "k": 50, "count": 1}]
# Time is constant up to M = 16 and proportional to M from there.
BF16 = {
    ("mlp", 1): (4e-6, 3e-6, 5e-6), ("mlp", 16): (4e-6, 3e-6, 5e-6), ("mlp", 1024): (256e-6, 192e-6, 320e-6),
    ("lm_head", 1): (8e-6, 7e-6, 9e-6), ("lm_head", 16): (8e-6, 7e-6, 9e-6),
}  # fmt: skip
# A quarter of the bytes: a quarter of the time, where weights dominate; nothing gained where arithmetic does.
INT4 = {key: tuple(part / 4 for part in time) for key, time in BF16.items()} | {("mlp", 1024): BF16["mlp", 1024]}


def test_interpolation_is_exact_on_both_branches_of_the_roofline():
    assert time_at(BF16, "mlp", 1) == (4e-6, 3e-6, 5e-6)
    assert time_at(BF16, "mlp", 5) == pytest.approx((4e-6, 3e-6, 5e-6))
    # proportional to M: 64 is 4 x 16
    assert time_at(BF16, "mlp", 64) == pytest.approx((16e-6, 12e-6, 20e-6))
    # between 1 us at 1 and 256 us at 1024: slope ln 256 / ln 1024 = 0.8, so 32^0.8 = 16 us at 32
    assert time_at({("mlp", 1): (1e-6, None, None), ("mlp", 1024): (256e-6, 1, 1)}, "mlp", 32) == pytest.approx(
        (16e-6, None, None)
    )


def test_nothing_is_extrapolated_and_nothing_is_missing():
    with pytest.raises(UserError, match="lm_head: M = 17 .* 1 to 16"):
        time_at(BF16, "lm_head", 17)
    with pytest.raises(UserError, match="M = 8 .* 16 to 16"):
        time_at({("mlp", 16): (1, 1, 1)}, "mlp", 8)
    with pytest.raises(
        UserError, match=r"no times of qkv_proj, o_proj, gate_up_proj, down_proj \(measured: lm_head, mlp"
    ):
        layer_times(layer_shapes(LLAMA_8B), BF16, dict.fromkeys(["lm_head"], 1))
    with pytest.raises(UserError, match="no times of o_proj's products"):
        time_at(BF16, "o_proj", 1)


def test_bytes_of_the_cache():
    # 2 x 32 blocks x 8 heads x 128 x 2 bytes = 131072: 128 KiB per token of Llama 3 8B
    assert kv_bytes_per_token(LLAMA_8B) == 131072
    assert kv_bytes_per_token(LLAMA_8B, element_bytes=1) == 65536
    assert kv_bytes_per_token(LLAMA_8B, tensor_parallel_size=2) == 65536
    # sixteen devices, eight heads: each keeps a copy of one
    assert kv_bytes_per_token(LLAMA_8B, tensor_parallel_size=16) == 131072 // 8
    assert kv_bytes_per_token({**LLAMA_8B, "head_dim": 64}) == 65536
    assert kv_bytes_per_token({"text_config": LLAMA_8B}) == 131072


def test_arithmetic_of_attention():
    # 3 blocks x 4 heads x 4 x head_dim 16 = 768 per pair; 10 x 11 / 2 = 55 pairs; two sequences
    assert attention_flops(MODEL, 2, 10) == 2 * 768 * 55
    assert attention_flops(MODEL, 2, 10, tensor_parallel_size=2) == 768 * 55


def test_a_decode_step():
    # cache: 2 x 3 blocks x 2 heads x 16 x 2 bytes = 384 per token; 16 sequences x 1000 tokens at 1e12 bytes/s
    step = decode_step(SHAPES, BF16, 16, 1000, MODEL, 1e12)
    assert step["kv_s"] == pytest.approx(16 * 1000 * 384 / 1e12)
    # 3 x 4 us + 8 us = 20 us; lows 3 x 3 + 7 = 16, highs 3 x 5 + 9 = 24
    assert step["gemm_s"] == pytest.approx((20e-6, 16e-6, 24e-6))
    assert step["total_s"] == pytest.approx((26.144e-6, 22.144e-6, 30.144e-6))
    assert step["layers"]["mlp"] == pytest.approx((12e-6, 9e-6, 15e-6))
    assert step["gemm_share"] == pytest.approx(20 / 26.144)
    assert step["kv_share"] == pytest.approx(6.144 / 26.144)
    assert not step["projection"]
    half = decode_step(SHAPES, BF16, 16, 1000, MODEL, 1e12, kv_element_bytes=1)
    assert half["kv_s"] == pytest.approx(step["kv_s"] / 2)


def test_an_unknown_interval_stays_unknown():
    times = BF16 | {("mlp", 16): (4e-6, None, None)}
    step = decode_step(SHAPES, times, 16, 0, MODEL, 1e12)
    assert step["total_s"] == (pytest.approx(20e-6), None, None)
    assert predicted_speedup(step, step)["speedup"] == (1.0, None, None)


def test_prefill_counts_prompts_once_and_the_head_per_sequence():
    # 2 x 512 = 1024 rows at once: 3 x 256 us; lm_head on 2 rows: 8 us
    whole = prefill(SHAPES, BF16, 2, 512, MODEL, 1e12, 1e15)
    assert whole["layers"]["mlp"][0] == pytest.approx(768e-6)
    assert whole["layers"]["lm_head"][0] == pytest.approx(8e-6)
    assert whole["attention_s"] == pytest.approx(2 * 768 * 512 * 513 / 2 / 1e15)
    assert whole["kv_s"] == pytest.approx(1024 * 384 / 1e12)
    assert whole["total_s"][0] == pytest.approx(776e-6 + whole["attention_s"] + whole["kv_s"])
    # in chunks of 400: 400, 400 and 224 rows, proportional to M: the same 1024 rows' time
    chunked = prefill(SHAPES, BF16, 2, 512, MODEL, 1e12, 1e15, chunk_tokens=400)
    assert chunked["layers"]["mlp"] == pytest.approx(whole["layers"]["mlp"])
    # in chunks of 8, where time does not shrink with M: 128 chunks x 3 x 4 us
    assert prefill(SHAPES, BF16, 2, 512, MODEL, 1e12, 1e15, 8)["layers"]["mlp"][0] == pytest.approx(128 * 12e-6)
    # chunks longer than the prompts change nothing
    assert prefill(SHAPES, BF16, 2, 512, MODEL, 1e12, 1e15, 9999) == whole


def test_where_a_speedup_comes_from():
    base = decode_step(SHAPES, BF16, 16, 1000, MODEL, 1e12)
    fast = decode_step(SHAPES, INT4, 16, 1000, MODEL, 1e12)
    found = predicted_speedup(base, fast)
    # 26.144 us over 5 + 6.144 us; low: 22.144 over 6 + 6.144
    assert found["speedup"] == pytest.approx((26.144 / 11.144, 22.144 / 12.144, 30.144 / 10.144))
    assert found["gemm_speedup"] == pytest.approx((4, 16 / 6, 24 / 4))
    # 15 us of 26.144 saved, all of it in the products: 9 in the mlp, 6 in the head
    assert found["saved_share"] == pytest.approx({"gemm": 15 / 26.144, "kv": 0, "attention": 0})
    assert sum(found["saved_share"].values()) == pytest.approx(1 - 1 / found["speedup"][0])
    assert found["layers"] == pytest.approx({"mlp": 9 / 26.144, "lm_head": 6 / 26.144})


def test_where_a_speedup_went():
    base = decode_step(SHAPES, BF16, 16, 1000, MODEL, 1e12)
    fast = decode_step(SHAPES, INT4, 16, 1000, MODEL, 1e12)
    # The engine takes 40 us and 30 us: 13.856 us outside the model before, 18.856 us after.
    found = account(base, fast, 40e-6, 30e-6)
    assert found["observed_speedup"] == pytest.approx(40 / 30)
    assert found["predicted_speedup"] == pytest.approx(26.144 / 11.144)
    assert found["gemm_saved_s"] == pytest.approx(15e-6)
    assert found["outside_s"] == pytest.approx({"baseline": 13.856e-6, "scheme": 18.856e-6})
    assert found["outside_lost_s"] == pytest.approx(5e-6)


NVFP4 = {"weights": {"num_bits": 4, "strategy": "tensor_group", "group_size": 10, "symmetric": True}}


def test_a_projection_is_a_floor_over_an_achieved_share():
    # bf16 mlp, one row: (100 x 50 + 50 + 100) x 2 = 10300 bytes at 1e10 bytes/s = 1.03 us; 4 us measured
    shares = achieved_shares(SHAPES, BF16, None, 1e10, 1e15)
    assert shares["mlp", 1] == pytest.approx((1.03 / 4, 1.03 / 5, 1.03 / 3))
    # NVFP4: 2500 + 100 x 50 / 10 + 4 + 300 = 3304 bytes, at twice the bandwidth, over the same share
    gemms = project(SHAPES, shares, NVFP4, 2e10, 1e15)
    assert gemms.times["mlp", 1] == pytest.approx(
        (3304 / 2e10 / (1.03 / 4), 3304 / 2e10 / (1.03 / 3), 3304 / 2e10 / (1.03 / 5))
    )
    # the slow end of the measurement is the slow end of the projection
    value, low, high = gemms.times["mlp", 1]
    assert low < value < high
    # onto itself: what was measured comes back
    assert project(SHAPES, shares, None, 1e10, 1e15).times["lm_head", 16] == pytest.approx(BF16["lm_head", 16])


def test_a_projection_is_marked_wherever_it_goes():
    shares = achieved_shares(SHAPES, BF16, None, 1e10, 1e15)
    gemms = project(SHAPES, shares, NVFP4, 2e10, 1e15, assumption="FP4 reaches what bf16 reaches")
    step = decode_step(SHAPES, gemms, 1, 10, MODEL, 2e10)
    assert step["projection"] and step["assumption"] == "FP4 reaches what bf16 reaches"
    measured = decode_step(SHAPES, Gemms(BF16), 1, 10, MODEL, 2e10)
    assert not measured["projection"]
    assert predicted_speedup(measured, step)["projection"]
    assert not predicted_speedup(measured, measured)["projection"]
    assert prefill(SHAPES, gemms, 1, 16, MODEL, 2e10, 1e15)["projection"]
    with pytest.raises(UserError, match="no rate"):
        project(SHAPES, shares, NVFP4, 2e10, None)


def test_llama_on_an_ideal_device():
    """Products at their floors give the floor of the decode step: every weight once."""
    shapes = layer_shapes(LLAMA_8B)
    ideal = {(s["layer"], 1): ((s["n"] * s["k"] * 2) / 4.8e12, None, None) for s in shapes}
    step = decode_step(shapes, ideal, 1, 4096, LLAMA_8B, 4.8e12)
    # 7.50e9 weights x 2 bytes / 4.8e12 = 3.13 ms; 4096 x 131072 bytes = 0.11 ms
    assert step["gemm_s"][0] == pytest.approx(3.13e-3, rel=2e-3)
    assert step["kv_s"] == pytest.approx(0.1118e-3, rel=1e-3)
