"""From the store to tidy tables: every point of a manifest becomes its rows, or one row that says why it has none."""

import io
import json
import uuid
from pathlib import Path

from quantbench import memory
from quantbench.dummy import is_dummy
from quantbench.energy import energy_rows
from quantbench.engine_args import dtype_of
from quantbench.errors import UserError
from quantbench.jobs import stored_as
from quantbench.kernel_verdict import OWN_FLOAT, promised_of, verdict
from quantbench.keys import canonical_json, key
from quantbench.layers import layer_rows
from quantbench.model_fit import left_alone, linear_layers
from quantbench.phases import with_tpot
from quantbench.points import lacking_layers
from quantbench.quantize.checkpoint import bits_per_weight, quantized_layers, tensors
from quantbench.roofline import floor_s, gemm_bytes, gemm_flops, rate_dtype
from quantbench.serving_points import SENT
from quantbench.serving_points import columns as serving_columns
from quantbench.start_phases import start_rows
from quantbench.store import Store
from quantbench.support_table import support_rows
from quantbench.table_schema import SCHEMA

TABLE_OF_STAGE = {"probe": "gpus", "load": "kernels", "reference": "fidelity"}

ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}

PYTHON_TYPES = {"str": str, "int": int, "float": (int, float), "bool": bool}


def build_tables(manifest, store):
    """{table: polars.DataFrame} of a study. `manifest` is results/<study>/manifest.json, `store` a Store or its folder.

    Rows follow the order of the manifest: gpu, model and scheme as the study lists them. Raises UserError when anything
    of the manifest is not in the store yet, TypeError or ValueError when a stored row does not fit SCHEMA.
    """
    store = store if isinstance(store, Store) else Store(store)
    points = [(point, store.read_point(point["key"])) for point in manifest["points"]]
    _check_nothing_missing(manifest, store, points)
    runs = store.read_runs()
    rows = {table: [] for table in SCHEMA}
    ceilings = _measured_ceilings(points)
    servers, emulations = set(), set()
    for point, record in points:
        if point["stage"] == "support":
            continue
        table = _table(point["stage"])
        if point["stage"] == "load":
            keys = _keys(point, record) | {"start": point.get("start", 1)}
            rows["memory"] += memory.rows(manifest, keys, point, record)
        rows[table] += _point_rows(manifest, point, record, ceilings)
        rows["energy"] += energy_rows(point, record, _keys(point, record))
        server = (record["run_id"], point["gpu"], point["model"], point["scheme"])
        if point["stage"] == "serving" and server not in servers:
            servers.add(server)
            run = runs.get(record["run_id"], {})
            # Where the engine's start decided the serving points, no server ran, and the run is the engine's.
            kernels = run.get("kernels") or [] if run.get("stage") == "measure_serving" else []
            # The server named its kernels, whatever became of the load that this point is.
            keys = _keys(point, record) | {"status": "ok", "reason": None, "start": point.get("start", 1)}
            rows["kernels"] += _kernel_rows(manifest, keys, kernels, point["scheme"], "server")
        emulation = (record["run_id"], point["gpu"], point["model"], point["scheme"])
        if point.get("emulated") and record["status"] == "ok" and emulation not in emulations:
            emulations.add(emulation)
            kernels = runs.get(record["run_id"], {}).get("kernels") or []
            keys = _keys(point, record) | {"start": 1, "emulated": True}
            # An emulation that was not needed has no rows.
            rows["kernels"] += _kernel_rows(manifest, keys, record["rows"] and kernels, point["scheme"], "engine")
    for table, skipped in _skip_rows(manifest, rows):
        rows[table].append(skipped)
    asked = [(point, record) for point, record in points if point["stage"] == "support"]
    rows["support"] = support_rows(manifest, asked, rows["kernels"])
    rows["layers"] = layer_rows(manifest, store)
    rows["checkpoints"] = [_checkpoint_row(manifest, store, checkpoint) for checkpoint in manifest["checkpoints"]]
    compared = [(point, store.read_point(point["key"])) for point in manifest.get("layers", [])]
    rows["runs"] = _run_rows(points + [(point, record) for point, record in compared if record], runs)
    rows["starts"] = [row for run in rows["runs"] for row in start_rows(runs.get(run["run_id"], {}))]
    order = _order(manifest)
    tables = {table: _frame(table, sorted(rows[table], key=order)) for table in SCHEMA}
    return tables | {"latency": with_tpot(tables["latency"])}


def write_tables(tables, folder):
    """Write each table as Parquet and CSV below `folder`, each file whole or not at all."""
    for table, frame in tables.items():
        content = io.BytesIO()
        frame.write_parquet(content)
        _write_bytes_atomically(Path(folder) / f"{table}.parquet", content.getvalue())
        _write_bytes_atomically(Path(folder) / f"{table}.csv", frame.write_csv().encode())


