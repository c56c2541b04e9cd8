"""What we make of Slurm's answers, and which locks and jobs are nobody's any more."""

import importlib
import inspect
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from quantbench import lock, slurm
from quantbench.points import expand
from quantbench.store import Store

NO_ACCOUNTING = {"AccountingStorageType": "accounting_storage/none"}
ACCOUNTING = {"AccountingStorageType": "accounting_storage/slurmdbd"}


# --- before the first job ----------------------------------------------------------------------------------------------


def test_the_configuration_is_read_as_slurm_prints_it():
    text = (
        "Configuration data as of 2026-11-21T04:00:00\nMinJobAge               = 300 sec\nSlurmctldParameters = a=b\n\n"
    )
    found = slurm.parse_config(text)
    assert found["MinJobAge"] == "300 sec" and found["SlurmctldParameters"] == "a=b"


@pytest.mark.parametrize(
    ("config", "status", "says"),
    [
        (NO_ACCOUNTING, "squeue", None),
        (ACCOUNTING, "squeue", None),
        (ACCOUNTING, "sacct", None),
        (NO_ACCOUNTING, "sacct", "set `slurm-status-command: squeue`"),
    ],
)
def test_a_cluster_on_which_the_executor_would_wait_without_end_is_refused_in_a_sentence(config, status, says):
    found = slurm.complaint(config, status)
    assert found is None if says is None else says in found


def test_the_executor_stays_with_squeue_whatever_slurm_says_of_its_memory(monkeypatch):
    plugin = pytest.importorskip("snakemake_executor_plugin_slurm")
    # Else it has another name by now, and this changes nothing.
    assert "get_min_job_age()" in inspect.getsource(plugin.Executor.check_active_jobs)
    monkeypatch.setattr(plugin, "get_min_job_age", lambda: None)
    slurm.stay_with_squeue()
    assert plugin.get_min_job_age() > 3 * 86400


def line(id, name, state, comment, folder, restarts="0", reason="None"):
    parts = (id, name, state, reason, restarts, "N/A", comment, folder)
    return "".join(f"{part:<30}|" for part in parts) + "\n"


def test_only_unended_jobs_of_this_study_folder_and_of_a_dead_snakemake_are_left_behind():
    gemm = "rule_measure_gemm_wildcards_mine_h100"
    answer = (
        line("1", "dead", "RUNNING", gemm, "/home/me/quantbench")
        + line("2", "dead", "PENDING", "rule_measure_engine_wildcards_mine_h100_tiny_fp8", "/home/me/quantbench")
        + line("3", "dead", "COMPLETED", gemm, "/home/me/quantbench")
        + line("4", "dead", "CANCELLED", gemm, "/home/me/quantbench")
        + line("5", "alive", "RUNNING", gemm, "/home/me/quantbench")
        + line("6", "dead", "RUNNING", gemm, "/home/me/quantbench2")
        + line("7", "dead", "RUNNING", "rule_measure_gemm_wildcards_mine2_h100", "/home/me/quantbench")
        + line("8", "shell", "RUNNING", "", "/home/me/quantbench")
    )
    left = slurm.left_behind(slurm.parse_jobs(answer), "/home/me/quantbench", "mine", {"alive"})
    assert [job.id for job in left] == ["1", "2"]


# --- beside the jobs -----------------------------------------------------------------------------------------------------


class Executor:
    """Of Snakemake's, what Watch uses."""

    def __init__(self):
        self.lock, self.active_jobs, self.ended = threading.Lock(), [], []

    def report_job_submission(self, info):
        self.active_jobs.append(info)

    def report_job_success(self, info):
        self.ended.append((info.external_jobid, "success"))

    def report_job_error(self, info, msg):
        self.ended.append((info.external_jobid, "error"))


@pytest.fixture
def watched(tmp_path):
    said, executor = [], Executor()
    watch = slurm.Watch(executor, 1, said.append)

    def submit(id, attempt=1, gpu="h100"):
        job = SimpleNamespace(
            name="measure_gemm", wildcards_dict={"study": "mine", "gpu": gpu}, attempt=attempt, restart_times=1,
            output=[str(tmp_path / f"{gpu}.json")], log=[str(tmp_path / "rule.log")],
        )  # fmt: skip
        log = tmp_path / f"{id}.log"
        executor.report_job_submission(SimpleNamespace(job=job, external_jobid=id, aux={"slurm_logfile": log}))
        return log

    def look(*lines):
        watch.look(slurm.parse_jobs("".join(line(id, "run", state, "", "", *more) for id, state, *more in lines)))
        found, said[:] = list(said), []
        return found

    return SimpleNamespace(submit=submit, look=look, executor=executor, folder=tmp_path)


def test_a_failure_is_told_once_with_what_comes_next(watched):
    watched.submit("7")
    assert watched.look(("7", "RUNNING", "0")) == []
    [said] = watched.look(("7", "TIMEOUT", "0"))
    assert (
        said == "measure_gemm h100: job 7 ended, it reached its time limit; its points are kept, it is submitted again"
    )
    assert watched.look(("7", "TIMEOUT", "0")) == []
    # The second attempt of two: nobody tries again but the user.
    log = watched.submit("8", attempt=2)
    log.write_text("[kernels h100] 3 of 9 points\nerror: no room\nTraceback: more\n")
    [said] = watched.look(("8", "FAILED", "0"))
    assert said == "measure_gemm h100: job 8 ended, no room; its points are kept"
    # One that said nothing to the user has a log, of its own or of Slurm's.
    log = watched.submit("9")
    assert f"it failed: {log} says why" in watched.look(("9", "FAILED", "0"))[0]
    (watched.folder / "rule.log").write_text("Traceback")
    watched.submit("10")
    assert "rule.log says why" in watched.look(("10", "FAILED", "0"))[0]


