"""The report's section on the price of quantizing: its sentences follow from the tables."""

import polars as pl
import pytest
from quantbench.schemes import load_schemes
from quantbench.sections import Context
from quantbench.sections_price import AS_PAPERS, BY_WEIGHTS, method, price
from quantbench.study import ROOT
from quantbench.table_schema import SCHEMA
from report_page import copied

SHIPPED = load_schemes(ROOT / "config" / "schemes")
TYPES = {"str": pl.String, "int": pl.Int64, "float": pl.Float64, "bool": pl.Boolean}


def frame(table, rows):
    schema = {name: TYPES[column.type] for name, column in SCHEMA[table].items()}
    return pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)


@pytest.fixture
def priced(study):
    """priced({scheme: {texts: outputs in dB}}) -> the section's first group and the others; weights are at 20 dB less a tenth."""

    def make(errors, room=None, engine=None):
        manifest = copied(study[0])
        config = manifest["study"]
        config["schemes"] = ["bf16", *errors]
        config["engine"] = engine or config["engine"]
        manifest["schemes"] = {"bf16": SHIPPED["bf16"], **{n: SHIPPED[n.partition(".")[0]] for n in errors}}
        keys = {"model": "tiny", "status": "ok"}
        checkpoints = [
            {**keys, "scheme": n, "quantize_s": 2.0, "peak_memory_bytes": 5e8, "bits_per_weight": 4.125}
            | {"calibration": n.partition(".")[2] or None, "calibration_rows": 8, "calibration_tokens": 512}
            for n in errors
        ]
        layers = [
            {
                **keys,
                "scheme": n,
                "texts": t,
                "layer": layer,
                "weight_sqnr_db": 20 - i / 10,
                "output_sqnr_db": db + step,
            }
            for i, (n, by_texts) in enumerate(errors.items())
            for t, db in by_texts.items()
            for layer, step in (("a", -3.0), ("b", 0.0), ("c", 1.0))
        ]
        rooms = [
            {**keys, "gpu": "cpu", "scheme": n, "start": 1, "kv_cache_tokens": tokens}
            for n, tokens in (room or {}).items()
        ]
        made = {"checkpoints": checkpoints, "layers": layers, "memory": rooms}
        section = price(Context(manifest, study[1] | {name: frame(name, rows) for name, rows in made.items()}))
        return section["groups"][0], section["groups"][1:]

    return make


def test_methods_are_told_by_their_modifiers():
    names = {n: method(SHIPPED[n]) for n in ("rtn-int4", "gptq-int4", "awq-int4", "int8-smoothquant")}
    assert list(names.values()) == ["rounding", "GPTQ", "AWQ", "SmoothQuant + GPTQ"]


def test_the_middle_layer_and_the_worst_and_best_are_said(priced):
    group, others = priced({"rtn-int4": {"sums": 17.0}, "int8-rtn": {"sums": 40.0}})
    assert group["heading"].startswith("Outputs stay closest with int8-rtn: 40.0 dB")
    assert "furthest off with rtn-int4: 17.0 dB" in group["heading"] and not others
    columns, row = group["numbers"]["columns"], group["numbers"]["rows"][0]
    # 17 - 3 and 17 + 1
    assert row[columns.index("outputs, dB: middle layer, worst to best")] == "17.0, 14.0 to 18.0"
    assert "GPU memory" not in columns and row[columns.index("bits per weight")] == "4.125"


def test_the_papers_order_is_said_where_it_holds_and_where_not(priced):
    group, _ = priced({"rtn-int4": {"t": 17.0}, "gptq-int4": {"t": 28.0}, "awq-int4-symmetric": {"t": 22.0}})
    [note] = group["notes"]
    assert "outputs gptq-int4 28.0 dB, awq-int4-symmetric 22.0 dB, rtn-int4 17.0 dB" in note
    assert "weights rtn-int4 20.0 dB" in note and note.endswith(AS_PAPERS + BY_WEIGHTS)
    group, _ = priced({"rtn-int4": {"t": 17.0}, "gptq-int4": {"t": 28.0}, "awq-int4-symmetric": {"t": 16.0}})
    assert AS_PAPERS not in group["notes"][0] and "here awq-int4-symmetric does not" in group["notes"][0]
    # Another format is not compared: asymmetric numbers have one level more.
    assert not priced({"rtn-int4": {"t": 17.0}, "awq-int4": {"t": 22.0}})[0]["notes"]


def test_two_calibrations_of_one_scheme_stand_side_by_side(priced):
    errors = {"gptq-int4.own": {"own": 28.0, "web": 22.0}, "gptq-int4.web": {"own": 23.0, "web": 26.0}}
    _, [group] = priced(errors)
    assert "on texts of own calibrated on own, 28.0 dB; on texts of web calibrated on web, 26.0 dB" in group["heading"]
    assert [row[0] for row in group["numbers"]["rows"]] == list(errors)
    assert group["numbers"]["rows"][1][1:3] == ["web: 8 rows, 512 tokens", "23.0, 20.0 to 24.0"]


def test_room_for_the_cache_is_the_engines_own_count(priced):
    errors = {"rtn-int4": {"t": 17.0}}
    group, _ = priced(errors, {"bf16": 100_000, "rtn-int4": 125_000}, {"kv_cache_memory_bytes": None})
    assert group["numbers"]["rows"][0][-1] == "125,000 (+25,000)"
    group, _ = priced(errors, {"bf16": 32_768, "rtn-int4": 32_768}, {"kv_cache_memory_bytes": 1 << 26})
    assert group["numbers"]["rows"][0][-1] == "32,768"
    assert "same for every scheme, 32,768 tokens: the study fixes it" in group["notes"][0]


def test_without_texts_the_weights_are_told(priced, study):
    group, _ = priced({"rtn-int4": {}})
    assert group["heading"] == "rtn-int4 took the longest: 2 s" and not group["panels"]
    # A study whose schemes are all served as they were staged has no such section.
    manifest, tables = copied(study[0]), dict(study[1])
    tables["checkpoints"] = tables["checkpoints"].with_columns(pl.lit(None, pl.Float64).alias("quantize_s"))
    assert price(Context(manifest, tables)) is None
