"""What a site may be like, on a real Slurm: its habits in config/cluster.yaml, nodes without home, network or room to write.

GPU types are this machine's CPU by their names, as in test_slurm_chain.py.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import yaml
from quantbench.environments import engine_versions, scoring_versions, toolkit_versions
from workflow_study import CONFIG, ROOT, Checkout, needs_environments

pytestmark = [pytest.mark.workflow, pytest.mark.slurm, needs_environments]

TYPES = ("h100", "a100", "l40s")
SLURM = ("--profile", "slurm")


class Site(Checkout):
    """A checkout on the login node of a test cluster, with its own config/cluster.yaml."""

    def __init__(self, folder, cluster, gpus, **config):
        kept = {name: CONFIG[name] for name in ("store", "title", "models", "datasets", "engine")}
        repeats = {"least": 2, "most": 2, "relative_ci": 1}
        variant = {"schemes": ["rtn-int4"], "baseline": "rtn-int4"}
        super().__init__(folder, kept | variant | {"study": "site", "gpus": list(gpus), "repeats": repeats} | config)
        self.cluster = cluster
        sheets = self.folder / "config" / "gpus.yaml"
        sheets.write_text(yaml.safe_dump(dict.fromkeys(TYPES, yaml.safe_load(sheets.read_text())["cpu"])))

    def environment(self):
        """A node has no home: what sbatch exports is none that is there."""
        wrapper = self.folder / "bin" / "sbatch"
        if not wrapper.exists():
            wrapper.parent.mkdir()
            wrapper.write_text(f'#!/bin/sh\nHOME=/proc/no-home exec {self.cluster.folder}/bin/sbatch "$@"\n')
            wrapper.chmod(0o755)
        found = self.cluster.environment()
        return found | {"PATH": f"{wrapper.parent}:{found['PATH']}"}

    def say(self, cluster):
        (self.folder / "config" / "cluster.yaml").write_text(yaml.safe_dump(cluster))


def site(folder, cluster, gpus, **config):
    (folder / "quantbench").mkdir()
    Checkout.of_working_tree(folder / "quantbench")
    return Site(folder / "quantbench", cluster, gpus, **config)


def walled_python(folder, scratch, kind):
    """An interpreter without a network but loopback, that can write nowhere but below these two folders."""
    path = folder / f"{kind.lower()}-python"
    path.write_text(f"""#!/bin/bash
# The login node is as it was.
[ "$SLURM_JOB_ID" ] || exec {os.environ[f"QUANTBENCH_{kind}_PYTHON"]} "$@"
exec unshare --net --mount bash -ec '
ip link set lo up
mount --make-rprivate /
mount --bind "{folder}" "{folder}"
mount --bind "{scratch}" "{scratch}"
mount -o remount,bind,ro /
cd "$PWD"
exec "$@"' bash {os.environ[f"QUANTBENCH_{kind}_PYTHON"]} "$@"
""")
    path.chmod(0o755)
    return str(path)


def can_wall():
    """Whether we may take a process its network and make its file system read-only."""
    command = [
        "unshare",
        "--net",
        "--mount",
        "bash",
        "-ec",
        "ip link set lo up; mount --make-rprivate /; mount -o remount,bind,ro /",
    ]
    return shutil.which("ip") is not None and subprocess.run(command, capture_output=True).returncode == 0


def test_the_whole_chain_on_nodes_without_home_network_or_room_to_write(slurm, tmp_path, request):
    """With interpreters of the site's own and copies of checkpoints; afterwards scratch is empty, and an edit costs nothing."""
    if not can_wall():
        pytest.skip("needs root, unshare and ip, to take a job its network and its file system")
    # Sockets' paths are short.
    scratch = Path(tempfile.mkdtemp(prefix="node", dir="/tmp"))
    request.addfinalizer(lambda: shutil.rmtree(scratch))
    loads = {"concurrencies": [1], "lengths": CONFIG["latency"]["lengths"], "requests": 4}
    more = {name: CONFIG[name] for name in ("kernels", "latency", "accuracy", "perplexity")}
    work = site(tmp_path, slurm, ["l40s"], serving=loads, **more)
    envs = ROOT / "envs"
    engine = engine_versions(envs / "engine-cpu.txt") | scoring_versions(envs / "engine-cpu.txt")
    said = {
        "gpus": {"default": {"partition": "urgent", "gres": "gpu:{gpu}:1"}},
        "quantize": {"partition": "cpu"},
        "scratch": str(scratch),
        "copy_checkpoints": True,
        "environments": {
            "engine-cpu": {"python": walled_python(work.folder, scratch, "ENGINE"), "versions": engine},
            "quantize-cpu": {
                "python": walled_python(work.folder, scratch, "QUANTIZE"),
                "versions": toolkit_versions(envs / "quantize-cpu.txt"),
            },
        },
    }
    work.say(said)
    run = work.done(*SLURM, timeout_s=900)
    assert set(run.stages) == {
        "probe",
        "support",
        "gemm",
        "layers",
        "load",
        "latency",
        "accuracy",
        "perplexity",
        "serving",
    }
    assert {record["status"] for record in run.new.values()} == {"ok"}
    places = {job.comment.split("_wildcards_")[0]: (job.partition, job.gres) for job in slurm.jobs().values()}
    on_device = ("urgent", "gpu:l40s:1")
    assert places == dict.fromkeys(
        ("rule_probe_gpu", "rule_measure_gemm", "rule_measure_engine", "rule_measure_serving"), on_device
    ) | {"rule_quantize_model": ("cpu", "")}
    assert list(scratch.iterdir()) == []
    # What the engine compiled and found out stays with the study.
    assert any((work.results / "cache" / "l40s" / "vllm").iterdir())
    # Another partition, another limit, the built environments of the same versions: nothing is asked of Slurm.
    before = len(slurm.jobs())
    work.say({"gpus": {"default": {"partition": "{gpu}", "gres": "gpu:1", "hours": 1}}, "copy_checkpoints": False})
    again = work.done(*SLURM)
    assert not again.new and not again.jobs.keys() - {"all"} and len(slurm.jobs()) == before