def read_tables(folder):
    """{table: polars.DataFrame} as `write_tables` wrote them."""
    import polars

    return {table: polars.read_parquet(Path(folder) / f"{table}.parquet") for table in SCHEMA}


# --- what is there --------------------------------------------------------------------------------------------------


def _check_nothing_missing(manifest, store, points):
    missing = []
    for kind, entries in (("points", points), ("checkpoints", [(c, c) for c in manifest["checkpoints"]])):
        lacking = {entry["key"] for entry, record in entries if not _is_there(manifest, store, entry, record)}
        if lacking:
            missing.append(f"{len(lacking)} of {len({entry['key'] for entry, _ in entries})} {kind}")
    if lacking := lacking_layers(manifest, store):
        missing.append(f"{len(lacking)} of {len(manifest['layers'])} comparisons of layers")
    if missing:
        raise UserError(f"not measured yet: {' and '.join(missing)}; run `snakemake` to measure what is missing")


def _is_there(manifest, store, entry, record):
    if "quantized" not in entry:
        return record is not None
    return store.has_folder(*stored_as(entry)) or _unsupported_everywhere(manifest, entry) is not None


def _unsupported_everywhere(manifest, checkpoint):
    """Why a variant has no point at all: what no device can run is not quantized. None where it has points."""
    variant = (checkpoint["model"], checkpoint["scheme"])
    if any((point["model"], point["scheme"]) == variant for point in manifest["points"]):
        return None
    reasons = {skip["gpu"]: skip["reason"] for skip in manifest["skips"] if (skip["model"], skip["scheme"]) == variant}
    return "; ".join(f"{gpu}: {reason}" for gpu, reason in reasons.items()) or None


def _measured_ceilings(points):
    """{gpu: the probe's row}; an empty row where the probe failed."""
    probes = [(point["gpu"], record) for point, record in points if point["stage"] == "probe"]
    return {gpu: (record["rows"] or [{}])[0] for gpu, record in probes}


def _table(stage):
    return TABLE_OF_STAGE.get(stage, stage)


# --- rows -----------------------------------------------------------------------------------------------------------


def _point_rows(manifest, point, record, ceilings):
    stage, keys = point["stage"], _keys(point, record)
    if stage == "probe":
        return _probe_rows(manifest["gpus"][point["gpu"]], keys, record)
    if stage == "load":
        kernels = record["rows"][0]["kernels"] if record["status"] == "ok" else []
        keys = keys | {"start": point.get("start", 1)}
        missing = keys | {"stage": "engine", "emulated": False}
        return _kernel_rows(manifest, keys, kernels, point["scheme"], "engine") or [missing]
    row = keys | {"start": point.get("start", 1)} if "start" in SCHEMA[_table(stage)] else keys
    row |= {"emulated": bool(point.get("emulated"))} if "emulated" in SCHEMA[_table(stage)] else {}
    row = row | point_columns(point)
    if record["status"] != "ok":
        return [row]
    rows = [row | measured for measured in record["rows"]]
    if stage == "throughput" and "input_tokens" in row:
        totals = {f"total_{name}": row["batch_size"] * row[name] for name in ("input_tokens", "output_tokens")}
        rows = [one | totals for one in rows]
    if stage == "gemm":
        roofs = ceilings.get(point["gpu"], {}), manifest["gpus"][point["gpu"]]
        rows = [gemm | _gemm_floors(gemm, point["identity"], *roofs) for gemm in rows]
    return rows


def _keys(point, record):
    keys = {name: record[name] for name in ("run_id", "status", "reason")}
    return keys | {name: point[name] for name in ("gpu", "model", "scheme")}


def point_columns(point):
    """The point's parameters that its table has as columns."""
    stage = point["stage"]
    found = dict(point["identity"]["params"])
    found |= {"layer": point.get("layer"), "dataset": point.get("dataset_name"), "contender": point.get("contender")}
    found |= {"per": point.get("per")}
    found["workload"] = point.get("workload")
    if stage in ("serving", "search"):
        # Tokens of the request that came and tokens asked for are two things.
        found = {n: v for n, v in found.items() if n not in SENT} | serving_columns(stage, point["identity"]["params"])
    return {name: value for name, value in found.items() if name in SCHEMA[_table(stage)]}


