"""What a study asks about quality: its tasks and their data, and everything wrong with them, before anything runs.

An entry of `accuracy`, `perplexity` or `fidelity` reads a data set of the study's (`dataset`), or what lm-eval's own
definition of its `task` names, which staging finds out and fetches.
"""

import json
from pathlib import Path

from quantbench import tasks
from quantbench.environments import pins as pinned
from quantbench.errors import UserError
from quantbench.keys import key
from quantbench.validation import nearest

ENVIRONMENTS = Path(__file__).parents[3] / "envs"
# Splits of a data set of the study's, where an entry leaves them out.
SPLITS = {"split": "test", "fewshot_split": "train"}


def entries(config):
    """[("accuracy[0]", entry), ...] of every section on quality."""
    return [(f"{section}[{i}]", e) for section in tasks.SECTIONS for i, e in enumerate(config.get(section, []))]


def fill_splits(config):
    """Give the entries that read a data set of the study's the splits that they leave out."""
    for _, entry in entries(config):
        for name, split in SPLITS.items():
            if entry.get("dataset") and name in entry:
                entry[name] = entry[name] or split


def reference_faults(config):
    """Entries that name neither data nor task, or what only the other kind of entry has."""
    faults, slugs = [], {}
    for place, entry in entries(config):
        if not entry["dataset"] and not entry["task"]:
            faults.append(f"{place}: give task, a name of lm-eval's or a YAML file, or dataset, a name in datasets")
        if entry["task"] and entry["dataset"] and not place.startswith("accuracy"):
            faults.append(f"{place}: give task or dataset, not both; a data set is read as plain text")
        if not entry["dataset"]:
            given = [name for name in SPLITS if entry.get(name)]
            faults += [f"{place}.{name}: the task itself says which split; leave it out" for name in given]
        if entry["task"]:
            faults += _file_faults(place, entry["task"], slugs)
    return faults


def _file_faults(place, task, slugs):
    other = slugs.setdefault(tasks.slug(task), task)
    if other != task:
        return [f"{place}.task: {task!r} and {other!r} are both called {tasks.slug(task)!r}"]
    try:
        if tasks.is_file(task):
            tasks.task_files(task)
    except UserError as error:
        return [f"{place}.task: {error}"]
    return []


def task_entries(study, commits):
    """{name: entry} of the tasks whose data lm-eval's definitions name; `config` is None until they are staged.

    commits  config/pins.json, which has {data set: commit} of each task that was staged
    """
    environment = study.gpus[study.config["gpus"][0]]["environment"]
    lm_eval = pinned(ENVIRONMENTS / f"{environment}.txt").get("lm-eval")
    found = {}
    for task in tasks.asked_tasks(study.config, staged=True):
        identity = tasks.task_identity(task, lm_eval, commits.get(tasks.pin_name(task, lm_eval)))
        entry = {"task": task, "lm_eval": lm_eval, "identity": identity, "key": identity and key(identity)}
        staged = identity and study.store.has_folder("tasks", entry["key"])
        entry["config"] = study.store.read_folder("tasks", entry["key"]) if staged else None
        found[tasks.slug(task)] = entry
    return found


def task_faults(study):
    """Staged tasks in the wrong section, and more questions or documents than they have."""
    faults = []
    for place, entry in entries(study.config):
        known = study.tasks.get(tasks.slug(entry["task"]), {}).get("config") if entry["task"] else None
        if known is None or entry["dataset"]:
            continue
        texts = [found["output_type"] == tasks.TEXT for found in known["tasks"].values()]
        if place.startswith("accuracy") and any(texts):
            faults.append(f"{place}.task: {entry['task']!r} is text without right answers; ask for it under perplexity")
        elif not place.startswith("accuracy") and not all(texts):
            faults.append(f"{place}.task: {entry['task']!r} has questions, not text; ask for it under accuracy")
        name = "questions" if place.startswith("accuracy") else "documents"
        most = max(found["rows"] for found in known["tasks"].values())
        if entry[name] is not None and entry[name] > most:
            faults.append(f"{place}.{name}: {entry[name]} asked, but {entry['task']!r} has {most}")
    return faults


def split_rows(config):
    """[(place, data set, split, rows asked)] of the entries that read a data set of the study's."""
    asked = []
    for place, entry in entries(config):
        if not entry["dataset"]:
            continue
        name = "questions" if "questions" in entry else "documents"
        asked.append((f"{place}.{name}", entry["dataset"], entry["split"], entry[name]))
        # Left out, the task's own number counts, which only lm-eval knows: worked examples may be needed.
        if entry.get("shots", 0) != 0:
            asked.append((f"{place}.shots", entry["dataset"], entry["fewshot_split"], entry["shots"]))
    return asked


def reads_texts(config, dataset):
    """Whether something reads a data set's rows as text or as question and answer, rather than by a task's own columns;
    calibration is not asked."""
    named = [e["dataset"] for _, e in entries(config) if not e["task"] or e["task"].startswith("gsm8k")]
    asked = {e["dataset"] for _, e in entries(config)}
    return dataset in named or dataset not in asked


def model_faults(study, name, model, context):
    """Entries that a model cannot be asked: texts longer than its context, a chat template that it lacks."""
    faults = []
    for place, entry in entries(study.config):
        if context and entry.get("max_tokens") and entry["max_tokens"] >= context:
            most = f"{place}.max_tokens: {entry['max_tokens']}"
            faults.append(f"{most} leaves nothing of the context of model {name!r}, {context}")
        if entry.get("chat_template") and not has_chat_template(model["folder"]):
            faults.append(f"{place}.chat_template: model {name!r} has none; leave it out, or false")
    return faults


def has_chat_template(folder):
    """Whether a model's folder has a chat template, in either of its places."""
    if (folder / "chat_template.jinja").exists():
        return True
    try:
        return bool(json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template"))
    except FileNotFoundError:
        return False


def dataset_faults(config, names):
    """Entries whose data set the study does not have."""
    hint = "" if names else "; the config has no datasets section"
    return [
        f"{place}.dataset: unknown data set {entry['dataset']!r}{hint or nearest(entry['dataset'], names)}"
        for place, entry in entries(config)
        if entry["dataset"] and entry["dataset"] not in names
    ]
