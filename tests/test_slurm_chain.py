"""The whole chain on a real Slurm, by the command lines of docs/cluster.md in their order.

Four GPU types are this machine's CPU by their names: every job is a real one, of vLLM's engine, vLLM's server or llm-compressor.
What ran where, and when, is what Slurm itself says.
"""

import re
import subprocess
from itertools import combinations

import pytest
import yaml
from quantbench.cluster import load_cluster
from slurm.cluster import GPUS
from workflow_study import CONFIG, ROOT, Checkout, needs_environments

pytestmark = [pytest.mark.workflow, pytest.mark.slurm, needs_environments]

# One quantized model: each type has a real engine's job, which waits for the job that makes the checkpoint.
STUDY = {name: CONFIG[name] for name in ("title", "store", "models", "datasets", "engine", "latency", "repeats")} | {
    "study": "cluster",
    "schemes": ["rtn-int4"],
    "baseline": "rtn-int4",
    "gpus": list(GPUS),
}
# A second study on the same store has the other stages, a server's among them, on one type: they take minutes of two cores.
ONLINE = {name: value for name, value in STUDY.items() if name != "latency"} | {
    "study": "online",
    "gpus": ["l40s"],
    "kernels": {"tokens": [1]},
    "serving": {"concurrencies": [1], "lengths": CONFIG["latency"]["lengths"], "requests": 4},
}
RUN = "snakemake --profile slurm"


class Page(Checkout):
    """A clone in which somebody works by docs/cluster.md."""

    def __init__(self, folder, cluster):
        super().__init__(folder, STUDY)
        self.cluster = cluster
        sheets = self.folder / "config" / "gpus.yaml"
        known = yaml.safe_load(sheets.read_text())
        sheets.write_text(yaml.safe_dump(known | dict.fromkeys(GPUS, known["cpu"])))
        (self.folder / "config" / "config.yaml").write_text(yaml.safe_dump(STUDY))
        (self.folder / "config" / "online.yaml").write_text(yaml.safe_dump(ONLINE))
        # Looks at the queue more often than a site would want.
        profile = self.folder / "slurm" / "config.yaml"
        text, looks = re.subn(r"(slurm-init-seconds-before-status-checks:) \d+", r"\1 3", profile.read_text())
        assert looks == 1
        profile.write_text(text)

    def type(self, line):
        """Run a line of the page in a shell on the login node; returns what it prints."""
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self.cluster.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1500,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-4000:]}"
        return done.stdout


def rule(job):
    """The rule that a Slurm job ran, which Snakemake's executor leaves in its comment."""
    return re.match(r"rule_([a-z_]+?)(?:_wildcards_.*)?$", job.comment).group(1)


def blocks(language=""):
    """The page's fenced blocks of a language, or without one: commands."""
    page = (ROOT / "docs" / "cluster.md").read_text()
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


@pytest.fixture(scope="module")
def ran(slurm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "quantbench"
    Checkout.of_working_tree(folder)
    page = Page(folder, slurm)
    lines = "".join(blocks()).splitlines()
    # The interpreters of these tests, where a reader builds them.
    page.said = {line: page.type(line) for line in lines if not line.startswith("export PATH=")}
    page.jobs = list(slurm.jobs().values())
    return page


def test_the_page_shows_the_commands_of_a_whole_study(ran):
    assert list(ran.said) == [
        'sinfo -o "%P %G %f %l"',
        "snakemake staging",
        "snakemake plan",
        "snakemake --profile slurm --dry-run",
        RUN,
        'squeue --me -o "%i %P %T %M %k"',
        "snakemake usage",
        f"{RUN} --configfile config/online.yaml",
    ]
    for study in (STUDY, ONLINE):
        assert (ran.folder / "reports" / f"{study['study']}.html").exists()


def test_each_job_ran_on_its_partition_with_its_gpu(ran):
    expected = [(name, gpu) for name in ("probe_gpu", "measure_engine") for gpu in GPUS]
    # of the second study: what is in the store is not measured again
    expected += [("measure_gemm", "l40s"), ("measure_serving", "l40s")]
    on_devices = [(name, gpu, f"gpu:{gpu}:1", f"{gpu}n1") for name, gpu in expected]
    seen = sorted((rule(job), job.partition, job.gres, job.nodes) for job in ran.jobs)
    assert seen == sorted([*on_devices, ("quantize_model", "cpu", "", "cpun1")])
    assert {job.state for job in ran.jobs} == {"COMPLETED"}


def test_types_ran_side_by_side(ran):
    for one, other in combinations(GPUS, 2):
        of = {gpu: [job for job in ran.jobs if job.partition == gpu] for gpu in (one, other)}
        assert any(a.overlaps(b) for a in of[one] for b in of[other]), (one, other)


def test_real_engines_and_servers_ran_in_the_allocations_of_their_types(ran):
    runs = ran.store.read_runs().values()
    starts = sorted((run["stage"], run["gpu"]) for run in runs if run["engine_starts"])
    assert starts == sorted([*(("measure_engine", gpu) for gpu in GPUS), ("measure_serving", "l40s")])
    # what a run says of itself and what Slurm says of its job
    jobs = {str(job.id): (rule(job), job.partition, job.nodes) for job in ran.jobs}
    in_slurm = [run for run in runs if run["slurm_job"]]
    assert len(in_slurm) == len(jobs)
    for run in in_slurm:
        assert jobs[run["slurm_job"]] == (run["stage"], run["slurm_partition"], run["slurm_node"])
        assert run["gpu"] in (run["slurm_partition"], None)


def test_steps_of_the_login_node_never_went_to_slurm(ran):
    local = set(re.findall(r"^localrule (\w+):$", "".join(ran.said.values()), re.MULTILINE))
    assert local >= {"stage_model", "list_points", "plan", "ask_support", "build_tables", "render_report", "usage"}
    assert not local & {rule(job) for job in ran.jobs}


def test_a_second_run_submits_nothing(ran):
    before = len(ran.cluster.jobs())
    text = ran.type(RUN)
    assert "Nothing to be done" in text
    assert len(ran.cluster.jobs()) == before


def test_examples_of_the_page_are_valid(tmp_path):
    for i, text in enumerate(blocks("yaml")):
        path = tmp_path / f"{i}.yaml"
        path.write_text(text)
        load_cluster(path, gpus=GPUS)