def test_a_job_that_slurm_queued_again_is_told_as_often_as_that_happens(watched):
    watched.submit("7")
    assert watched.look(("7", "RUNNING", "0")) == []
    assert "Slurm queued job 7 again" in watched.look(("7", "PENDING", "1"))[0]
    assert watched.look(("7", "RUNNING", "1")) == []
    assert len(watched.look(("7", "RUNNING", "2"))) == 1


def test_a_job_that_slurm_holds_is_told_with_what_releases_it(watched):
    watched.submit("7")
    [said] = watched.look(("7", "PENDING", "0", "JobHeldUser"))
    assert said == (
        "measure_gemm h100: Slurm holds job 7 (JobHeldUser): it goes on after `scontrol release 7`; its points are kept"
    )
    assert watched.look(("7", "PENDING", "0", "JobHeldUser")) == watched.look(("7", "RUNNING", "0")) == []
    # Queued again and held is one line.
    [said] = watched.look(("7", "PENDING", "1", "JobHeldAdmin"))
    assert (
        "queued job 7 again and holds it (JobHeldAdmin)" in said and "an administrator's `scontrol release 7`" in said
    )
    [said] = watched.look(("7", "COMPLETING", "2", "job requeued in held state"))
    assert "queued job 7 again and holds it (job requeued in held state): it goes on after `scontrol release 7`" in said
    assert watched.look(("7", "PENDING", "2", "job requeued in held state")) == []
    # Waits for room, and for an account's share.
    assert watched.look(("7", "PENDING", "2", "Resources"), ("7", "PENDING", "2", "QOSUsageThreshold")) == []


def test_a_forgotten_job_is_settled_by_whether_it_wrote_its_output(watched):
    watched.submit("7", gpu="h100")
    watched.submit("8", gpu="a100")
    (watched.folder / "h100.json").write_text("{}")
    assert watched.look(("7", "RUNNING", "0"), ("8", "RUNNING", "0")) == []
    # Once or twice may be chance.
    assert watched.look() == watched.look() == []
    finished, lost = watched.look()
    assert "forgotten job 7, which had finished" in finished and "forgotten job 8; its points are kept" in lost
    assert watched.executor.ended == [("7", "success"), ("8", "error")]
    assert watched.executor.active_jobs == [] and watched.look() == []


# --- locks ----------------------------------------------------------------------------------------------------------------

HOLD = """
import sys
sys.path.insert(0, sys.argv[1])
from quantbench import lock
lock.note([".snakemake/locks/0.input.lock"], slurm_run="run")
print("noted", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds a lock in tmp_path and says so."""
    (tmp_path / ".snakemake" / "locks").mkdir(parents=True)
    (tmp_path / ".snakemake" / "locks" / "0.input.lock").write_text("input\n")
    scripts = Path(lock.__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, scripts], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "noted\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Path(".snakemake/locks/0.input.lock")


def test_a_lock_is_left_to_a_living_process_and_taken_from_a_killed_one(holder, here):
    [said] = lock.release()
    assert f"another Snakemake works here (process {holder.pid} on " in said and "--unlock" in said
    assert here.exists() and lock.live_slurm_runs() == {"run"}
    holder.kill()
    holder.wait()
    [said] = lock.release()
    assert f"(process {holder.pid} on " in said and said.endswith("was killed: its lock is removed")
    assert not here.exists()
    assert lock.release() == [] and lock.live_slurm_runs() == set()


def test_a_lock_that_another_made_since_under_the_same_name_stays(holder, here):
    holder.kill()
    holder.wait()
    here.unlink()
    here.write_text("another's\n")
    assert lock.release() == []
    assert here.exists()


@pytest.mark.parametrize("field", ["host", "boot", "namespace"])
def test_of_another_machine_nothing_is_known(holder, here, field):
    [path] = lock.notes()
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: "another"}))
    holder.kill()
    holder.wait()
    assert len(lock.release()) == 1 and here.exists()
    # Its jobs may be somebody's.
    assert lock.live_slurm_runs() == {"run"}


def test_a_process_number_that_was_given_out_again_is_another_process(holder, here):
    [path] = lock.notes()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"process_started": 1.0}))
    assert len(lock.release()) == 1 and not here.exists()


# --- a job whose points another run has measured since it was submitted --------------------------------------------------


@pytest.mark.parametrize("script", ["measure_gemm", "measure_engine", "measure_serving", "probe_gpu"])
def test_it_ends_without_touching_the_device(script, tmp_path, monkeypatch):
    for name in ("torch", "vllm"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it is an error
    group = {"stage": "any", "protocol": 1, "versions": {}, "params": [{"m": 1}, {"m": 2}]}
    job = {"gpu": "h100", "model": "tiny", "scheme": "bf16", "common": {"gpu": "h100"}, "groups": [group]}
    if script == "probe_gpu":
        group["params"] = [{}]
    store = Store(tmp_path / "store")
    for point in expand(job):
        store.write_point(point["identity"], status="ok", rows=[{}], run_id="another's")
    output = tmp_path / "pointer.json"
    main = importlib.import_module(script).main
    assert not main([f"--job={json.dumps(job)}", f"--store={store.root}", f"--output={output}"])
    assert output.exists() and store.read_runs() == {}
