"""Staging against a hub on the loopback, with the hub's real client: what is fetched, pinned, refused and never written."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import polars
import pytest
import task_data
import yaml
from fake_hub import FakeHub
from forks import Forks
from quantbench.errors import UserError
from quantbench.sources import MODEL_FILES, RESOURCES, dataset_identity, model_identity, parse
from quantbench.staging import stage
from quantbench.store import Store

ROOT = Path(__file__).parents[1]
MODEL = {"config.json": b'{"hidden_size": 8}', "model.safetensors": b"weights" * 100, "tokenizer.json": b"{}"}
ROWS = [{"question": "1+1?", "answer": "#### 2"}, {"question": "2+2?", "answer": "#### 4"}]
CARD = b"""---
configs:
- {config_name: main, data_files: [{split: train, path: main/train-*}, {split: test, path: main/test-*}]}
- {config_name: socratic, data_files: [{split: train, path: socratic/train-*}]}
---
"""


@pytest.fixture
def hub():
    with FakeHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def client(engine_python):
    """Runs Python where the hub's client is, with what that imports. The client itself reads its variables when imported."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE"))}
    with Forks(engine_python, ["aiohttp", "httpx", "multiprocess", "pandas", "pyarrow.parquet"], own) as forks:
        yield forks


@pytest.fixture
def staged(tmp_path, hub, client):
    """stage.py as the rules run it, in a folder of its own; returns its process."""

    def run(kind="model", name="org/small", revision=None, subset=None, identity=None, code=False, **environment):
        job = {
            "kind": kind,
            "name": "mine",
            "source": f"hf://{name}" + (f"@{revision}" if revision else ""),
            "path": None,
            "hub": name,
            "revision": revision,
            "subset": subset,
            "identity": identity,
            "trust_remote_code": code,
        }
        options = [f"--job={json.dumps(job)}", f"--store={tmp_path / 'store'}", f"--output={tmp_path / 'pointer.json'}"]
        variables = hub_environment(hub, tmp_path) | environment
        return client.run(ROOT / "workflow/scripts/stage.py", *options, folder=tmp_path, **variables)

    return run


def hub_environment(hub, tmp_path):
    """The hub's address, and an empty cache."""
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "NO_PROXY": "127.0.0.1"}


def entry(tmp_path):
    """(quantbench.json, folder) of what was staged last."""
    pointer = json.loads((tmp_path / "pointer.json").read_text())
    folder = Path(pointer["path"])
    return json.loads((folder / "quantbench.json").read_text()), folder


def in_store(tmp_path):
    return [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


def refusal(process):
    """The one message of a staging that the user can mend."""
    assert process.returncode == 2
    assert "Traceback" not in process.stderr
    return process.stderr.splitlines()[-1]


def parquet(rows):
    file = io.BytesIO()
    polars.DataFrame(rows).write_parquet(file)
    return file.getvalue()


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.engine
def test_an_unpinned_model_is_pinned_by_its_first_staging(tmp_path, hub, staged):
    repository = hub.model("org/small")
    first = repository.commit(MODEL)
    assert staged().returncode == 0
    record, folder = entry(tmp_path)
    assert record["identity"] == {"artefact": "model", "hub": "org/small", "commit": first}
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name in MODEL} == MODEL
    assert json.loads((tmp_path / "config/pins.json").read_text()) == {"model hf://org/small": first}

    # main moves on the hub; the study's model does not, even where the store has lost it
    repository.commit(MODEL | {"model.safetensors": b"others"})
    shutil.rmtree(tmp_path / "store")
    assert staged().returncode == 0
    assert entry(tmp_path)[0]["identity"]["commit"] == first
    assert (entry(tmp_path)[1] / "model.safetensors").read_bytes() == MODEL["model.safetensors"]