def _probe_rows(datasheet, keys, record):
    probe = record["rows"][0] if record["status"] == "ok" else {}
    by_datasheet = {dtype: rate for dtype, rate in datasheet["matrix_flops_per_s"].items() if rate is not None}
    measured = {dtype: rate for dtype, rate in (probe.get("matrix_flops_per_s") or {}).items() if rate is not None}
    row = {name: probe.get(name) for name in SCHEMA["gpus"]}
    row |= {name: value for name, value in keys.items() if name in SCHEMA["gpus"]}
    row["other_processes"] = None if probe.get("other_processes") is None else len(probe["other_processes"])
    row["l2_bytes"] = probe.get("l3_bytes") or probe.get("l2_bytes")
    row["throttle_reasons"] = None if probe.get("throttle_reasons") is None else ", ".join(probe["throttle_reasons"])
    row["isa"] = None if probe.get("isa") is None else " ".join(probe["isa"])
    row["datasheet_bandwidth_bytes_per_s"] = datasheet["memory_bandwidth_bytes_per_s"]
    row["measured_bandwidth_bytes_per_s"] = probe.get("bandwidth_bytes_per_s")
    return [
        row | {"dtype": d, "datasheet_flops_per_s": by_datasheet.get(d), "measured_flops_per_s": measured.get(d)}
        for d in sorted({*by_datasheet, *measured}) or [None]
    ]


def _kernel_rows(manifest, keys, kernels, scheme, stage):
    rows, dtype = [], OWN_FLOAT[dtype_of(manifest["study"]["engine"], manifest["schemes"][scheme])]
    left = left_alone(manifest["schemes"][scheme], manifest["models"][keys["model"]]["config"])
    for found in kernels:
        expected = promised_of(manifest["schemes"][scheme], found, dtype, left)
        row = {"stage": stage, "layer_kind": found["layer_kind"], "layers": found["count"], "kernel": found["kernel"]}
        row |= {"computes": found["computes"], "expected": expected}
        row["verdict"] = verdict(expected, found["computes"], found["quantized"])
        if row["verdict"] == "computes_other" and keys.get("emulated"):
            row["verdict"] = "emulated"
        rows.append({"emulated": False} | keys | row)
    return rows


def _gemm_floors(row, identity, measured, datasheet):
    """What a product has to move and to compute, and its least time by either kind of ceiling; None without one."""
    m, n, k, number_format = row["m"], row["n"], row["k"], identity.get("format")
    quantized = ((number_format or {}).get("input_activations") or {}).get("num_bits")
    # A call that is given quantized activations reads those.
    input_bits = quantized if row["includes_quantization"] is False else None
    element_bytes = ELEMENT_BYTES[identity["params"]["dtype"]]
    moved, computed = gemm_bytes(m, n, k, number_format, element_bytes, input_bits), gemm_flops(m, n, k)

    def least(bandwidth, rates):
        rates, name = rates or {}, rate_dtype(row["computes"])
        # A device without bf16 multiplies 16-bit floats as fp16.
        rate = rates.get(name) or (rates.get("fp16") if name == "bf16" else None)
        return floor_s(moved, computed, bandwidth, rate)

    return {
        "bytes": moved,
        "operations": computed,
        "floor_s": least(measured.get("bandwidth_bytes_per_s"), measured.get("matrix_flops_per_s")),
        "datasheet_floor_s": least(datasheet["memory_bandwidth_bytes_per_s"], datasheet["matrix_flops_per_s"]),
    }


def _skip_rows(manifest, rows):
    """What a device cannot run, in every table about the device: the stage's own reason, or another stage's."""
    # What is emulated the device still cannot run.
    own = [(table, row) for table in rows for row in rows[table] if "model" in row and not row.get("emulated")]
    present = {(table, row["gpu"], row["model"], row["scheme"]) for table, row in own}
    stages = dict.fromkeys(entry["stage"] for part in ("points", "skips") for entry in manifest[part])
    stages = [stage for stage in stages if stage not in ("probe", "support", "sensitivity")]
    reasons = {}
    for skip in manifest["skips"]:
        if skip.get("contender"):
            labels = {name: skip[name] for name in ("gpu", "model", "scheme", "contender")}
            yield "gemm", {"status": "unsupported", "reason": skip["reason"], **labels}
            continue
        if skip["stage"] == "probe":
            yield "gpus", {"status": "unsupported", "reason": skip["reason"], "gpu": skip["gpu"]}
            continue
        variant = (skip["gpu"], skip["model"], skip["scheme"])
        reasons.setdefault(variant, {})[skip["stage"]] = skip["reason"]
    for (gpu, model, scheme), by_stage in reasons.items():
        # A shape set has matrix products, and nothing else.
        by_table = {
            _table(stage): by_stage.get(stage) for stage in (stages if model in manifest["models"] else ["gemm"])
        }
        for table, reason in by_table.items():
            if (table, gpu, model, scheme) in present:
                continue
            row = {"status": "unsupported", "reason": reason or next(iter(by_stage.values()))}
            row |= {"gpu": gpu, "model": model, "scheme": scheme}
            defaults = {"start": 1, "emulated": False}
            yield table, row | {name: value for name, value in defaults.items() if name in SCHEMA[table]}


