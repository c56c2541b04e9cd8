"""What runs used: made-up run records whose sums are worked out here, and the command on a store."""

import copy
import os
import re
from datetime import UTC, datetime

import pytest
from quantbench.estimate import Evidence
from quantbench.jobs import build_jobs
from quantbench.lock import this_process
from quantbench.manifest import build_manifest
from quantbench.slurm import Job
from quantbench.study import load_study
from quantbench.usage import (
    GOING,
    KILLED,
    QUANTIZING,
    UNKNOWN,
    fate_of,
    hours,
    read_usage,
    rerun_s,
    usage,
    usage_text,
    wall_s,
)
from workflow_study import CONFIG


def at(minute, second=0):
    return f"2026-01-01T10:{minute:02d}:{second:02d}+00:00"


def run(gpu="h200", **more):
    """A run of 10 minutes: one start of 60 s, 8 minutes of measuring."""
    plain = {
        "gpu": gpu,
        "model": "tiny",
        "scheme": "bf16",
        "stage": "measure_engine",
        "started_at": at(0),
        "ended_at": at(10),
    }
    plain |= {
        "engine_starts": 1,
        "engine_start_s": 60.0,
        "measured_s": 480.0,
        "kept_s": 480.0,
        "seen_at": at(10),
        "fate": None,
    }
    return plain | more


def test_hours_and_shares_of_a_gpu():
    used = usage([run(), run(started_at=at(20), ended_at=at(40), measured_s=420.0, engine_start_s=30.0), run("a100")])
    # 10 + 20 minutes, of which 8 + 7 measured
    assert used["h200"].wall_s == 1800 and used["h200"].share == pytest.approx(900 / 1800)
    assert (used["h200"].runs, used["h200"].starts, used["h200"].start_s) == (2, 2, 90.0)
    assert (used["a100"].runs, used["a100"].wall_s, used["a100"].killed) == (1, 600.0, 0)


def test_an_allocation_counts_from_its_start():
    # 30 s until Snakemake had started the script on the node
    inside = run(started_at=at(0, 30), allocated_at=at(0))
    assert wall_s(inside) == 600 and wall_s(inside | {"allocated_at": None}) == 570
    used = usage([inside, run()])["h200"]
    assert used.in_slurm == 1 and used.wall_s == 1200


def test_a_killed_run_loses_its_time_but_for_the_points_it_kept():
    # its record was last written when its engine was ready; its last point 6 minutes in; 2 minutes of points were kept
    killed = run(ended_at=None, fate=KILLED, measured_s=0.0, kept_s=120.0, seen_at=at(6))
    used = usage([run(), killed])["h200"]
    assert used.wall_s == 600 + 360 and used.killed == 1
    assert used.lost_s == 360 - 120
    assert used.measuring_s == 480 + 120


def test_a_run_that_goes_on_has_lost_nothing():
    # asked 6 minutes in, of which 2 minutes of points are kept
    used = usage([run(ended_at=None, fate=GOING, measured_s=0.0, kept_s=120.0, seen_at=at(6))])["h200"]
    assert (used.going, used.killed, used.lost_s) == (1, 0, 0.0)
    assert used.wall_s == 360 and used.measuring_s == 120


def test_a_run_without_an_end_goes_on_when_its_process_or_slurm_says_so():
    me, mine = this_process(), {"slurm_job": None}
    assert fate_of(mine | {"process": me}, None) == GOING
    # the number was given out again
    assert fate_of(mine | {"process": me | {"process_started": 1.0}}, None) == KILLED
    elsewhere = {"process": me | {"host": "another"}, "slurm_job": "7", "allocated_at": at(3)}
    assert fate_of(elsewhere, None) == fate_of(elsewhere | {"slurm_job": None}, {}) == fate_of(mine, {}) == UNKNOWN
    assert fate_of(elsewhere, {}) == KILLED

    def slurm_says(state, minute):
        started = datetime.fromisoformat(at(minute)).astimezone().replace(tzinfo=None).isoformat()
        return fate_of(elsewhere, {"7": Job("7", "", state, "None", 1, started, "", "")})

    assert slurm_says("RUNNING", 3) == GOING
    # since then the job was queued again: another process runs, or none
    assert slurm_says("RUNNING", 5) == slurm_says("PENDING", 3) == slurm_says("CANCELLED", 3) == KILLED


def test_what_the_login_node_did_is_no_devices_time():
    assert usage([run(stage="ask_support")]) == {}


def test_nothing_is_lost_below_nothing():
    # a clock that stepped back
    used = usage([run(ended_at=None, fate=KILLED, kept_s=900.0, seen_at=at(0))])["h200"]
    assert used.wall_s == 0 and used.lost_s == 0 and used.share is None


