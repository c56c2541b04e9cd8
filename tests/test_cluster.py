"""config/cluster.yaml: what a job asks Slurm for, what does not fit, and how a job enters an environment of the site's own."""

import copy
import functools
import math
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from quantbench import environments, scratch
from quantbench.cluster import load_cluster, misfits, placement, resources, too_few_devices
from quantbench.errors import UserError
from quantbench.estimate import Estimate
from quantbench.keys import canonical_json
from quantbench.manifest import build_manifest
from quantbench.points import check_versions
from quantbench.study import ROOT, load_study
from quantbench.workflow import Workflow
from workflow_study import CONFIG

DEFAULT = ROOT / "config" / "cluster.yaml"
GPUS = ("cpu", "h200", "h100", "a100", "rtx-6000-ada")
HOUR, GB = 3600, 10**9


def cluster(tmp_path, text):
    path = tmp_path / "cluster.yaml"
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    return load_cluster(path, GPUS)


def asked(found):
    """Resources that are asked for."""
    return {name: value for name, value in found.items() if value is not None}


# --- places ---------------------------------------------------------------------------------------------------------------


def test_the_default_file_has_a_partition_per_type():
    default = load_cluster(DEFAULT, GPUS)
    assert asked(resources(default, "measure_gemm", "h100")) == {
        "slurm_partition": "h100", "gres": "gpu:h100:1", "cpus_per_task": 8,
    }  # fmt: skip
    assert asked(resources(default, "measure_gemm", "cpu")) == {"slurm_partition": "cpu", "cpus_per_task": 8}
    # The site's default partition, without a device.
    assert asked(resources(default, "quantize_model")) == {"cpus_per_task": 8}
    assert (default["scratch"], default["copy_checkpoints"], default["environments"]) == (None, False, {})


def test_every_commented_example_of_the_default_file_is_valid(tmp_path):
    """Each block of comments that begins with `# gpus:` or `# environments:`, in place of what the file says."""
    lines, examples = DEFAULT.read_text().splitlines(), []
    for line in lines:
        if line in ("# gpus:", "# environments:"):
            examples.append([line[2:]])
        elif examples and line.startswith("#   "):
            examples[-1].append(line[2:])
    assert len(examples) == 3
    one_partition, features = (cluster(tmp_path, "\n".join(example)) for example in examples[:2])
    found = placement(one_partition, "measure_engine", "a100")
    assert (found["partition"], found["gres"], found["account"]) == ("gpu", "gpu:a100:1", "my-project")
    found = placement(features, "measure_engine", "h100")
    assert (found["partition"], found["gres"], found["constraint"]) == ("accelerated", "gpu:1", "h100")
    # An engine's in two ways, so each entry by itself.
    for entry in re.split(r"\n(?=  \S)", "\n".join(examples[2][1:])):
        assert cluster(tmp_path, f"environments:\n{entry}")["environments"]


def test_the_narrower_place_wins_and_null_takes_back(tmp_path):
    found = cluster(
        tmp_path,
        {
            "defaults": {"account": "ours", "qos": "normal", "cpus": 4},
            "gpus": {"default": {"partition": "gpu-{gpu}", "qos": None}, "h100": {"cpus": 16, "extra": "--exclusive"}},
            "quantize": {"like": "h100", "cpus": 32},
        },
    )
    place = placement(found, "measure_gemm", "h100")
    assert [place[name] for name in ("account", "qos", "partition", "cpus", "extra")] == [
        "ours",
        None,
        "gpu-h100",
        16,
        "--exclusive",
    ]
    assert placement(found, "measure_gemm", "a100")["cpus"] == 4
    place = placement(found, "quantize_model")
    assert (place["partition"], place["cpus"]) == ("gpu-h100", 32)


def test_an_engine_of_several_devices_asks_for_all_of_them(tmp_path):
    default = load_cluster(DEFAULT, GPUS)
    assert resources(default, "measure_engine", "h100", devices=4)["gres"] == "gpu:h100:4"
    assert too_few_devices(default, ["h100"], 4) == []
    one = cluster(
        tmp_path, {"gpus": {"h100": {"gres": "gpu:h100:1"}, "a100": {"gres": "gpu"}, "h200": {"gres": "gpu:8"}}}
    )
    said = too_few_devices(one, ["h100", "a100", "h200"], 4)
    assert [sentence.split(" is divided")[0] for sentence in said] == ["an engine on h100", "an engine on a100"]
    assert "asks Slurm for gpu:h100:1; write {devices}" in said[0]
    # one that is asked for in another way is left alone
    assert too_few_devices(cluster(tmp_path, {"gpus": {"h100": {"extra": "--gpus=4"}}}), ["h100"], 4) == []


