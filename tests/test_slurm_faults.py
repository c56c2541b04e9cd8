"""What clusters do to a run, on a real Slurm: each time the study completes, by itself or by the same command again.

The device is this machine's CPU under several names; a study of kernels alone has many short points and starts no engine.
"""

import contextlib
import getpass
import os
import re
import subprocess
import time

import psutil
import pytest
import yaml
from workflow_study import CONFIG, Checkout, needs_environments, wait_until

pytestmark = [pytest.mark.workflow, pytest.mark.slurm, needs_environments]

KERNELS_ONLY = {name: CONFIG[name] for name in ("study", "title", "store", "models", "datasets", "engine")}
# 5 products of the tiny model at each number of tokens; repeats that give a fault the time to hit a job.
KERNELS_ONLY |= {"schemes": ["bf16"], "kernels": {"tokens": [1, 2, 4, 8]}}
KERNELS_ONLY["repeats"] = {"least": 40, "most": 40, "relative_ci": 1}
POINTS = 20
# Takes the node from whoever has it.
URGENT = ["sbatch", "--partition=urgent", "--nodelist=l40sn1", "--exclusive", "--output=/dev/null", "--wrap=true"]
# Seconds between two looks at the queue; the profile has patience with slurmctld.
LOOK_S = 3


class OnSlurm(Checkout):
    """A checkout whose Snakemake submits to a cluster, and whose GPUs are the CPU by their names."""

    def prepare(self, cluster, gpus):
        self.cluster, self.config["gpus"] = cluster, list(gpus)
        sheets = self.folder / "config" / "gpus.yaml"
        cpu = yaml.safe_load(sheets.read_text())["cpu"]
        sheets.write_text(yaml.safe_dump(dict.fromkeys(("cpu", *gpus), cpu)))
        return self

    @property
    def targets(self):
        return [f"results/{self.config['study']}/kernels/{gpu}.json" for gpu in self.config["gpus"]]

    def command(self, *arguments):
        looks = f"--slurm-init-seconds-before-status-checks={LOOK_S}"
        return super().command(*(arguments or self.targets), "--profile", "slurm", looks)

    def environment(self):
        return self.cluster.environment()

    # --- what the run left ---

    def log(self):
        return (self.folder / "snakemake.log").read_text()

    def said(self):
        """Our lines on the console, without their prefix."""
        return re.findall(r"^\[quantbench\] (.*)$", self.log(), re.MULTILINE)

    def measured(self, gpu=None):
        """{key: run_id} of the stored points."""
        points = self.store.read_points()
        return {k: r["run_id"] for k, r in points.items() if gpu in (None, r["identity"]["gpu"])}

    def queue(self):
        return self.cluster.run("squeue", "--noheader", "--format=%i %P %T").splitlines()

    def job(self, gpu):
        """Number of the gpu's running job."""
        found = [line.split() for line in self.queue()]
        return next((id for id, partition, state in found if (partition, state) == (gpu, "RUNNING")), None)

    def newest_job(self):
        return max(
            (int(i) for i in self.cluster.run("squeue", "--noheader", "--states=all", "--format=%i").split()), default=0
        )

    def hang(self, gpu):
        """From here on the gpu's job is in a call that never returns, as a kernel's may be; the job does not end by itself."""
        for worker in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if f"measure_gemm/{gpu}" in " ".join(worker.cmdline()) and not worker.children():
                    worker.suspend()

    def settled(self, at_once=0):
        """Everything is measured, no finished point again, and nothing is left: no process, no job, no claim.

        at_once  points that two processes may have been measuring at the same time
        """
        wait_until(lambda: not self.queue(), 60, "the end of every job")
        wait_until(lambda: not self.processes(), 30, "the end of every process")
        points = self.measured()
        assert len(points) == POINTS * len(self.config["gpus"])
        # The first measurement of a point stays, but each is counted.
        ended = {run_id: run["points_measured"] for run_id, run in self.store.read_runs().items() if run["ended_at"]}
        assert sum(ended.values()) - sum(run_id in ended for run_id in points.values()) <= at_once
        assert list((self.store.root / "claims").iterdir()) == []


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return Checkout.of_working_tree(tmp_path_factory.mktemp("tree") / "quantbench", KERNELS_ONLY)


@pytest.fixture
def checkout(tree, slurm, tmp_path):
    """A function: GPU types -> a checkout of its own."""
    made = []

    def make(*gpus, name="quantbench", store=None):
        copied = tree.copy(tmp_path / name)
        made.append(OnSlurm(copied.folder, copied.config).prepare(slurm, gpus))
        if store:
            made[-1].config["store"] = str(store)
        return made[-1]

    yield make
    for one in made:
        slurm.run("scancel", f"--user={getpass.getuser()}")
        for process in one.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def begun(process, checkout, *gpus):
    """Wait until each gpu's job (of all gpus) is in mid-measurement; returns all points of then."""

    def every_gpu():
        assert process.poll() is None, checkout.log()
        return all(checkout.measured(gpu) for gpu in gpus or checkout.config["gpus"])

    wait_until(every_gpu, 300, "the first points")
    points = checkout.measured()
    assert len(points) < POINTS * len(checkout.config["gpus"]), "nothing is left to be interrupted"
    return points


def finish(process, checkout):
    assert process.wait(timeout=300) == 0, checkout.log()


