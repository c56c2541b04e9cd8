"""Tasks of lm-eval as a study names them: by name, or by a YAML file of the user's own. Imports no lm-eval."""

import re
from pathlib import Path

from quantbench.errors import UserError
from quantbench.keys import file_sha256

# What lm-eval scores by the likelihood of whole documents; the other kinds have a right answer per question.
TEXT = "loglikelihood_rolling"
FUNCTION = re.compile(r"!function\s+([\w.]+)\.\w+")
INCLUDE = re.compile(r"^include:\s*(.+?)\s*$", re.MULTILINE)


SECTIONS = ("accuracy", "perplexity", "fidelity")


class Unscorable(Exception):
    """A task has no metric by which an answer is right or wrong; for good, so its point is `unsupported`."""


def asked_tasks(config, staged=False):
    """The tasks that a study's config names, each once; `staged`: only those whose data lm-eval's definition names."""
    entries = [entry for section in SECTIONS for entry in config.get(section, [])]
    entries = [entry for entry in entries if entry.get("task") and not (staged and entry.get("dataset"))]
    return list(dict.fromkeys(entry["task"] for entry in entries))


def is_file(task):
    """Whether a study's `task:` is a YAML file rather than a name."""
    return Path(task).suffix in (".yaml", ".yml")


def slug(task):
    """The name of a task in paths and tables: a file's without its ending."""
    return Path(task).stem if is_file(task) else task


def task_files(path):
    """The files that a YAML task consists of, sorted: itself, what it includes, and the Python files of its functions.

    Raises UserError when one that is to lie beside it is not there.
    """
    path = Path(path)
    found, waiting = set(), [path]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        if not file.is_file():
            raise UserError(f"task {str(path)!r}: there is no file {str(file)!r}")
        found.add(file)
        text = file.read_text()
        waiting += [file.parent / name.strip("'\"") for name in INCLUDE.findall(text)]
        # A module that does not lie beside the file is an installed one.
        modules = [file.parent / f"{module.replace('.', '/')}.py" for module in FUNCTION.findall(text)]
        waiting += [module for module in modules if module.is_file()]
    return sorted(found)


def definition(task):
    """What stands for a task's definition in an identity: its name (lm-eval's version is beside it), or files' digests."""
    if not is_file(task):
        return task
    return {file.name: file_sha256(file) for file in task_files(task)}


def check_definition(task, expected):
    """Raises UserError where a YAML task is another one now than its identity says."""
    if is_file(task) and definition(task) != expected:
        raise UserError(f"task {task!r} changed since the study was planned; run the same command again")


def task_identity(task, lm_eval, commits):
    """Identity of a task's staged data; None until staging knows the `commits`, {name on the hub: commit}."""
    if commits is None:
        return None
    return {"artefact": "task", "task": definition(task), "lm_eval": lm_eval, "data": commits}


def pin_name(task, lm_eval):
    """A task's key in config/pins.json: another version of lm-eval may want other data."""
    return f"task {slug(task)} of lm-eval {lm_eval}"
