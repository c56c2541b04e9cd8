"""The store's points become tidy tables: nothing lost, nothing converted in silence, every gap with its reason."""

import copy
import csv
import json
import re
import shutil
from pathlib import Path

import build_tables as script
import polars
import pytest
from quantbench.errors import UserError
from quantbench.gpus import load_gpus
from quantbench.keys import key
from quantbench.roofline import gemm_bytes
from quantbench.store import Store
from quantbench.table_schema import SCHEMA
from quantbench.tables import build_tables, read_tables, safetensors_size, write_tables
from synthetic import synthetic_study
from synthetic_facts import BYTES, DOCUMENTS, GPUS, QUESTIONS, REQUESTS, SCHEMES

POLARS = {"str": polars.String, "int": polars.Int64, "float": polars.Float64, "bool": polars.Boolean}


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return synthetic_study(folder), folder


@pytest.fixture
def study(made_once, tmp_path):
    """A manifest and a store of its own to spoil."""
    manifest, folder = made_once
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return copy.deepcopy(manifest), Store(tmp_path / "store")


@pytest.fixture
def tables(study):
    return build_tables(*study)


def rows(tables, table, **wanted):
    return [row for row in tables[table].to_dicts() if all(row[name] == value for name, value in wanted.items())]


def point(manifest, **wanted):
    return next(p for p in manifest["points"] if all(p[name] == value for name, value in wanted.items()))


def test_columns_and_types_are_the_schema(tables):
    assert list(tables) == list(SCHEMA)
    for table, frame in tables.items():
        assert dict(frame.schema) == {name: POLARS[column.type] for name, column in SCHEMA[table].items()}, table
        assert len(frame) > 0, table


def test_rows_are_counted(tables):
    # two batches of 5 repeats; throughput the same; three loads; two filters; two layers; the head's product
    wanted = {"gpu": "cpu", "scheme": "bf16", "status": "ok"}
    assert len(rows(tables, "latency", **wanted)) == 2 * 5
    assert len(rows(tables, "throughput", **wanted)) == 2 * 5
    assert len(rows(tables, "serving", **wanted)) == 3 * REQUESTS
    assert len(rows(tables, "accuracy", **wanted)) == 2 * QUESTIONS
    assert len(rows(tables, "perplexity", **wanted)) == DOCUMENTS
    # the baseline's own, which the others are compared with
    assert [row["kl_divergence"] for row in rows(tables, "fidelity", **wanted)] == [None] * DOCUMENTS
    assert {row["start"] for table in ("kernels", "serving", "accuracy") for row in rows(tables, table)} == {1}
    assert len(rows(tables, "kernels", **wanted, stage="engine")) == 2
    assert len(rows(tables, "kernels", **wanted, stage="server")) == 2
    assert len(rows(tables, "gemm", **wanted, layer="lm_head")) == 2 * 3


def test_parameters_become_columns(tables):
    row = rows(tables, "serving", gpu="cpu", scheme="bf16", load="rate")[0]
    assert (row["rate_per_s"], row["concurrency"]) == (2.0, None)
    assert (row["input_tokens_asked"], row["output_tokens_asked"]) == (64, 16)
    row = rows(tables, "accuracy", gpu="cpu", scheme="bf16")[0]
    assert (row["task"], row["dataset"], row["shots"]) == ("gsm8k", "arithmetic", 3)


def test_a_point_that_is_not_ok_is_one_row_with_its_parameters_and_reason(tables):
    (row,) = rows(tables, "throughput", gpu="h200", scheme="nvfp4", batch_size=64)
    assert (row["status"], row["reason"]) == ("out_of_memory", "the KV cache")
    assert (row["repeat"], row["elapsed_s"]) == (None, None)
    assert {r["status"] for r in rows(tables, "latency", scheme="int8-online")} == {"invalid"}


def test_what_a_device_cannot_run_is_in_every_table_about_it(tables):
    for table in ("kernels", "gemm", "latency", "throughput", "serving", "accuracy", "perplexity"):
        found = rows(tables, table, gpu="cpu", scheme="nvfp4", status="unsupported")
        assert {row["reason"] for row in found} == {"no CPU kernel computes FP4"}, table


