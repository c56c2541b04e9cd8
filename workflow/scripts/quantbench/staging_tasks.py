"""Staging of lm-eval's tasks: their definitions say which data sets and splits they read; those are fetched, pinned.

Each data set is resolved to a commit once, and kept in config/pins.json as {name on the hub: commit} of the task. Built on
the very data, each task answers for its first row: what does not fit is seen here rather than on a GPU.
"""

import fcntl
import json
import tempfile
from pathlib import Path

from quantbench import sources
from quantbench.console import say
from quantbench.engine.tasks import FILE_LOADERS, Library, Splits, describe
from quantbench.errors import UserError
from quantbench.keys import key
from quantbench.staging import asked_hub, hub_commit
from quantbench.store import write_atomically
from quantbench.tasks import pin_name, task_identity


def stage_task(job, store, pins=sources.PINS):
    """Put the data of a task, or of all tasks of a group, into the store; returns key and folder.

    job  task (lm-eval's name, or a YAML file), name, lm_eval (the version whose definition counts), identity or None
    """
    place = pin_name(job["task"], job["lm_eval"])
    commits = dict(_kept(pins).get(place) or {})
    if job["identity"] and store.has_folder("tasks", key(job["identity"])):
        return key(job["identity"]), store.folder("tasks", key(job["identity"]))
    store.root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store.root, prefix=".staging-", ignore_cleanup_errors=True) as cache:
        fetched = _Fetched(job, commits, cache)
        tasks = Library().build(job["task"], fetched)
        identity = task_identity(job["task"], job["lm_eval"], fetched.commits)
        record = {"source": job["task"], "tasks": describe(tasks), "data": fetched.data}
        if not store.has_folder("tasks", key(identity)):
            with store.new_folder("tasks", identity, record) as folder:
                fetched.write(folder)
    _keep(pins, place, fetched.commits)
    return key(identity), store.folder("tasks", key(identity))


class _Fetched:
    """Data sets of a task by the hub's names, each fetched once; what lm-eval then reads of them is what is staged."""

    def __init__(self, job, commits, cache):
        self.job, self.commits, self.cache = job, commits, cache
        self.splits = {}

    def __call__(self, task):
        hub, subset = task.DATASET_PATH, task.DATASET_NAME
        if not hub or hub in FILE_LOADERS or Path(hub).exists():
            raise UserError(
                f"task {task.config.task!r} reads files ({hub}), not a data set of the hub: list them under datasets, and "
                "name that data set beside the task"
            )
        if (hub, subset) not in self.splits:
            self.splits[hub, subset] = Splits(self._load(hub, subset, task.config.dataset_kwargs or {}))
        return self.splits[hub, subset]

    def _load(self, hub, subset, more):
        from datasets import load_dataset

        where = {"kind": "dataset", "name": self.job["task"], "source": f"hf://{hub}", "hub": hub, "subset": subset}
        where["revision"] = self.commits.get(hub, "main")
        # Tells whether it is there at all; load_dataset's own words for that are worse.
        self.commits[hub] = hub_commit(where, where["revision"])
        say(
            f"task {self.job['task']!r}: downloading {hub}{f', {subset}' if subset else ''}, commit {self.commits[hub]}"
        )
        more = {name: value for name, value in more.items() if name != "trust_remote_code"}
        source = {"path": f"hf://datasets/{hub}", "name": subset, "revision": self.commits[hub]}
        return asked_hub(where, lambda: load_dataset(**source, cache_dir=self.cache, **more))

    @property
    def data(self):
        """[{"hub", "subset", "folder"}] in the order in which they were asked for."""
        return [{"hub": hub, "subset": subset, "folder": str(n)} for n, (hub, subset) in enumerate(self.splits)]

    def write(self, folder):
        """The splits that were read, one JSONL each; training data that no prompt takes are left behind."""
        for entry in self.data:
            (folder / entry["folder"]).mkdir()
            splits = self.splits[entry["hub"], entry["subset"]]
            for name in sorted(splits.used):
                path = folder / entry["folder"] / f"{name}.jsonl"
                splits[name].to_json(path, lines=True, force_ascii=False)


def _kept(pins):
    return sources.read_pins(pins)


def _keep(path, name, commits):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several sources may be staged at once.
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = sources.read_pins(path)
        if kept.get(name) != commits:
            kept[name] = commits
            write_atomically(path, json.dumps(kept, indent=1, sort_keys=True) + "\n")