def test_habits_of_sites_account_qos_and_constraint_and_what_is_asked_for(slurm_with_accounting, tmp_path):
    """Partition per type, one partition with types, and features; time, memory and cores; then what does not fit."""
    cluster = slurm_with_accounting
    cluster.run("sacctmgr", "-i", "add", "qos", "long")
    cluster.run("sacctmgr", "-i", "add", "account", "ours")
    cluster.run("sacctmgr", "-i", "add", "user", os.environ.get("USER", "root"), "account=ours", "qos=normal,long")
    cluster.run("scontrol", "update", "NodeName=l40sn1", "AvailableFeatures=ada,l40s", "ActiveFeatures=ada,l40s")
    work = site(tmp_path, cluster, TYPES)
    said = {
        "defaults": {"account": "ours", "cpus": 2, "memory_bytes": 2**30},
        "gpus": {
            "default": {"partition": "{gpu}", "gres": "gpu:{gpu}:1", "hours": 1.5},
            "a100": {"partition": "urgent", "qos": "long"},
            "l40s": {"partition": "urgent", "gres": "gpu:1", "constraint": "ada&{gpu}"},
        },
    }
    work.say(said)
    # A job longer than this site allows, before anything is submitted.
    work.say(said | {"gpus": said["gpus"] | {"h100": {"most_hours": 0.0001}}})
    refused = work.snakemake(*SLURM, "kernels")
    assert refused.returncode == 1 and not cluster.jobs()
    assert "probe_gpu/h100 takes about" in refused.text and "gpus.h100 allows 0.0001 h" in refused.text
    work.say(said)
    work.done(*SLURM, *(f"results/site/gpus/{gpu}.json" for gpu in TYPES), timeout_s=600)
    jobs = {job.comment.strip().rpartition("_")[2]: job for job in cluster.jobs().values()}
    assert {gpu: (job.partition, job.gres, job.nodes) for gpu, job in jobs.items()} == {
        "h100": ("h100", "gpu:h100:1", "h100n1"),
        "a100": ("urgent", "gpu:a100:1", "a100n1"),
        "l40s": ("urgent", "gpu:1", "l40sn1"),
    }
    names = ("Account", "TimeLimit", "MinMemoryNode", "NumCPUs")
    asked = {gpu: tuple(job.fields[name] for name in names) for gpu, job in jobs.items()}
    assert asked == dict.fromkeys(TYPES, ("ours", "01:30:00", "1G", "2"))
    assert (jobs["a100"].fields["QOS"], jobs["l40s"].fields["Features"]) == ("long", "ada&l40s")