def test_a_variant_skipped_everywhere_is_in_every_table_and_among_the_checkpoints(study):
    manifest, store = study
    manifest["points"] = [p for p in manifest["points"] if p["scheme"] != "nvfp4"]
    for gpu, reason in (("cpu", "no kernel"), ("h200", "needs capability 10.0")):
        manifest["skips"].append({"stage": "load", "gpu": gpu, "model": "tiny", "scheme": "nvfp4", "reason": reason})
    checkpoint = next(c for c in manifest["checkpoints"] if c["scheme"] == "nvfp4")
    (store.folder("checkpoints", checkpoint["key"]) / "quantbench.json").unlink()
    tables = build_tables(manifest, store)
    for table in ("kernels", "gemm", "latency", "throughput", "serving", "accuracy", "perplexity"):
        (row,) = rows(tables, table, gpu="cpu", scheme="nvfp4")
        assert (row["status"], row["reason"], row["run_id"]) == ("unsupported", "no kernel", None)
    (row,) = rows(tables, "checkpoints", scheme="nvfp4")
    assert (row["status"], row["bytes"]) == ("unsupported", None)
    assert row["reason"] == "cpu: no kernel; h200: needs capability 10.0"


def test_a_skip_of_one_stage_stays_in_its_table(tables):
    (row,) = rows(tables, "gemm", gpu="cpu", scheme="int8-online")
    assert row["status"] == "unsupported"
    assert "while it loads" in row["reason"]
    assert not rows(tables, "latency", scheme="int8-online", status="unsupported")


def test_verdicts_compare_the_promise_with_what_ran(tables):
    verdicts = {(row["gpu"], row["scheme"]): row["verdict"] for row in rows(tables, "kernels", stage="server")}
    assert verdicts["cpu", "rtn-int4"] == "computes_other"
    assert verdicts["h200", "rtn-int4"] == "as_promised"
    assert verdicts["h200", "nvfp4"] == "computes_other"
    assert verdicts["cpu", "int8-online"] == "unquantized"
    assert verdicts["cpu", "bf16"] == "as_promised"
    # its loads are invalid, but what the server said of its kernels stands
    assert {row["status"] for row in rows(tables, "kernels", stage="server")} == {"ok"}


def test_a_layer_that_the_scheme_ignores_is_promised_unquantized(study):
    manifest, store = study
    load = point(manifest, stage="load", gpu="cpu", scheme="rtn-int4")
    record = store.read_point(load["key"])
    head = {"layer_kind": "lm_head", "count": 1, "kernel": "U", "computes": "bf16", "quantized": False}
    record["rows"][0]["kernels"].append(head)
    rewrite(store, record)
    (row,) = rows(build_tables(manifest, store), "kernels", gpu="cpu", scheme="rtn-int4", layer_kind="lm_head")
    assert (row["expected"], row["verdict"]) == ("bf16", "as_promised")


def test_gemm_floor_uses_the_probe_and_what_the_kernel_computes(tables):
    # bf16, m=256 on the cpu: bytes 2 (512*256 + 256*256 + 256*512) = 655360 at 4e10 B/s = 16.4 us;
    # operations 2*256*512*256 = 67.1e6 at 1e12/s = 67.1 us, the longer
    row = rows(tables, "gemm", gpu="cpu", scheme="bf16", layer="qkv_proj", m=256)[0]
    assert row["floor_s"] == pytest.approx(67.1e-6, rel=1e-3)
    # int8 runs at twice that rate: 33.6 us
    row = rows(tables, "gemm", gpu="cpu", scheme="int8-smoothquant", layer="qkv_proj", m=256)[0]
    assert row["floor_s"] == pytest.approx(33.55e-6, rel=1e-3)
    # one row of activations: the memory bus bounds it, and 4-bit weights are fewer bytes
    row = rows(tables, "gemm", gpu="h200", scheme="rtn-int4", layer="qkv_proj", m=1)[0]
    assert row["floor_s"] == pytest.approx(gemm_bytes(1, 512, 256, SCHEMES["rtn-int4"]["format"]) / 4.2e12)


