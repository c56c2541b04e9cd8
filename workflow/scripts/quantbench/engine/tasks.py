"""lm-eval's tasks, definitions untouched, on data that was staged: nothing here reaches for the network.

A task's own definition says which data set it wants; whoever builds it here is asked for that instead of the hub. So the
same definition is what staging learns the names of data sets from, and what an engine is scored by.
"""

import contextlib
import difflib
import json
from pathlib import Path

from quantbench.errors import UserError
from quantbench.tasks import is_file

# lm-eval's own default, which decides the worked examples: gsm8k draws them at random.
FEWSHOT_SEED = 1234
# Loaders of `datasets` that stand where a hub's name would: such a definition names files of somebody's own machine.
FILE_LOADERS = ("json", "csv", "parquet", "text", "arrow")


class Splits(dict):
    """{split: datasets.Dataset} that remembers which splits were asked for."""

    def __init__(self, splits):
        super().__init__(splits)
        self.used = set()

    def __getitem__(self, name):
        self.used.add(name)
        return super().__getitem__(name)


@contextlib.contextmanager
def served(provide):
    """Within this, every lm-eval task takes its data from `provide(task)`, a Splits; `task.config` is its definition."""
    from lm_eval.api.task import ConfigurableTask

    def download(self, dataset_kwargs=None, **_):
        if callable(self.config.custom_dataset):
            raise UserError(f"task {self.config.task!r} makes its data by a function of its own; that cannot be staged")
        self.dataset = provide(self)

    original, ConfigurableTask.download = ConfigurableTask.download, download
    try:
        yield
    finally:
        ConfigurableTask.download = original


class Library:
    """lm-eval's index of tasks. Reading its thousands of files takes seconds, so one Library serves them all."""

    def __init__(self):
        self._manager = None

    @property
    def manager(self):
        if self._manager is None:
            from lm_eval.tasks import TaskManager

            self._manager = TaskManager()
        return self._manager

    def build(self, name, provide):
        """{name: task} of a task, of all below a group or tag, or of a YAML file. Raises UserError for an unknown name."""
        group = None
        if is_file(name):
            from lm_eval.tasks._yaml_loader import load_yaml

            definition = load_yaml(name)
            group = definition.get("group")
        elif name not in self.manager.task_index:
            near = difflib.get_close_matches(name, self.manager.all_tasks, n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise UserError(f"task {name!r} is not among lm-eval's tasks{hint}")
        with served(provide):
            if group:
                # lm-eval's loader takes a path for a task's file, not for a group's.
                built = self.manager._factory._build_group(group, definition, None, self.manager._index)
                return {task.task_name: task for task in built.get_all_tasks()}
            return self.manager.load([name])["tasks"]


def describe(tasks):
    """{name: what a study has to know of a task before it runs}: output_type, rows to evaluate, its own worked examples."""
    return {
        name: {
            "output_type": task.OUTPUT_TYPE,
            "rows": len(task.eval_docs),
            "shots": task.config.num_fewshot or 0,
        }
        for name, task in tasks.items()
    }


def staged_data(folder):
    """The `provide` of a folder that staging made (staging.stage_task)."""
    folder = Path(folder)
    data = json.loads((folder / "quantbench.json").read_text())["data"]
    places = {(entry["hub"], entry["subset"]): entry["folder"] for entry in data}

    def provide(task):
        place = places.get((task.DATASET_PATH, task.DATASET_NAME))
        if place is None:
            raise UserError(f"{folder}: the data of task {task.config.task!r} are not staged; stage them anew")
        return Splits({path.stem: dataset(path) for path in sorted((folder / place).glob("*.jsonl"))})

    return provide


def own_data(folder, split, fewshot_split):
    """The `provide` of a data set of the study's: its splits stand where the task's definition has its own.

    split          what is evaluated
    fewshot_split  where worked examples come from; None, or a split the data set lacks: from what is evaluated
    """
    folder = Path(folder)

    def provide(task):
        config = task.config
        own = [config.training_split, config.validation_split, config.test_split, config.fewshot_config.split]
        evaluated = config.test_split or config.validation_split
        rows = dataset(folder / f"{split}.jsonl")
        examples = folder / f"{fewshot_split}.jsonl"
        others = dataset(examples) if fewshot_split and examples.is_file() else rows
        return Splits({name: others for name in own if name} | {evaluated: rows})

    return provide


def dataset(path):
    """A JSONL file as lm-eval wants its rows."""
    from datasets import Dataset

    with open(path, encoding="utf-8") as file:
        return Dataset.from_list([json.loads(line) for line in file if line.strip()])