def test_a_gres_that_the_plugin_refuses_goes_another_way(tmp_path):
    found = cluster(tmp_path, {"gpus": {"default": {"gres": "gpu:{gpu}:1", "extra": "--exclusive"}}})
    assert resources(found, "measure_gemm", "h100")["gres"] == "gpu:h100:1"
    hyphen = resources(found, "measure_gemm", "rtx-6000-ada")
    assert (hyphen["gres"], hyphen["slurm_extra"]) == (None, "--exclusive --gpus-per-node=rtx-6000-ada:1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu: {}", "unknown key 'gpu'; did you mean 'gpus'"),
        ("gpus: {h10: {}}", "gpus: unknown name 'h10'; did you mean 'h100'"),
        ("gpus: {h100: {partitions: x}}", "gpus.h100: unknown key 'partitions'; did you mean 'partition'"),
        ("defaults: {cpus: 0}", "defaults.cpus: 0 is too small; valid: at least 1"),
        ("gpus: {default: {partition: '{type}'}}", "gpus.default.partition: .* placeholder {type}; valid: {gpu}"),
        ("gpus: {default: {gres: 'gpu h100'}}", "gpus.default.gres: .* is not as sbatch's --gres"),
        ("quantize: {like: v100}", "quantize.like: unknown gpu 'v100'"),
        ("environments: {engine-cuda: {python: /p}}", "environments.engine-cuda: key 'versions' is missing"),
        ("environments: {engine-cpu: {versions: {vllm: 1.0.0, torch: 2.0.0, lm_eval: 0.1.0}}}", "give python or modules or image"),
        ("environments: {engine-cpu: {python: p, versions: {vllm: 1.0.0}}}", "versions: key 'torch' and 'lm_eval' is missing"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_by_key(tmp_path, text, message):
    with pytest.raises(UserError, match=f"cluster.yaml is not valid:\n.*{message}"):
        cluster(tmp_path, text)


# --- time and memory ------------------------------------------------------------------------------------------------------


def estimate(hours, gigabytes, basis="measured", start_s=60):
    return Estimate(hours * HOUR, gigabytes * GB, basis, points=10, start_s=start_s)


def test_requests_have_a_margin_and_grow_up_to_the_most(tmp_path):
    found = cluster(tmp_path, {"gpus": {"default": {"most_hours": 10, "most_memory_bytes": 50 * GB}}})

    def request(attempt, basis="measured", hours=2):
        asked = resources(found, "measure_engine", "h100", estimate(hours, 20, basis), attempt)
        return asked["runtime"], asked["mem_mb"]

    # twice 2 h is 240 min, then twice that; 25 % over 20e9 bytes are 25e9 / 2^20 = 23842 MiB, then half as much again
    assert request(1) == (240, 23842)
    assert request(2) == (480, 35763)
    # 960 min are more than the site's 10 h, 56.25e9 bytes more than its 50e9
    assert request(3) == (600, math.ceil(50 * GB / 2**20))
    # a guess is off by more
    assert request(1, "guess")[0] == 480
    # a minute of work is asked half an hour for: the first import from a cold file system
    assert request(1, hours=1 / 60)[0] == 30


def test_stated_requests_replace_the_estimate_and_grow_as_well(tmp_path):
    found = cluster(tmp_path, {"defaults": {"hours": 1.5, "memory_bytes": 2**30}})
    for attempt, runtime, mem_mb in ((1, 90, 1024), (2, 180, 1536)):
        asked = resources(found, "quantize_model", None, estimate(40, 400), attempt)
        assert (asked["runtime"], asked["mem_mb"]) == (runtime, mem_mb)


def test_what_cannot_fit_is_named_and_what_goes_on_at_a_retry_fits(tmp_path):
    limited = {"most_hours": 24, "most_memory_bytes": 100 * GB}
    found = cluster(tmp_path, {"gpus": {"h100": limited}, "quantize": {"most_hours": 1}})
    target = ("h100", "llama", "fp8")
    assert misfits(found, {("measure_engine", target): estimate(40, 90)}, attempts=2) == []
    [sentence] = misfits(found, {("measure_engine", target): estimate(60, 90)}, attempts=2)
    assert sentence == (
        "measure_engine/h100/llama/fp8 takes about 60.0 h (measured), but gpus.h100 allows 24 h at a time "
        "(most_hours in config/cluster.yaml) and 2 attempts"
    )
    # an engine that needs longer to start than a job may run never measures anything
    assert misfits(found, {("measure_engine", target): estimate(30, 9, start_s=25 * HOUR)}, attempts=2)
    [sentence] = misfits(found, {("measure_engine", target): estimate(1, 120)}, attempts=2)
    assert "takes about 120 GB of host memory, but gpus.h100 allows 100 GB" in sentence
    # a checkpoint keeps nothing until it is whole
    assert misfits(found, {("quantize_model", ("llama", "awq")): estimate(1.5, 9)}, attempts=2)
    assert misfits(found, {("measure_engine", ("a100", "llama", "fp8")): estimate(600, 900)}, attempts=1) == []


# --- keys -----------------------------------------------------------------------------------------------------------------

BROUGHT = {"python": "/bin/sh", "versions": {"vllm": "0.99.0", "torch": "2.99.0+cu999", "lm_eval": "0.9.0"}}
TOOLKIT = {
    "python": "/bin/sh",
    "versions": {"llmcompressor": "9.0.0", "compressed-tensors": "9.1.0", "torch": "2.99.0+cu999"},
}


def keys(study):
    manifest = build_manifest(study)
    return {entry["key"] for name in ("points", "checkpoints") for entry in manifest[name]}


def test_nothing_of_the_file_is_in_a_key_but_versions_of_what_the_site_brings(tmp_path):
    study = load_study(copy.deepcopy(CONFIG))
    before, text = keys(study), canonical_json(build_manifest(study))
    study.cluster = cluster(
        tmp_path,
        {
            "defaults": {"partition": "p", "account": "a", "qos": "q", "constraint": "c", "extra": "--x", "cpus": 3, "hours": 2},
            "gpus": {"cpu": {"gres": "gpu:1", "most_hours": 3, "most_memory_bytes": 4}},
            "quantize": {"like": "cpu"},
            "scratch": "/scratch", "copy_checkpoints": True,
            "environments": {"engine-cuda": BROUGHT},
        },
    )  # fmt: skip
    assert (keys(study), canonical_json(build_manifest(study))) == (before, text)
    study.cluster["environments"] = {"engine-cpu": BROUGHT}
    manifest = build_manifest(study)
    versions = {canonical_json(point["identity"]["versions"]) for point in manifest["points"]}
    assert versions == {
        canonical_json({"vllm": "0.99.0", "torch": "2.99.0+cu999"} | more) for more in ({}, {"lm_eval": "0.9.0"})
    }
    # The other environment's checkpoints stay as they are.
    assert {entry["key"] for entry in manifest["checkpoints"]} < before
    study.cluster["environments"] = {"quantize-cpu": TOOLKIT}
    [made] = [entry for entry in build_manifest(study)["checkpoints"] if entry["quantized"]]
    # as of pins: which build of torch is not among them
    assert made["identity"]["versions"] == {"llmcompressor": "9.0.0", "compressed-tensors": "9.1.0", "torch": "2.99.0"}


def test_other_versions_than_stated_are_refused_with_both():
    point = {"versions": {"vllm": "0.99.0", "torch": "2.13.0"}}
    with pytest.raises(UserError, match=r"vllm 0\.32\.0 is installed.*0\.99\.0"):
        check_versions([point], {"vllm": "0.32.0", "torch": "2.13.0"})


# --- interpreters ---------------------------------------------------------------------------------------------------------


def words(brought, name="engine-cuda", node=None, **more):
    """What a job's shell makes of an environment's command, with these variables of the node."""
    command = environments.interpreter(name, ROOT / "envs" / f"{name}.txt", brought, **more)
    show = ["bash", "-euo", "pipefail", "-c", f"printf '%s\\n' {command}"]
    said = subprocess.run(show, env={"PATH": os.environ["PATH"]} | (node or {}), capture_output=True, text=True)
    return said.stdout.splitlines()


def test_the_command_of_each_kind_of_environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    here = os.getcwd()
    assert words(None)[0].startswith(".venvs/engine-cuda-") and words(None)[0].endswith("/bin/python")
    assert words({"python": "/opt/with blank/python"}) == ["/opt/with blank/python"]
    modules = words({"modules": ["cuda/12.9", "vllm"]}, scripts="s")
    assert modules == ["bash", "s/with_modules.sh", "cuda/12.9", "vllm", "--", "python3"]
    # Apptainer's options as in its manual; none of these commands has been run.
    asked = ["apptainer", "exec", "--no-home", "--pwd", here]
    bound = ["--bind", here, "--bind", f"{here}/store", "--bind", "/data/store"]
    image = functools.partial(words, {"image": "v.sif"}, folders=["store", "/data/store"])
    assert image() == [*asked, "--nv", *bound, f"{here}/v.sif", "python3"]
    assert image(name="engine-cpu") == [*asked, *bound, f"{here}/v.sif", "python3"]
    # The scratch folder that the node's shell knows, where there is one.
    assert image(scratch="$SCRATCH", node={"SCRATCH": here}) == [
        *asked, "--nv", *bound, "--bind", here, f"{here}/v.sif", "python3"
    ]  # fmt: skip
    assert image(scratch="$SCRATCH") == image(scratch="$SCRATCH", node={"SCRATCH": "/not/here"}) == image()


def test_an_interpreter_or_image_that_is_not_there_is_refused_before_any_job(tmp_path, monkeypatch):
    loaded = load_study(copy.deepcopy(CONFIG))
    loaded.cluster["environments"] = {"engine-cpu": BROUGHT | {"python": "/not/here/python"}}
    monkeypatch.setattr("quantbench.workflow.load_study", lambda config: loaded)
    with pytest.raises(UserError, match="environments.engine-cpu.python: /not/here/python is not an interpreter"):
        Workflow({})
    loaded.cluster["environments"] = {
        "engine-cpu": {"image": str(tmp_path / "no.sif"), "versions": BROUGHT["versions"]}
    }
    with pytest.raises(UserError, match="image: there is no file .*no.sif"):
        Workflow({})
    # One that the study does not use is nobody's business; and what the site brings is not built.
    loaded.cluster["environments"] = {"engine-cuda": BROUGHT | {"python": "/not/here/python"}, "engine-cpu": BROUGHT}
    study = Workflow({})
    assert study.ready("engine-cpu") == [] and study.ready("quantize-cpu") != []
    assert study.interpreter("engine-cpu", "s") == "/bin/sh"


MODULES = [path for path in ("/usr/share/modules/init/bash", "/usr/share/lmod/lmod/init/bash") if Path(path).exists()]


def with_modules(tmp_path, *command):
    """Run with_modules.sh as on a node with these module files, in a shell that is no login shell."""
    (tmp_path / "mine").mkdir(exist_ok=True)
    # Tcl, which Lmod reads as well.
    (tmp_path / "mine" / "1.0").write_text(f"#%Module\nsetenv MINE yes\nprepend-path PATH {tmp_path}/tools\n")
    environment = {"PATH": os.environ["PATH"], "MODULEPATH": str(tmp_path)}
    script = ROOT / "workflow" / "scripts" / "with_modules.sh"
    return subprocess.run(
        ["bash", "-euo", "pipefail", script, *command], env=environment, capture_output=True, text=True
    )


@pytest.mark.skipif(not MODULES, reason="needs the module command: apt-get install environment-modules, or lmod")
def test_modules_are_loaded_for_the_command_and_a_missing_one_is_one_sentence(tmp_path):
    (tmp_path / "tools").mkdir()
    tool = tmp_path / "tools" / "tool"
    tool.write_text('#!/bin/sh\necho "$MINE $1"\n')
    tool.chmod(0o755)
    done = with_modules(tmp_path, "mine/1.0", "--", "tool", "two words")
    assert (done.returncode, done.stdout) == (0, "yes two words\n"), done.stderr
    done = with_modules(tmp_path, "mine/2.0", "--", "tool")
    assert done.returncode == 2 and done.stdout == ""
    assert "module load mine/2.0 failed on" in done.stderr.splitlines()[-1]


# --- where a job writes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path, monkeypatch):
    """This process as a job of a node whose scratch is tmp_path/scratch, and its home nowhere."""
    saved = dict(os.environ)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("QUANTBENCH_SCRATCH", "$NODE_DISK")
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "scratch"))
    monkeypatch.setenv("QUANTBENCH_CACHE", str(tmp_path / "study" / "cache"))
    monkeypatch.setenv("HOME", "/proc/no-home")
    monkeypatch.setenv("HF_DATASETS_CACHE", "/proc/no-home/datasets")
    scratch.announce()
    yield tmp_path
    scratch.remove()
    os.environ.clear()
    os.environ.update(saved)
    scratch.tempfile.tempdir = None
    scratch._LOCKS.clear()