def test_no_measured_ceiling_no_floor(study):
    manifest, store = study
    record = store.read_point(point(manifest, stage="probe", gpu="cpu")["key"])
    record["rows"][0] |= {"bandwidth_bytes_per_s": None, "matrix_flops_per_s": None}
    rewrite(store, record)
    tables = build_tables(manifest, store)
    assert {row["floor_s"] for row in rows(tables, "gemm", gpu="cpu")} == {None}
    assert {row["measured_flops_per_s"] for row in rows(tables, "gpus", gpu="cpu")} == {None}


def test_data_sheet_and_probe_stand_side_by_side(tables):
    (row,) = rows(tables, "gpus", gpu="h200", dtype="int8")
    assert (row["datasheet_flops_per_s"], row["measured_flops_per_s"]) == (1978.9e12, 1.3e15)
    assert (row["datasheet_bandwidth_bytes_per_s"], row["measured_bandwidth_bytes_per_s"]) == (4.8e12, 4.2e12)


def test_checkpoint_sizes(tables):
    (row,) = rows(tables, "checkpoints", scheme="rtn-int4")
    assert (row["bytes"], row["calibration_key"], row["quantize_s"]) == (BYTES["rtn-int4"], None, 12.5)
    (row,) = rows(tables, "checkpoints", scheme="bf16")
    # 4.2 million bf16 weights: 16 bits each and a header of some bytes
    assert (row["parameters"], row["quantize_s"]) == (4_200_000, None)
    assert row["bits_per_weight"] == pytest.approx(16, rel=1e-4)
    assert len(rows(tables, "checkpoints", scheme="int8-smoothquant")[0]["calibration_key"]) == 64


def test_a_folder_without_safetensors_has_no_size(tmp_path):
    assert safetensors_size(tmp_path) == {"bytes": None, "parameters": None, "bits_per_weight": None}


def test_runs_are_those_of_the_points(study, tables):
    _, store = study
    store.write_run({"run_id": "of-another-study", "stage": "measure_engine", "gpu": "cpu"})
    again = build_tables(*study)
    assert again["runs"].equals(tables["runs"])
    row = rows(tables, "runs", run_id="measure_engine-cpu-tiny-bf16")[0]
    assert json.loads(row["versions"]) == {"vllm": "0.32.0", "torch": "2.13.0"}


def test_points_of_a_killed_process_keep_their_run_id(study):
    manifest, store = study
    (store.root / "runs" / "measure_engine-cpu-tiny-bf16.json").unlink()
    (row,) = rows(build_tables(manifest, store), "runs", run_id="measure_engine-cpu-tiny-bf16")
    assert (row["gpu"], row["started_at"]) == ("cpu", None)


def test_serving_points_that_the_engine_decided_name_no_server(study):
    manifest, store = study
    serving = point(manifest, stage="serving", gpu="cpu", scheme="bf16")
    run_id = store.read_point(point(manifest, stage="load", gpu="cpu", scheme="bf16")["key"])["run_id"]
    kernels = store.read_point(point(manifest, stage="load", gpu="cpu", scheme="bf16")["key"])["rows"][0]["kernels"]
    store.write_run(store.read_run(run_id) | {"kernels": kernels})
    for other in manifest["points"]:
        if other["stage"] == "serving" and (other["gpu"], other["scheme"]) == ("cpu", "bf16"):
            store.point_path(other["key"]).unlink()
            store.write_failure(other["identity"], ("invalid", "ran unquantized"), run_id)
    tables = build_tables(manifest, store)
    wanted = {"gpu": "cpu", "model": serving["model"], "scheme": "bf16"}
    assert rows(tables, "kernels", **wanted, stage="engine")
    assert not rows(tables, "kernels", **wanted, stage="server")


def test_what_is_missing_is_counted(study):
    manifest, store = study
    for stage in ("latency", "accuracy"):
        store.point_path(point(manifest, stage=stage, gpu="cpu", scheme="bf16")["key"]).unlink()
    checkpoint = next(c for c in manifest["checkpoints"] if c["scheme"] == "rtn-int4")
    (store.folder("checkpoints", checkpoint["key"]) / "quantbench.json").unlink()
    total = len({p["key"] for p in manifest["points"]})
    with pytest.raises(UserError, match=f"2 of {total} points and 1 of 4 checkpoints; run `snakemake`"):
        build_tables(manifest, store)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"repeat": "0"}, "latency.repeat is int, but a stored row has '0'"),
        ({"repeat": 0.0}, "latency.repeat is int"),
        ({"repeat": True}, "latency.repeat is int"),
        ({"elapsed_s": "1.0"}, "latency.elapsed_s is float"),
        ({"elapsed_s": [1.0]}, "latency.elapsed_s is float"),
        ({"elapsed": 1.0}, "table latency has no column elapsed"),
    ],
)
def test_a_row_that_does_not_fit_is_refused(study, wrong, message):
    manifest, store = study
    record = store.read_point(point(manifest, stage="latency", gpu="cpu", scheme="bf16")["key"])
    record["rows"][0] |= wrong
    rewrite(store, record)
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        build_tables(manifest, store)