def _checkpoint_row(manifest, store, checkpoint):
    identity, scheme = checkpoint["identity"], checkpoint["scheme"]
    calibration = identity.get("calibration")
    row = {"model": checkpoint["model"], "scheme": scheme, "checkpoint_key": checkpoint["key"]}
    row |= {"description": manifest["schemes"][scheme]["description"]}
    row["calibration_key"] = None if calibration is None else key(calibration)
    row["calibration"] = checkpoint.get("calibration")
    unsupported = _unsupported_everywhere(manifest, checkpoint)
    row |= {"status": "ok" if unsupported is None else "unsupported", "reason": unsupported}
    if is_dummy(checkpoint) or not store.has_folder(*stored_as(checkpoint)):
        return row
    if checkpoint["quantized"]:
        record = store.read_folder("checkpoints", checkpoint["key"])
        row["spared"] = ", ".join(record.get("spared") or []) or None
        names = (
            "bytes",
            "parameters",
            "bits_per_weight",
            "quantize_s",
            "peak_memory_bytes",
            "peak_device_memory_bytes",
        )
        seen = record.get("calibration_rows") or {}
        row |= {f"calibration_{name}": seen.get(name) for name in ("rows", "tokens", "sha256")}
        return row | {name: record.get(name) for name in names}
    size = safetensors_size(store.folder("models", checkpoint["key"]))
    if manifest["schemes"][scheme]["toolkit"] == "prequantized":
        # Packed numbers hold several weights: the 16-bit model's shapes say how many.
        found = tensors(store.folder("models", checkpoint["key"]))
        layers = linear_layers(manifest["models"][checkpoint["model"]]["config"])
        shapes = {name: layers[name] for name in quantized_layers(found) if name in layers}
        size |= {"parameters": None, "bits_per_weight": bits_per_weight(found, shapes)}
    return row | size


def safetensors_size(folder):
    """{"bytes", "parameters", "bits_per_weight"} of a folder's safetensors files, from their headers; null without any.

    A file starts with the length of its header (8 bytes, little endian), then the header: JSON, one entry a tensor.
    """
    size, parameters = 0, 0
    for path in sorted(Path(folder).glob("*.safetensors")):
        size += path.stat().st_size
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                count = 1
                for length in tensor["shape"]:
                    count *= length
                parameters += count
    if not parameters:
        return {"bytes": None, "parameters": None, "bits_per_weight": None}
    return {"bytes": size, "parameters": parameters, "bits_per_weight": 8 * size / parameters}


def _run_rows(points, runs):
    rows = {}
    for point, record in points:
        run_id = record["run_id"]
        if run_id is None or run_id in rows:
            continue
        # A process that was killed has left its points and perhaps no record of itself.
        run = runs.get(run_id, {"stage": point["stage"], "gpu": point["gpu"]})
        row = {name: run.get(name) for name in SCHEMA["runs"]} | {"run_id": run_id}
        for name in ("versions", "engine_args"):
            row[name] = None if row[name] is None else canonical_json(row[name])
        rows[run_id] = row
    return [rows[run_id] for run_id in sorted(rows)]


# --- frames ---------------------------------------------------------------------------------------------------------


def _order(manifest):
    study = manifest["study"]
    names = {"gpu": study["gpus"], "model": [model["name"] for model in study["models"]], "scheme": study["schemes"]}
    places = {column: {name: place for place, name in enumerate(found)} for column, found in names.items()}
    # Sorting is stable: within a variant, points stay in the manifest's order and repeats in the order they were made.
    return lambda row: tuple(places[name].get(row.get(name), -1) for name in places)


def _frame(table, rows):
    import polars

    types = {"str": polars.String, "int": polars.Int64, "float": polars.Float64, "bool": polars.Boolean}
    schema = SCHEMA[table]
    for row in rows:
        unknown = sorted(set(row) - set(schema))
        if unknown:
            raise ValueError(f"table {table} has no column {', '.join(unknown)}")
    columns = []
    for name, column in schema.items():
        values = [_checked(table, name, column.type, row.get(name)) for row in rows]
        columns.append(polars.Series(name, values, dtype=types[column.type], strict=True))
    return polars.DataFrame(columns)


def _checked(table, name, kind, value):
    """The value, if it is of its column's type. A text "128" among numbers is a fault to find, not to convert."""
    wrong = not isinstance(value, PYTHON_TYPES[kind]) or (isinstance(value, bool) and kind != "bool")
    if value is not None and wrong:
        raise TypeError(f"{table}.{name} is {kind}, but a stored row has {value!r}")
    return float(value) if kind == "float" and value is not None else value


def _write_bytes_atomically(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        partial.write_bytes(content)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
