"""The Slurm that other tests run on behaves as a cluster does: typed GPUs, records, and a clean end."""

import re
from datetime import timedelta

import psutil
import pytest
from quantbench import slurm
from slurm_cluster import read_job, running_cluster
from workflow_study import wait_until

pytestmark = pytest.mark.slurm


def submit(cluster, *options, command="sleep 60"):
    return int(cluster.run("sbatch", "--parsable", f"--chdir={cluster.folder}", *options, f"--wrap={command}"))


def test_jobs_get_gpus_of_their_type_and_are_recorded(slurm_with_accounting):
    cluster = slurm_with_accounting
    command = "echo devices $CUDA_VISIBLE_DEVICES; sleep 2"
    # a node has two, so both jobs run at once and see different ones
    ids = [submit(cluster, "-p", "h100", "--gres=gpu:h100:1", "-c8", "--mem=100", command=command) for _ in range(2)]
    jobs = cluster.wait(lambda jobs: all(jobs[id].state == "COMPLETED" for id in ids), 60, "both jobs")
    first, second = (jobs[id] for id in ids)
    assert first.overlaps(second) and {first.nodes, second.nodes} == {"h100n1"}
    said = "".join((cluster.folder / f"slurm-{id}.out").read_text() for id in ids)
    assert sorted(re.findall(r"devices (\d+)", said)) == ["0", "1"]

    def recorded():
        lines = cluster.run("sacct", "-X", "-n", "-P", "--format=JobID,State,AllocTRES").splitlines()
        return sum("COMPLETED" in line and "gres/gpu:h100=1" in line for line in lines) == 2

    wait_until(recorded, 60, "records of both jobs in the database")
    with pytest.raises(AssertionError, match="node configuration is not available"):
        submit(cluster, "-p", "h100", "--gres=gpu:h200:1")


def test_we_read_there_since_when_a_job_runs_and_that_slurm_holds_it(slurm_with_accounting, monkeypatch):
    cluster = slurm_with_accounting
    monkeypatch.setenv("PATH", cluster.environment()["PATH"])
    number = submit(cluster, "-p", "cpu", "--mem=100")
    seen = cluster.wait(lambda jobs: jobs[number].state == "RUNNING", 60, "the job runs")[number].started.astimezone()
    job = slurm.jobs()[str(number)]
    assert job.runs_since(seen) and not job.runs_since(seen - timedelta(seconds=10))
    assert not job.held and slurm.jobs("--all").keys() == slurm.jobs().keys()
    cluster.run("scontrol", "requeuehold", str(number))
    wait_until(lambda: slurm.jobs()[str(number)].held, 60, "the job is held")
    job = slurm.jobs()[str(number)]
    assert job.restarts == 1 and not job.runs_since(seen)
    cluster.run("scancel", str(number))


def test_clusters_live_side_by_side_and_leave_no_process(tmp_path_factory, slurm_with_accounting):
    folder = tmp_path_factory.mktemp("other")

    def processes():
        found = []
        for process in psutil.process_iter(["cmdline"]):
            found += [process.pid] if any(str(folder) in word for word in process.info["cmdline"] or []) else []
        return found

    with running_cluster(folder / "cluster") as other:
        job = submit(other, "-p", "a100", "--gres=gpu:a100:1", "--mem=100")
        other.wait(lambda jobs: jobs[job].state == "RUNNING", 60, "the job runs")
        other.daemon("stop", "slurmctld")
        other.daemon("start", "slurmctld")
        assert other.jobs()[job].state == "RUNNING"
        assert job not in slurm_with_accounting.queue()
        assert processes()
    assert not processes()


def test_a_line_of_scontrol_is_read():
    line = (
        "JobId=7 JobName=9f UserId=me(1) JobState=RUNNING Restarts=0 StartTime=2026-11-21T04:10:29 EndTime=Unknown "
        "Partition=h200 NodeList=h200n1 CPUs/Task=8 Comment=rule_measure_gemm_wildcards_cluster_h200 "
        "Command=(null) WorkDir=/a b/c TresPerNode=gres:gpu:h200:1 "
    )
    job = read_job(line)
    assert (job.id, job.partition, job.gres, job.ended) == (7, "h200", "gpu:h200:1", None)
    assert job.fields["WorkDir"] == "/a b/c" and job.comment == "rule_measure_gemm_wildcards_cluster_h200"
