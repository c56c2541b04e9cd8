"""Twins: schemes that do the same work, and how far apart they were measured."""

import polars as pl
import pytest
from quantbench.twins import find_twins, widest_gap

INT4 = {"weights": {"num_bits": 4, "group_size": 128}, "input_activations": None}
ZEROS = {"weights": {"num_bits": 4, "group_size": 128, "symmetric": False}, "input_activations": None}
SCHEMES = {"bf16": None, "rtn-int4": INT4, "gptq-int4": INT4, "awq-int4": ZEROS}
MANIFEST = {"schemes": {name: {"format": format} for name, format in SCHEMES.items()}}


def kernel(scheme, name="Marlin", gpu="h200", stage="engine"):
    return {"status": "ok", "stage": stage, "gpu": gpu, "model": "m", "scheme": scheme, "layer_kind": "qkv_proj",
            "kernel": name, "computes": "w4a16"}  # fmt: skip


def latency(scheme, batch_size, seconds, gpu="h200", status="ok"):
    row = {"gpu": gpu, "model": "m", "scheme": scheme, "status": status, "batch_size": batch_size}
    return [row | {"input_tokens": 64, "output_tokens": 32, "elapsed_s": one} for one in seconds]


def test_twins_have_one_format_and_the_same_kernels():
    rows = [kernel(name) for name in SCHEMES]
    # Another format, other kernels on the second device, and what a server ran, make no twins.
    rows += [kernel("rtn-int4", gpu="a100"), kernel("gptq-int4", "ExLlama", gpu="a100")]
    rows += [kernel("gptq-int4", "ExLlama", stage="server")]
    assert find_twins(MANIFEST, rows) == [("h200", "m", "rtn-int4", "gptq-int4")]


def test_the_widest_gap_is_between_medians_of_one_point():
    rows = latency("rtn-int4", 1, [2.0, 3.0, 9.0]) + latency("gptq-int4", 1, [2.0, 2.0, 2.5])
    rows += latency("rtn-int4", 4, [5.0]) + latency("gptq-int4", 4, [4.0]) + latency("gptq-int4", 8, [100.0])
    rows += latency("bf16", 1, [90.0]) + latency("rtn-int4", 4, [500.0], status="invalid")
    tables = {"kernels": pl.DataFrame([kernel(name) for name in SCHEMES]), "latency": pl.DataFrame(rows)}
    gap = widest_gap(MANIFEST, tables)
    # 3.0 / 2.0 at batch 1; 5.0 / 4.0 at batch 4; batch 8 was measured for one of them only
    assert (gap["ratio"], gap["batch_size"], gap["stage"]) == (pytest.approx(1.5), 1, "latency")
    assert gap["schemes"] == ["rtn-int4", "gptq-int4"]


def test_without_twins_nothing_is_known():
    tables = {"kernels": pl.DataFrame([kernel("rtn-int4"), kernel("awq-int4")])}
    tables["latency"] = pl.DataFrame(latency("rtn-int4", 1, [1.0]) + latency("awq-int4", 1, [2.0]))
    assert widest_gap(MANIFEST, tables) is None
    assert widest_gap(MANIFEST, {}) is None
