"""Identities of models and data sets: made of what they are, not of where they lie."""

import json
import os
import shutil

import pytest
from quantbench.errors import UserError
from quantbench.keys import file_sha256, key
from quantbench.sources import (
    RESOURCES,
    DigestCache,
    dataset_files,
    dataset_identity,
    model_files,
    model_identity,
    parse,
    read_pins,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    files = {
        "config.json": "{}",
        "model.safetensors": "weights",
        "tokenizer.json": "{}",
        "chat_template.jinja": "{{ x }}",
    }
    for name, content in files.items():
        (folder / name).write_text(content)
    return folder


def model_key(folder, **arguments):
    return key(model_identity(parse(str(folder), "model"), {}, **arguments))


# --- sources ------------------------------------------------------------------------------------------------------------


def test_a_hub_source_has_a_name_and_perhaps_a_revision():
    source = parse("hf://org/name", "model")
    assert (source.name, source.revision, source.pinned) == ("org/name", None, False)
    source = parse("hf://org/name@v1.0", "model")
    assert (source.name, source.revision, source.pinned) == ("org/name", "v1.0", False)
    source = parse(f"hf://org/name@{COMMIT}", "model")
    assert (source.name, source.revision, source.pinned) == ("org/name", COMMIT, True)
    # a shortened commit may come to mean two
    assert not parse(f"hf://org/name@{COMMIT[:12]}", "model").pinned


def test_tiny_is_what_is_shipped_and_home_is_home(monkeypatch, tmp_path):
    assert parse("tiny", "model").path == RESOURCES / "model"
    assert model_files(parse("tiny", "model").path) and set(dataset_files(parse("tiny", "data").path)) == {
        "train",
        "test",
    }
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse("~/models/x", "model").path == tmp_path / "models/x"


@pytest.mark.parametrize(
    "text", ["https://host/model", "s3://bucket/model", "hf://name", "hf:org/name", "hf://org/name@"]
)
def test_other_addresses_are_refused_with_what_is_valid(text):
    with pytest.raises(UserError, match="hf://org/name@revision") as refused:
        parse(text, "model")
    assert repr(text) in str(refused.value)


# --- models -------------------------------------------------------------------------------------------------------------


def test_a_copied_folder_is_the_same_model(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "elsewhere")
    os.utime(copy / "model.safetensors", (0, 0))
    assert model_key(copy) == model_key(model)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_changed_byte_or_name_is_another_model(name, model):
    before = model_key(model)
    (model / name).write_text((model / name).read_text() + " ")
    changed = model_key(model)
    assert changed != before
    (model / "added.json").write_text("{}")
    assert model_key(model) not in (before, changed)


def test_what_is_not_staged_is_not_in_the_identity(model):
    before = model_key(model)
    for name in ("README.md", "pytorch_model.bin", "modeling.py", "consolidated.safetensors", "quantbench.json"):
        (model / name).write_text("x")
    assert model_key(model) == before
    # Python counts once a model may bring it along.
    assert model_key(model, code=True) != before
    assert "modeling.py" in {path.name for path in model_files(model, code=True)}


def test_a_folder_without_config_or_safetensors_is_refused(model):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no \*\.safetensors"):
        model_files(model)
    with pytest.raises(UserError, match=r"there is no config\.json in it, or no such folder"):
        model_files(model / "nowhere")


def test_a_hub_model_is_its_name_and_commit():
    pinned = model_identity(parse(f"hf://org/name@{COMMIT}", "model"), {})
    assert pinned == {"artefact": "model", "hub": "org/name", "commit": COMMIT}
    loose = parse("hf://org/name@v1", "model")
    assert model_identity(loose, {}) is None
    # However its commit came to be known, it is one model.
    assert model_identity(loose, {"model hf://org/name@v1": COMMIT}) == pinned
    # pins are by kind: a data set may have a model's name
    assert model_identity(loose, {"dataset hf://org/name@v1": COMMIT}) is None
    assert model_identity(loose, {"model hf://org/name@v1": COMMIT}, code=True) == {**pinned, "code": True}


# --- data sets ------------------------------------------------------------------------------------------------------------


def test_a_jsonl_file_is_its_split_test(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"text": "x"}\n')
    assert dataset_files(path) == {"test": path}
    identity = dataset_identity(parse(str(path), "data"), None, {})
    assert identity == {"artefact": "dataset", "files": {"test": file_sha256(path)}}
    # The same rows in a folder are the same data.
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(path, folder / "test.jsonl")
    assert dataset_identity(parse(str(folder), "data"), None, {}) == identity


def test_a_source_without_jsonl_is_refused(tmp_path):
    (tmp_path / "data.csv").write_text("text\nx\n")
    for path in (tmp_path, tmp_path / "data.csv", tmp_path / "nowhere.jsonl"):
        with pytest.raises(UserError, match=r"valid is a \.jsonl file, or a folder of <split>\.jsonl files"):
            dataset_files(path)


def test_subsets_of_a_hub_data_set_differ():
    source = parse(f"hf://openai/gsm8k@{COMMIT}", "data")
    main = dataset_identity(source, "main", {})
    assert main == {"artefact": "dataset", "hub": "openai/gsm8k", "commit": COMMIT, "subset": "main"}
    assert key(main) != key(dataset_identity(source, "socratic", {}))
    assert dataset_identity(parse("hf://openai/gsm8k", "data"), "main", {}) is None


# --- pins and digests -------------------------------------------------------------------------------------------------------


def test_pins_are_empty_until_written_and_refused_when_broken(tmp_path):
    path = tmp_path / "pins.json"
    assert read_pins(path) == {}
    path.write_text(json.dumps({"model hf://org/name": COMMIT}))
    assert read_pins(path) == {"model hf://org/name": COMMIT}
    path.write_text("<<<<<<< HEAD")
    with pytest.raises(UserError, match="not valid JSON"):
        read_pins(path)


def test_a_file_is_read_again_only_when_it_changed(model, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("quantbench.sources.file_sha256", lambda path: read.append(path.name) or file_sha256(path))
    digest, weights = DigestCache(tmp_path / "digests.json"), model / "model.safetensors"
    assert digest(weights) == digest(weights) == file_sha256(weights)
    assert read == ["model.safetensors"]
    weights.write_text("changed")
    os.utime(weights, ns=(1, 1))
    assert digest(weights) == file_sha256(weights)
    assert len(read) == 2