def test_an_integer_in_a_float_column_is_a_float(study):
    manifest, store = study
    record = store.read_point(point(manifest, stage="latency", gpu="cpu", scheme="bf16")["key"])
    record["rows"][0]["elapsed_s"] = 2
    rewrite(store, record)
    assert rows(build_tables(manifest, store), "latency", gpu="cpu", scheme="bf16")[0]["elapsed_s"] == 2.0


def test_rows_follow_the_study_not_the_store(study, tables):
    manifest, store = study
    keys = list(dict.fromkeys(zip(*(tables["latency"][name] for name in ("gpu", "scheme")), strict=True)))
    assert keys == [(gpu, scheme) for gpu in ("cpu", "h200") for scheme in SCHEMES]
    manifest["points"].sort(key=lambda p: (p["gpu"] != "h200", p["stage"]))
    assert [r["gpu"] for r in rows(build_tables(manifest, store), "gpus")] == ["cpu"] * 2 + ["h200"] * 3


def test_written_tables_read_back_and_csv_says_the_same(tmp_path, tables):
    write_tables(tables, tmp_path / "tables")
    again = read_tables(tmp_path / "tables")
    assert all(again[table].equals(frame) for table, frame in tables.items())
    names = {f"{table}.{ending}" for table in SCHEMA for ending in ("parquet", "csv")}
    assert {path.name for path in (tmp_path / "tables").iterdir()} == names
    for table, frame in tables.items():
        with open(tmp_path / "tables" / f"{table}.csv", newline="") as file:
            found = list(csv.DictReader(file))
        assert len(found) == len(frame)
        assert list(found[0]) == frame.columns
    # the last table's
    assert found[0]["negative_log_likelihood"] == str(frame["negative_log_likelihood"][0])


def test_the_script_writes_tables_and_says_what_is_missing(study, tmp_path):
    manifest, store = study
    options = [f"--manifest={tmp_path}/manifest.json", f"--store={store.root}", f"--output={tmp_path}/tables"]
    script.main(options)
    assert read_tables(tmp_path / "tables")["latency"].equals(build_tables(manifest, store)["latency"])
    store.point_path(manifest["points"][0]["key"]).unlink()
    with pytest.raises(UserError, match="1 of"):
        script.main(options)


def test_two_models_do_not_mix(tmp_path):
    manifest = synthetic_study(tmp_path, models=("tiny", "small"))
    tables = build_tables(manifest, tmp_path / "store")
    assert len(rows(tables, "latency", model="small", status="ok")) == len(
        rows(tables, "latency", model="tiny", status="ok")
    )
    assert set(tables["latency"]["model"]) == {"tiny", "small"}


def test_the_synthetic_data_sheets_have_the_keys_of_the_real_ones():
    real = load_gpus(Path(__file__).parents[1] / "config" / "gpus.yaml")
    for name, entry in GPUS.items():
        assert set(entry) <= set(real[name])
        assert set(entry["matrix_flops_per_s"]) <= set(real[name]["matrix_flops_per_s"])


def test_the_page_about_tables_says_what_the_schema_says():
    page = (Path(__file__).parents[1] / "docs" / "tables.md").read_text()
    sections = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    assert list(sections) == list(SCHEMA)
    for table, columns in SCHEMA.items():
        found = re.findall(r"^\| `(\w+)` \| (\w+) \| (\S*) ?\| (.*) \|$", sections[table], re.M)
        expected = [(name, c.type, c.unit or "", c.meaning) for name, c in columns.items()]
        assert found == expected, table


def rewrite(store, record):
    """Put a changed record in the place of the measured one."""
    store.point_path(key(record["identity"])).write_text(json.dumps(record))
