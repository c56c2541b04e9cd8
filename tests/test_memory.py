"""What fits where: the arithmetic before anything runs, and the engine's own figures beside it."""

import json

import pytest
from quantbench import memory
from quantbench.gpus import load_gpus
from quantbench.schemes import load_schemes
from quantbench.study import ROOT

SCHEMES = load_schemes(ROOT / "config" / "schemes")
GPUS = load_gpus(ROOT / "config" / "gpus.yaml")
LLAMA = json.loads((ROOT / "config" / "architectures" / "llama-3.1-8b" / "config.json").read_text())
ENGINE = {"dtype": "bfloat16", "max_num_seqs": 256, "tensor_parallel_size": 1, "enforce_eager": True}
# 8 heads of 128, a key and a value of 2 bytes each, 32 layers: 131072 bytes a token
TOKEN_BYTES = 2 * 2 * 8 * 128 * 32


def predicted(gpu="h100", scheme="bf16", **settings):
    return memory.predicted(LLAMA, SCHEMES[scheme], ENGINE | settings, GPUS[gpu])


def test_the_shipped_architecture_has_the_published_number_of_parameters():
    # 8.03 billion (arXiv 2407.21783, table 3: 8B) of 2 bytes
    assert predicted()["weight_bytes"] == pytest.approx(2 * 8.03e9, rel=0.002)


def test_room_is_what_weights_and_the_largest_step_leave():
    found = predicted()
    # two hidden states and three inner ones of 16384 tokens in 16 bits; logits of 256 sequences, twice in 32 bits
    step = 2 * 16384 * (2 * 4096 + 3 * 14336) + 2 * 4 * 256 * 128256
    room = 0.9 * 80e9 - found["weight_bytes"] - step - 1e9
    assert found["kv_cache_tokens"] == int(room / TOKEN_BYTES) and found["fits"]
    # graphs take some of it
    assert predicted(enforce_eager=False)["kv_cache_tokens"] < found["kv_cache_tokens"]
    # half the bytes a token, twice the tokens
    assert predicted(kv_cache_dtype="fp8")["kv_cache_tokens"] == pytest.approx(2 * found["kv_cache_tokens"], rel=1e-5)
    assert predicted(scheme="bf16-kv8")["kv_cache_tokens"] == pytest.approx(2 * found["kv_cache_tokens"], rel=1e-5)


def test_what_the_study_sets_aside_is_the_cache():
    assert predicted(kv_cache_memory_bytes=TOKEN_BYTES * 100, max_model_len=100) | {"weight_bytes": 0} == {
        "weight_bytes": 0, "kv_cache_tokens": 100, "longest": 100, "fits": True,
    }  # fmt: skip
    assert predicted(kv_cache_memory_bytes=TOKEN_BYTES * 100, max_model_len=101)["fits"] is False
    # a CPU's memory is not known beforehand
    assert predicted("cpu")["fits"] is None


def test_devices_share_weights_and_cache():
    one, two = predicted(), predicted(tensor_parallel_size=2)
    assert two["weight_bytes"] == one["weight_bytes"] / 2
    assert two["kv_cache_tokens"] > 2 * one["kv_cache_tokens"]


def test_four_bits_fit_where_sixteen_do_not():
    # 16 GB of weights, 16 GB of device
    settings = {"max_model_len": 2048, "dtype": "float16", "max_num_batched_tokens": 2048}
    assert predicted("t4", **settings) | {"weight_bytes": 0, "longest": 0} == {
        "weight_bytes": 0, "kv_cache_tokens": 0, "longest": 0, "fits": False,
    }  # fmt: skip
    assert predicted("t4", "gptq-int4", **settings)["fits"]
    manifest = {
        "study": {"engine": ENGINE | settings},
        "gpus": {"t4": GPUS["t4"]},
        "models": {"llama": {"config": LLAMA}},
        "schemes": {name: SCHEMES[name] for name in ("bf16", "gptq-int4")},
    }
    lines = memory.fit_lines(manifest)
    assert lines[2].startswith("  t4: 1 of 2 variants fit; the least room has llama/gptq-int4: ")
    assert lines[3].startswith("  t4: llama/bf16 does not fit: 16.1 GB of weights leave room for 0 cached tokens")


def test_an_unknown_architecture_is_not_guessed_at():
    config = {"num_local_experts": 8, "max_position_embeddings": 4096}
    found = memory.predicted(config, SCHEMES["bf16"], ENGINE, GPUS["h100"])
    assert found == {"weight_bytes": None, "kv_cache_tokens": None, "longest": 4096, "fits": None}


def test_rows_have_what_the_engine_took_beside_what_was_expected():
    point = {"model": "llama", "scheme": "bf16", "gpu": "h100"}
    manifest = {"models": {"llama": {"config": LLAMA}}, "schemes": SCHEMES, "gpus": GPUS, "study": {"engine": ENGINE}}
    taken = {"weight_bytes": 16_100_000_000, "kv_cache_bytes": 1 << 30, "graph_bytes": None, "peak_bytes": 1 << 34}
    loaded = {"weight_bytes": 7, "kv_cache_tokens": 8192, "kernels": [], "memory": taken}
    [row] = memory.rows(manifest, {"gpu": "h100"}, point, {"status": "ok", "rows": [loaded]})
    assert row["weight_bytes"] == 16_100_000_000 and row["kv_cache_tokens"] == 8192 and row["predicted_fits"]
    # a record from before the engine was asked has the files' size; no weights at all are no size
    [row] = memory.rows(manifest, {}, point, {"status": "ok", "rows": [{"weight_bytes": 7, "kv_cache_tokens": 8192}]})
    assert row["weight_bytes"] == 7 and row["peak_bytes"] is None
    # out of memory: a row all the same
    [row] = memory.rows(manifest, {"status": "out_of_memory"}, point, {"status": "out_of_memory", "rows": []})
    assert row["status"] == "out_of_memory" and row["predicted_fits"] and "peak_bytes" not in row


def test_the_report_says_where_the_expectation_was_wrong():
    from quantbench.sections_memory import _verdict

    def said(status, expected):
        return _verdict({"status": status, "predicted_fits": expected})

    assert [said("ok", True), said("out_of_memory", False)] == ["fits, as expected", "does not fit, as expected"]
    assert said("out_of_memory", True) == "expected to fit, but ran out of memory"
    assert said("ok", False) == "expected not to fit, but it does"
    assert said("unsupported", True) == "unsupported"