def test_jobs_that_are_cancelled_timed_out_preempted_or_lose_their_node_are_finished_by_the_same_run(checkout, slurm):
    one = checkout("h200", "h100", "a100", "l40s")
    process = one.start()
    wait_until(lambda: all(map(one.job, one.config["gpus"])), 120, "the jobs' start")
    jobs = {gpu: one.job(gpu) for gpu in one.config["gpus"]}

    def time_is_up():
        one.hang("h100")
        slurm.run("scontrol", "update", f"JobId={jobs['h100']}", "EndTime=now+1")

    faults = {
        "h200": lambda: slurm.run("scancel", jobs["h200"]),
        "h100": time_is_up,
        "a100": lambda: slurm.run("scontrol", "update", "NodeName=a100n1", "State=DOWN", "Reason=test"),
        "l40s": lambda: slurm.run(*URGENT),
    }
    before = {}
    while faults:
        hit = [gpu for gpu in faults if one.measured(gpu)]
        for gpu in hit:
            faults.pop(gpu)()
            before |= one.measured(gpu)
        assert process.poll() is None, one.log()
        time.sleep(0.2)
    assert len(before) < POINTS * len(jobs)
    wait_until(lambda: one.job("a100") is None, 30, "the node's end")

    def node_back():
        # It may have registered again by itself.
        if "down" in slurm.run("sinfo", "--noheader", "--nodes=a100n1", "--format=%T"):
            slurm.run("scontrol", "update", "NodeName=a100n1", "State=RESUME")
            return False
        return True

    wait_until(node_back, 30, "the node's return")
    finish(process, one)
    one.settled()
    assert before.items() <= one.measured().items()

    said = one.said()
    again = [line for line in said if "queued" in line]
    assert len(said) == 4 and len(again) == 2, said
    [cancelled] = [line for line in said if f"job {jobs['h200']} ended" in line]
    assert cancelled == (
        f"measure_gemm h200: job {jobs['h200']} ended, it was cancelled, with scancel or by an administrator;"
        " its points are kept, it is submitted again"
    )
    assert any(f"job {jobs['h100']} ended, it reached its time limit" in line for line in said)
    assert {jobs["a100"], jobs["l40s"]} == {re.search(r"job (\d+)", line)[1] for line in again}

    # Nothing to measure asks for no GPU.
    newest = one.newest_job()
    assert one.done(*one.targets).jobs == {}
    assert one.newest_job() == newest


def test_slurmctld_that_restarts_or_forgets_a_job_ends_no_run(checkout, slurm):
    one = checkout("h200")
    process = one.start()
    before = begun(process, one)
    slurm.daemon("stop", "slurmctld")
    wait_until(lambda: any("does not answer" in line for line in one.said()), 60, "a word on the silence")
    # A controller that has lost its state knows no jobs, and ends those that its nodes still have.
    for path in (slurm.folder / "state").glob("job_state*"):
        path.unlink()
    # Numbers begin anew, and a node refuses one that it knows.
    with open(slurm.folder / "slurm.conf", "a") as conf:
        conf.write("FirstJobId=1000\n")
    slurm.daemon("start", "slurmctld")
    finish(process, one)
    one.settled()
    assert before.items() <= one.measured().items()
    silent, answers, forgotten = one.said()
    assert "Slurm does not answer" in silent and answers == "Slurm answers again"
    assert "Slurm has forgotten job" in forgotten


def test_a_killed_snakemake_needs_nothing_but_the_same_command_again(checkout):
    one = checkout("h200")
    process = one.start()
    begun(process, one)
    # Else it may end while the next Snakemake starts.
    one.hang("h200")
    process.kill()
    process.wait()
    [left] = [line.split()[0] for line in one.queue()]
    assert list((one.folder / ".snakemake" / "locks").iterdir())

    process = one.start()
    finish(process, one)
    one.settled()
    removed, cancelled = one.said()
    assert "was killed: its lock is removed" in removed
    assert cancelled.startswith(f"cancelled 1 Slurm job ({left}) that a killed run left in the queue")


def test_a_full_disk_is_said_and_costs_the_points_that_did_not_fit(checkout, tmp_path):
    one = checkout("h200")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk needs root, and the right to mount")
    try:
        one.config["store"] = str(disk / "store")
        full = one.snakemake(*one.targets, "--retries=0")
        assert full.returncode != 0
        [said] = re.findall(r"^\[quantbench\] (.*)$", full.text, re.MULTILINE)
        assert "No space left on device" in said and "make room and run the same command again" in said
        assert said.endswith("its points are kept")
        before = one.measured()
        assert 0 < len(before) < POINTS
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        one.done(*one.targets)
        one.settled()
        assert before.items() <= one.measured().items()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_two_snakemakes_on_one_store_share_its_points(checkout, tmp_path):
    both = [checkout("h200", name=name, store=tmp_path / "store") for name in ("one", "two")]
    processes = [one.start() for one in both]
    # Whoever comes first waits in mid-measurement for the other, which may be late.
    first = next(iter(begun(processes[0], both[0]).values()))
    worker = psutil.Process(both[0].store.read_run(first)["process"]["pid"])
    worker.suspend()
    wait_until(lambda: len(set(both[0].measured().values())) == 2, 300, "points of the other")
    worker.resume()
    for process, one in zip(processes, both, strict=True):
        finish(process, one)
    for one in both:
        one.settled(at_once=1)
    # Both measured, neither waited.
    assert len(set(both[0].measured().values())) == 2
