"""Staging: the one step that may use the network. Everything after it reads the store.

The hub's own client does the downloading (its token, its cache, its endpoint: HF_TOKEN, HF_HOME, HF_ENDPOINT).
"""

import fcntl
import json
import shutil
from pathlib import Path

from quantbench import sources
from quantbench.errors import UserError
from quantbench.keys import key
from quantbench.store import write_atomically


def stage(job, store, pins=sources.PINS):
    """Put a model or data set into the store; returns its key and folder. Raises UserError when it cannot be had."""
    kind = job["kind"]
    identity = job["identity"] or _resolve(job, pins)
    entry_key = key(identity)
    if not store.has_folder(f"{kind}s", entry_key):
        record = {"source": job["source"]}
        with store.new_folder(f"{kind}s", identity, record) as folder:
            if job["hub"]:
                _download(job, identity["commit"], folder)
            else:
                _copy(job, identity, folder)
            if kind == "dataset":
                record["splits"] = {path.stem: count_rows(path) for path in sorted(folder.glob("*.jsonl"))}
    return entry_key, store.folder(f"{kind}s", entry_key)


def count_rows(path):
    """Rows of a JSONL file, each of which must be an object with question and answer, or with text."""
    rows = 0
    with open(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path.name}, line {number}: not valid JSON: {error.msg}") from None
            if not isinstance(row, dict) or not ({"question", "answer"} <= row.keys() or "text" in row):
                raise UserError(f"{path.name}, line {number}: a row has the keys question and answer, or text")
            rows += 1
    return rows


def _copy(job, identity, folder):
    """Copies, not links: a source folder edited later must not change what a key stands for."""
    path = Path(job["path"])
    files = sources.dataset_files(path).values() if job["kind"] == "dataset" else sources.model_files(path)
    for file in files:
        name = "test.jsonl" if path.is_file() else file.name
        shutil.copyfile(file, folder / name)
    found = sources.parse(str(folder), "")
    again = sources.dataset_identity(found, None, {}) if job["kind"] == "dataset" else sources.model_identity(found, {})
    if again != identity:
        raise UserError(f"{path} changed while it was being copied; run the same command again")


def _resolve(job, pins_path):
    """The commit that an unpinned hub source means today, recorded so that it means the same tomorrow."""
    from huggingface_hub import HfApi

    info = HfApi().model_info if job["kind"] == "model" else HfApi().dataset_info
    commit = _asked(job, lambda: info(job["hub"], revision=job["revision"]).sha)
    pins_path = Path(pins_path)
    pins_path.parent.mkdir(parents=True, exist_ok=True)
    # Several sources may be staged at once.
    with open(pins_path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = sources.read_pins(pins_path)
        commit = known.setdefault(f"{job['kind']} {job['source']}", commit)
        write_atomically(pins_path, json.dumps(known, indent=1, sort_keys=True) + "\n")
    identity = {"artefact": job["kind"], "hub": job["hub"], "commit": commit}
    return identity | {"subset": job["subset"]} if job["kind"] == "dataset" else identity


def _download(job, commit, folder):
    if job["kind"] == "model":
        from huggingface_hub import snapshot_download

        patterns = list(sources.MODEL_FILES)
        _asked(job, lambda: snapshot_download(job["hub"], revision=commit, allow_patterns=patterns, local_dir=folder))
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        # Names what is wrong with a repository that has no safetensors.
        sources.model_files(folder)
        return
    from datasets import load_dataset

    splits = _asked(job, lambda: load_dataset(job["hub"], job["subset"], revision=commit))
    for name, rows in splits.items():
        rows.to_json(folder / f"{name}.jsonl", lines=True, force_ascii=False)


def _asked(job, call):
    """The hub's answer, with its refusals in the user's words."""
    from huggingface_hub import errors

    where = f"{job['kind']} {job['name']!r}, {job['source']}"
    try:
        return call()
    except errors.GatedRepoError:
        raise UserError(f"{where}: gated; accept its terms on the hub, then set HF_TOKEN to a token that may read it") from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise UserError(f"{where}: not on the hub, or private (set HF_TOKEN): {str(error).splitlines()[0]}") from None
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"{where}: the hub cannot be reached ({error}); run staging on a machine with network") from None
