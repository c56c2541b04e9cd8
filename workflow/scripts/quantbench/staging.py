"""Staging: the one step that may use the network. Everything after it reads the store.

The hub's own client does the downloading: its token, its endpoint and its cache (HF_TOKEN, HF_ENDPOINT, HF_HOME) are the
user's, so an interrupted download goes on where it stopped, and a model that is in the cache is not fetched again.
"""

import errno
import fcntl
import json
import os
import shutil
import tempfile
from pathlib import Path

from quantbench import sources
from quantbench.console import say
from quantbench.dummy import is_dummy, write_tokenizer
from quantbench.errors import UserError
from quantbench.keys import file_sha256, key
from quantbench.store import write_atomically


def stage(job, store, pins=sources.PINS):
    """Put a model, data set or task's data into the store; returns key and folder. Raises UserError when it cannot be had."""
    kind = job["kind"]
    if kind == "task":
        from quantbench.staging_tasks import stage_task

        return stage_task(job, store, pins)
    identity = job["identity"] or _resolve(job, pins)
    entry_key = key(identity)
    if not store.has_folder(f"{kind}s", entry_key):
        record = {"source": job["source"]}
        with store.new_folder(f"{kind}s", identity, record) as folder:
            if job["hub"]:
                say(f"{_where(job)}: downloading commit {identity['commit']}")
                _download(job, identity["commit"], folder)
            else:
                _copy(job, identity, folder)
            if is_dummy(job):
                write_tokenizer(folder)
            # What a copy on a node is held to; of a local source they are the identity.
            if job["hub"] and kind == "model":
                record["files"] = {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}
            if kind == "dataset":
                record["splits"] = {path.stem: count_rows(path, job) for path in sorted(folder.glob("*.jsonl"))}
    return entry_key, store.folder(f"{kind}s", entry_key)


def count_rows(path, job):
    """Rows of a JSONL file, each of which must be an object with the texts question and answer, or the text `text`.

    Where only tasks with columns of their own read it (job `texts` is false), any object is a row.
    """
    rows = 0
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{_where(job)}: {path.name}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{place}: not valid JSON: {error.msg}") from None
            if not job.get("texts", True):
                if not isinstance(row, dict):
                    raise UserError(f"{place}: a row is a JSON object, with the columns that its task reads")
                rows += 1
                continue
            texts = {name for name, value in row.items() if isinstance(value, str)} if isinstance(row, dict) else set()
            if not ({"question", "answer"} <= texts or "text" in texts):
                raise UserError(f"{place}: a row has the texts question and answer, or the text `text`")
            rows += 1
    return rows


def _copy(job, identity, folder):
    """Copies, not links: a source folder edited later must not change what a key stands for."""
    path, is_dataset = Path(job["path"]), job["kind"] == "dataset"
    flags = {"code": identity.get("code", False), "dummy": is_dummy(identity)}
    for file in sources.dataset_files(path).values() if is_dataset else sources.model_files(path, **flags):
        name = "test.jsonl" if path.is_file() else file.name
        shutil.copyfile(file, folder / name)
    copy = sources.Source(job["source"], path=folder)
    again = sources.dataset_identity(copy, None, {}) if is_dataset else sources.model_identity(copy, {}, **flags)
    if again != identity:
        raise UserError(f"{path} changed while it was being copied; run the same command again")