def test_a_checkpoint_is_made_outside_of_any_gpus_count():
    assert list(usage([run(gpu=None, stage="quantize_model", engine_starts=0, engine_start_s=None)])) == [QUANTIZING]


@pytest.fixture
def study(tmp_path):
    return load_study({**copy.deepcopy(CONFIG), "store": str(tmp_path / "store"), "gpus": ["cpu"]})


def test_a_rerun_takes_each_point_as_long_as_it_took_and_each_job_its_start(study):
    manifest = build_manifest(study)
    took = {point["key"]: 7.0 for point in manifest["points"]}
    start = run("cpu", stage=None) | {"engine_start_s": 60.0}
    # 10 minutes less 60 s less 480 s: a minute of process in every job
    runs = [start | {"stage": stage} for stage in ("measure_engine", "measure_serving")]
    runs += [start | {"stage": stage, "engine_start_s": None} for stage in ("probe_gpu", "measure_gemm")]
    again = rerun_s(manifest, took, Evidence(runs=runs))
    jobs = build_jobs(manifest, study.store)
    variants = len(jobs["measure_engine"]) + len(jobs["measure_serving"])
    measured = {point["key"] for point in manifest["points"] if point["stage"] != "support"}
    # engines and servers: 60 s of process, 60 s of start; probe and gemm: 120 s of process and no engine
    expected = 7.0 * len(measured) + variants * 120 + 2 * 120
    assert variants == 4 and again["cpu"] == pytest.approx(expected, rel=0.02)
    assert again[QUANTIZING] > 0


def test_the_table_says_how_it_was_counted(study):
    manifest = build_manifest(study)
    manifest["gpus"]["cpu"] = manifest["gpus"]["cpu"] | {"price_usd_per_hour": 3.0}
    used = usage([run("cpu", allocated_at=at(0)), run("cpu", ended_at=None, fate=KILLED, kept_s=0.0, seen_at=at(5))])
    text = usage_text(manifest, used, {"cpu": 7200.0})
    row = next(line for line in text.splitlines() if line.startswith("cpu "))
    # 15 minutes in all, 8 of them measuring; two starts of a minute; 5 minutes lost
    assert row.split() == ["cpu", "2", "0.25", "53", "%", "2", "0.03", "1", "0.08", "2.00"]
    assert "cpu: 0.75 USD used, a rerun 6.00 USD, at 3.0 USD per hour" in text
    assert "1 of 2 runs from the start of their Slurm allocation" in text
    assert "killed" in text


def test_hours_keep_the_digits_that_a_small_study_needs():
    assert (hours(0), hours(3600), hours(36), hours(10)) == ("0.00", "1.00", "0.01", "0.0028")


def test_only_the_studys_own_runs_are_counted(study):
    manifest, store = build_manifest(study), study.store
    [latency] = [p for p in manifest["points"] if p["stage"] == "latency" and p["scheme"] == "bf16"]
    for name, log in (
        ("ours", "results/small/logs/a.log"),
        ("theirs", "/data/results/other/logs/a.log"),
        ("by-hand", None),
    ):
        store.write_run(run("cpu", run_id=name, log=log))
    going = run("cpu", run_id="going", log="results/small/logs/c.log", ended_at=None, process=this_process())
    killed = run("cpu", run_id="killed", log="/data/results/small/logs/b.log", ended_at=None, measured_s=0.0)
    store.write_run({name: value for name, value in killed.items() if name not in ("kept_s", "seen_at")})
    store.write_point(latency["identity"], status="ok", rows=[], run_id="killed", measured_s=100.0)
    ended = datetime.fromisoformat(at(4)).timestamp()
    os.utime(store.point_path(latency["key"]), (ended, ended))
    os.utime(store.root / "runs" / "killed.json", (ended - 60, ended - 60))
    text = read_usage(manifest, store)
    assert text.startswith("study small: 2 runs")
    assert "killed, perhaps: 1 run of machines" in text and "going" not in text
    row = next(line for line in text.splitlines() if line.startswith("cpu "))
    # 10 minutes, and 4 until the killed run's last point, of which 100 s were kept: 140 s are 0.04 h
    assert row.split()[:3] == ["cpu", "2", "0.23"] and row.split()[-3:-1] == ["1", "0.04"]
    assert re.search(r"killed: .* last thing they wrote", text)
    store.write_run(going | {"started_at": datetime.now(UTC).isoformat()})
    text = read_usage(manifest, store)
    assert "going: 1 run in progress" in text and "killed, perhaps: 1 run" in text


def test_a_study_without_runs_says_so(study):
    assert "nothing has been measured for it in this store" in read_usage(build_manifest(study), study.store)