@pytest.mark.parametrize("variable", ["QUANTBENCH_SCRATCH", "SLURM_JOB_ID"])
def test_a_script_run_by_hand_and_a_job_outside_of_slurm_are_left_alone(monkeypatch, variable):
    monkeypatch.delenv("QUANTBENCH_SCRATCH", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv(variable, "1")
    before = dict(os.environ)
    scratch.announce()
    scratch.isolate("cpu")
    scratch.remove()
    assert dict(os.environ) == before


def test_a_job_writes_below_scratch_and_the_study_alone(node):
    scratch.isolate("h100")
    folders = {name: Path(os.environ[name]) for name in (*scratch.PASSING, *scratch.COMPILED) if name != "TMPDIR"}
    roots = (node / "scratch", node / "study/cache/h100")
    outside = {name: path for name, path in folders.items() if not any(path.is_relative_to(root) for root in roots)}
    assert not outside and all(path.is_dir() for path in folders.values())
    assert "HF_DATASETS_CACHE" not in os.environ
    [folder] = (node / "scratch").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    scratch.remove()
    assert not list((node / "scratch").iterdir()) and (node / "study/cache/h100/triton/cache").is_dir()


def test_an_absent_scratch_falls_back_in_one_sentence_and_none_at_all_fails(node, monkeypatch, capsys):
    monkeypatch.setenv("NODE_DISK", "/proc/no-disk")
    monkeypatch.setenv("SLURM_TMPDIR", str(node / "scratch"))
    assert scratch.job_folder().parent == node / "scratch"
    assert f"scratch: /proc/no-disk: No such file or directory; using {node / 'scratch'}" in capsys.readouterr().err
    monkeypatch.setattr(scratch, "roots", lambda: [Path("/proc/no-disk"), Path("/sys")])
    with pytest.raises(UserError, match="no folder to write to on this node .*set `scratch`"):
        scratch.job_folder()


def test_what_killed_jobs_left_is_swept_and_what_living_ones_use_is_not(node):
    dead, new = (node / "scratch" / f"{scratch.PREFIX}{os.getuid()}-{name}" for name in ("dead", "new"))
    for folder in (dead, new):
        folder.mkdir()
        (folder / "lock").touch()
    own = scratch.job_folder()
    for folder in (dead, own):
        os.utime(folder, (0, 0))
    scratch.sweep(node / "scratch")
    assert {path.name for path in (node / "scratch").iterdir()} == {own.name, new.name}


@pytest.fixture
def checkpoint(node, monkeypatch):
    """A checkpoint of the store, with copies asked for."""
    monkeypatch.setenv("QUANTBENCH_COPY_CHECKPOINTS", "1")
    folder = node / "store" / "checkpoint"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    digests = {"model.safetensors": scratch.file_sha256(folder / "model.safetensors")}
    (folder / "quantbench.json").write_text(canonical_json({"identity": {}, "files": digests}))
    return folder


def test_a_copy_is_verified_by_the_stores_digests_and_goes_with_the_job(node, checkpoint):
    copied = Path(scratch.local_checkpoint(str(checkpoint)))
    assert copied.is_relative_to(node / "scratch") and (copied / "model.safetensors").read_bytes() == b"weights"
    scratch.remove()
    assert not copied.exists() and checkpoint.exists()
    # damaged on its way, or in the store itself since: either way not what was stored
    (checkpoint / "model.safetensors").write_bytes(b"weighty")
    with pytest.raises(UserError, match="model.safetensors is not what the store has"):
        scratch.local_checkpoint(str(checkpoint))


def test_a_checkpoint_is_read_from_the_store_where_it_does_not_fit(node, checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(scratch.shutil, "disk_usage", lambda path: scratch.shutil._ntuple_diskusage(9, 8, 1))
    assert scratch.local_checkpoint(str(checkpoint)) == str(checkpoint)
    assert "0.0 GB for a checkpoint of 0.0 GB; it is read from the store" in capsys.readouterr().err
    monkeypatch.undo()
    assert scratch.local_checkpoint(str(checkpoint)) == str(checkpoint)