@pytest.mark.engine
def test_a_pinned_revision_needs_no_pins_file(tmp_path, hub, staged):
    repository = hub.model("org/small")
    pinned = repository.commit(MODEL)
    repository.commit(MODEL | {"model.safetensors": b"others"})
    identity = {"artefact": "model", "hub": "org/small", "commit": pinned}
    process = staged(revision=pinned, identity=identity)
    assert process.returncode == 0, process.stderr
    assert (entry(tmp_path)[1] / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert not (tmp_path / "config").exists()
    # What is staged needs the hub no more.
    hub.requests.clear()
    assert staged(revision=pinned, identity=identity).returncode == 0
    assert hub.requests == []


@pytest.mark.engine
def test_only_safetensors_and_text_are_downloaded(tmp_path, hub, staged):
    unwanted = {
        "pytorch_model.bin": b"pickle",
        "modeling_small.py": b"import os",
        "original/model.safetensors": b"again",
        "consolidated.safetensors": b"again",
        "training_args.bin": b"pickle",
    }
    hub.model("org/small").commit(MODEL | unwanted)
    assert staged().returncode == 0
    assert {path.name for path in entry(tmp_path)[1].iterdir()} == {*MODEL, "quantbench.json"}
    for name in unwanted:
        assert hub.asked_for(name) == []


@pytest.mark.engine
def test_python_comes_along_only_where_it_is_trusted(tmp_path, hub, staged):
    hub.model("org/small").commit(MODEL | {"modeling_small.py": b"import os"})
    assert staged(code=True).returncode == 0
    record, folder = entry(tmp_path)
    assert (folder / "modeling_small.py").exists() and record["identity"]["code"] is True
    # The same commit without it is another entry.
    assert staged().returncode == 0
    assert entry(tmp_path)[1] != folder and not (entry(tmp_path)[1] / "modeling_small.py").exists()


@pytest.mark.engine
def test_pickled_weights_are_refused_and_leave_nothing(tmp_path, hub, staged):
    hub.model("org/small").commit({"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    assert "'hf://org/small': no *.safetensors" in refusal(staged())
    assert not in_store(tmp_path) and not list((tmp_path / "store").glob("*/.partial-*"))


@pytest.mark.engine
def test_a_gated_model_asks_for_a_token_and_keeps_it_to_itself(tmp_path, hub, staged):
    hub.model("org/small", gated=True).commit(MODEL)
    message = refusal(staged())
    assert "model 'mine', hf://org/small: gated" in message and "HF_TOKEN" in message
    assert not in_store(tmp_path)

    process = staged(HF_TOKEN=hub.token)
    assert process.returncode == 0, process.stderr
    assert f"Bearer {hub.token}" in {authorization for _, _, authorization in hub.requests}
    assert hub.token not in process.stdout + process.stderr
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or hub.token.encode() not in path.read_bytes(), path


# what the hub is asked for and set to, what the message has to say
REFUSALS = {
    "missing": ({}, {"name": "org/other"}, ["not on the hub, or private", "HF_TOKEN"]),
    "private": ({"private": True}, {}, ["not on the hub, or private", "HF_TOKEN"]),
    "no such revision": ({}, {"revision": "v2"}, ["no revision 'v2'"]),
    "wrong token": ({}, {"HF_TOKEN": "hf_other"}, ["refuses this token (status 401)", "HF_TOKEN"]),
    "offline": ({}, {"HF_HUB_OFFLINE": "1"}, ["cannot be reached", "machine with network"]),
}


@pytest.mark.engine
@pytest.mark.parametrize("case", REFUSALS)
@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_refusals_are_one_message(case, kind, tmp_path, hub, staged):
    flags, arguments, words = REFUSALS[case]
    (hub.model if kind == "model" else hub.dataset)("org/small", **flags).commit(MODEL)
    message = refusal(staged(kind, **arguments))
    assert message.startswith(f"error: {kind} 'mine', hf://org/")
    for word in words:
        assert word in message
    assert not in_store(tmp_path) and not (tmp_path / "config/pins.json").exists()


@pytest.mark.engine
@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_hub_out_of_reach_is_one_message(kind, pinned, tmp_path, staged):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}"
    identity = {"artefact": kind, "hub": "org/small", "commit": "a" * 40} if pinned else None
    message = refusal(staged(kind, identity=identity, HF_ENDPOINT=nobody))
    assert "the hub cannot be reached" in message and "machine with network" in message
    assert not in_store(tmp_path)


# --- data sets --------------------------------------------------------------------------------------------------------


@pytest.fixture
def gsm8k(hub):
    files = {"README.md": CARD, "socratic/train-00000-of-00001.parquet": parquet(ROWS[:1])}
    for split, rows in (("train", ROWS), ("test", ROWS[:1])):
        files[f"main/{split}-00000-of-00001.parquet"] = parquet(rows)
    return hub.dataset("openai/gsm8k"), files


@pytest.mark.engine
def test_a_data_set_becomes_one_jsonl_per_split(tmp_path, hub, staged, gsm8k):
    repository, files = gsm8k
    commit = repository.commit(files)
    # A folder of that name beside the study is not what its config means.
    (tmp_path / "openai/gsm8k").mkdir(parents=True)
    process = staged("dataset", "openai/gsm8k", subset="main")
    assert process.returncode == 0, process.stderr
    record, folder = entry(tmp_path)
    assert record["identity"] == {"artefact": "dataset", "hub": "openai/gsm8k", "commit": commit, "subset": "main"}
    assert record["splits"] == {"train": 2, "test": 1}
    assert [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()] == ROWS
    assert not hub.asked_for("socratic/train")
    assert json.loads((tmp_path / "config/pins.json").read_text()) == {"dataset hf://openai/gsm8k": commit}


@pytest.mark.engine
@pytest.mark.parametrize("subset", [None, "mian"])
def test_a_subset_that_is_not_there_is_refused_with_those_that_are(subset, tmp_path, staged, gsm8k):
    repository, files = gsm8k
    repository.commit(files)
    message = refusal(staged("dataset", "openai/gsm8k", subset=subset))
    assert "subset: " in message and "['main', 'socratic']" in message
    assert not in_store(tmp_path)


@pytest.mark.engine
def test_a_gated_data_set_asks_for_a_token(hub, staged):
    hub.dataset("org/small", gated=True).commit({"test.jsonl": b'{"text": "x"}\n'})
    message = refusal(staged("dataset"))
    assert "gated" in message and "HF_TOKEN" in message
    assert staged("dataset", HF_TOKEN=hub.token).returncode == 0


@pytest.mark.engine
def test_an_unreachable_hub_is_not_replaced_by_what_its_cache_has(tmp_path, hub, staged):
    hub.dataset("org/small").commit({"test.jsonl": b'{"text": "old"}\n'})
    assert staged("dataset").returncode == 0
    # Left to itself, load_dataset falls back to the commit that it has seen before.
    later = hub.dataset("org/small").commit({"README.md": b"nothing here"})
    other = {"artefact": "dataset", "hub": "org/small", "commit": later, "subset": None}
    assert "cannot be read as a data set" in refusal(staged("dataset", identity=other))
    hub.failing = 503
    assert "status 503" in refusal(staged("dataset", identity=other))


@pytest.mark.engine
def test_rows_without_the_keys_are_refused_by_file_and_line(tmp_path, hub, staged):
    hub.dataset("org/small").commit({"test.jsonl": b'{"prompt": "x"}\n'})
    message = refusal(staged("dataset"))
    assert "dataset 'mine', hf://org/small: test.jsonl, line 1" in message and "question and answer" in message
    assert not in_store(tmp_path)


@pytest.mark.engine
def test_what_is_no_data_set_is_refused(hub, staged):
    hub.dataset("org/small").commit({"README.md": b"nothing here\n"})
    assert "cannot be read as a data set" in refusal(staged("dataset"))


# --- local sources, without the hub's client ----------------------------------------------------------------------------


def local_job(kind, path, identity):
    return {"kind": kind, "name": "mine", "source": str(path), "path": str(path), "hub": None, "identity": identity}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"question": "2+2?"}', "a row has the texts question and answer"),
        ('{"question": "2+2?", "answer": 4}', "a row has the texts question and answer"),
        ('["2+2?"]', "a row has the texts question and answer"),
        ('{"question": ', "not valid JSON"),
    ],
)
def test_a_bad_row_is_refused_with_its_place(line, fault, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(f'{{"question": "1+1?", "answer": "2"}}\n\n{line}\n')
    identity = dataset_identity(parse(str(path), "data"), None, {})
    with pytest.raises(UserError, match=f"test.jsonl, line 3: {fault}"):
        stage(local_job("dataset", path, identity), Store(tmp_path / "store"))
    assert not in_store(tmp_path)


def test_a_local_model_is_copied_and_a_source_that_changes_meanwhile_refused(tmp_path):
    source = tmp_path / "model"
    source.mkdir()
    for name, content in (MODEL | {"weights.bin": b"pickle", "code.py": b""}).items():
        (source / name).write_bytes(content)
    identity = model_identity(parse(str(source), "model"), {})
    assert set(identity["files"]) == set(MODEL)
    (source / "model.safetensors").write_bytes(b"edited")
    with pytest.raises(UserError, match="changed while it was being copied"):
        stage(local_job("model", source, identity), Store(tmp_path / "store"))
    assert not in_store(tmp_path)
    (source / "model.safetensors").write_bytes(MODEL["model.safetensors"])
    _, folder = stage(local_job("model", source, identity), Store(tmp_path / "store"))
    assert {path.name for path in folder.iterdir()} == {*MODEL, "quantbench.json"}
    assert (folder / "model.safetensors").stat().st_nlink == 1


# --- the workflow -------------------------------------------------------------------------------------------------------


@pytest.mark.workflow
@pytest.mark.engine
def test_snakemake_stages_from_the_hub_and_is_offline_ever_after(tmp_path, hub, client, gsm8k):
    repository, files = gsm8k
    repository.commit(files)
    shipped = {path.name: path for pattern in MODEL_FILES for path in (RESOURCES / "model").glob(pattern)}
    hub.model("org/small").commit({name: path.read_bytes() for name, path in shipped.items()})
    task_data.serve(hub)
    # A checkout of its own: pins, pointers and Snakemake's records are the test's.
    tree = tmp_path / "tree"
    for name in ("workflow", "config", "envs", "profiles", "resources"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "pins.json"))
    shutil.copy(ROOT / "Snakefile", tree)
    (tree / ".venvs").symlink_to(Path(client.python).absolute().parents[2])
    config = {
        "study": "mine",
        "title": "Which?",
        "models": [{"name": "small", "source": "hf://org/small"}],
        "schemes": ["bf16"],
        "gpus": ["cpu"],
        "datasets": [{"name": "sums", "source": "hf://openai/gsm8k", "subset": "main"}],
        "latency": {"batch_sizes": [1], "lengths": [{"input_tokens": 16, "output_tokens": 4}]},
        "accuracy": [{"task": "gsm8k", "dataset": "sums", "questions": 1, "shots": 2}, {"task": "arc_easy"}],
    }
    (tree / "config/mine.yaml").write_text(yaml.safe_dump(config))

    def snakemake(*arguments, **environment):
        command = [sys.executable, "-m", "snakemake", *arguments, "--configfile", "config/mine.yaml"]
        variables = client.environment | hub_environment(hub, tmp_path) | environment
        return subprocess.run(command, cwd=tree, env=variables, capture_output=True, text=True, timeout=300)

    process = snakemake("staging")
    assert process.returncode == 0, process.stderr[-3000:]
    assert set(json.loads((tree / "config/pins.json").read_text())) == {
        "model hf://org/small",
        "dataset hf://openai/gsm8k",
        "task arc_easy of lm-eval 0.4.13",
    }

    # The hub moves on and then goes away; every job is known, since the commits are pinned and the config is in the store.
    hub.model("org/small").commit({"config.json": b"{}"})
    hub.failing = 503
    hub.requests.clear()
    process = snakemake("-n")
    assert process.returncode == 0, process.stderr[-3000:]
    plan = process.stdout + process.stderr
    assert "measure_engine" in plan and "probe_gpu" in plan and "stage_model" not in plan
    process = snakemake("staging")
    assert process.returncode == 0 and "Nothing to be done" in process.stdout + process.stderr
    assert hub.requests == []
    # The store's loss is noticed, and says so in the hub's words.
    shutil.rmtree(tree / "results/store/models")
    process = snakemake("staging", HF_HOME=str(tmp_path / "empty"))
    assert process.returncode == 1 and "the hub cannot answer now (status 503)" in process.stdout + process.stderr