def _resolve(job, pins_path):
    """Identity of an unpinned hub source: the commit that it means today, recorded so that it means the same tomorrow."""
    pins_path = Path(pins_path)
    pins_path.parent.mkdir(parents=True, exist_ok=True)
    source = sources.Source(job["source"], name=job["hub"], revision=job["revision"])
    # Several sources may be staged at once.
    with open(pins_path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pins = sources.read_pins(pins_path)
        name = sources.pin_name(job["kind"], source)
        if name not in pins:
            pins[name] = hub_commit(job, job["revision"])
            write_atomically(pins_path, json.dumps(pins, indent=1, sort_keys=True) + "\n")
    if job["kind"] == "dataset":
        return sources.dataset_identity(source, job["subset"], pins)
    code, dummy = job.get("trust_remote_code", False), is_dummy(job)
    return sources.model_identity(source, pins, code=code, dummy=dummy)


def hub_commit(job, revision):
    from huggingface_hub import HfApi

    info = HfApi().model_info if job["kind"] == "model" else HfApi().dataset_info
    return asked_hub(job, lambda: info(job["hub"], revision=revision).sha)


def _download(job, commit, folder):
    if job["kind"] == "model":
        from huggingface_hub import snapshot_download

        code, dummy = job.get("trust_remote_code", False), is_dummy(job)
        # Patterns match across slashes, and what lies deeper is the same weights in other formats.
        wanted = {
            "allow_patterns": sources.model_patterns(code, dummy),
            "ignore_patterns": ["*/*", sources.MISTRAL_WEIGHTS],
        }
        cached = asked_hub(job, lambda: snapshot_download(job["hub"], revision=commit, **wanted))
        try:
            files = sources.model_files(cached, code, dummy)
        except UserError as error:
            raise UserError(str(error).replace(repr(cached), repr(job["source"]))) from None
        for file in files:
            _link_or_copy(file.resolve(), folder / file.name)
        return
    from datasets import load_dataset

    # Tells whether it is there at all; load_dataset's own words for that are worse.
    hub_commit(job, commit)
    # The prefix: a folder here that happens to be called org/name is not what is meant. A cache of its own: where anything
    # goes wrong, load_dataset would take whatever commit of this data set its cache has.
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as cache:
        source = {"path": f"hf://datasets/{job['hub']}", "name": job["subset"], "revision": commit, "cache_dir": cache}
        splits = asked_hub(job, lambda: load_dataset(**source))
        for name, rows in splits.items():
            rows.to_json(folder / f"{name}.jsonl", lines=True, force_ascii=False)


def _link_or_copy(cached, path):
    """One copy on disk where cache and store share a file system; the cache's files are named by their content."""
    try:
        os.link(cached, path)
    except OSError:
        shutil.copyfile(cached, path)


def _where(job):
    return f"{job['kind']} {job['name']!r}, {job['source']}"


def asked_hub(job, call):
    """The hub's answer, with its refusals in the user's words."""
    try:
        return call()
    except Exception as error:
        refusal = _refusal(error, job)
        if refusal is None:
            raise
        raise UserError(f"{_where(job)}: {refusal}") from None


def _refusal(error, job):
    """What a failed call to the hub means, or None. The reason may be wrapped several times: `datasets` does so."""
    from huggingface_hub import errors

    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)

    def found(*types):
        return next((link for link in chain if isinstance(link, types)), None)

    for link in chain:
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"no space left for {link.filename or 'it'}; HF_HOME says where the hub's cache is"
    # `datasets` keeps only the words.
    if found(errors.GatedRepoError) or "is a gated dataset" in str(error):
        return "gated; accept its terms on the hub, then set HF_TOKEN to a token that may read it"
    if found(errors.RevisionNotFoundError):
        return f"the hub has no revision {job['revision'] or 'main'!r} of it"
    if found(errors.RepositoryNotFoundError):
        return "not on the hub, or private: set HF_TOKEN to a token that may read it"
    if answer := found(errors.HfHubHTTPError):
        if answer.response.status_code in (401, 403):
            return f"the hub refuses this token (status {answer.response.status_code}): check HF_TOKEN"
        return f"the hub cannot answer now (status {answer.response.status_code}); try again later"
    # The client's own connection errors are no OSError.
    if found(errors.HTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, ConnectionError):
        return f"the hub cannot be reached ({_first_line(error)}); run staging on a machine with network"
    if found(errors.HFValidationError):
        return f"not a name on the hub: {_first_line(error)}"
    if job["kind"] == "dataset" and isinstance(error, ValueError) and "onfig" in str(error):
        return f"subset: {' '.join(str(error).split()).partition(' Example of usage')[0]}"
    if type(error).__module__.startswith("datasets."):
        return f"cannot be read as a data set: {_first_line(error)}"
    return None


def _first_line(error):
    return next(iter(str(error).splitlines()), "") or type(error).__name__
