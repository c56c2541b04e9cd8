"""A small study in a checkout of its own, and what a run of Snakemake on it did: jobs, new points, engine starts."""

import copy
import fcntl
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml
from quantbench.store import Store

ROOT = Path(__file__).parents[1]
INTERPRETERS = ("QUANTBENCH_ENGINE_PYTHON", "QUANTBENCH_QUANTIZE_PYTHON")
needs_environments = pytest.mark.skipif(
    not all(os.environ.get(name) for name in INTERPRETERS),
    reason=f"runs real engines; set {' and '.join(INTERPRETERS)} to the interpreters that build_env.py prints",
)

LENGTHS = [{"input_tokens": 16, "output_tokens": 4}]
CONFIG = {
    "study": "small",
    "title": "Which format?",
    # Relative, so that a copied checkout brings its store along.
    "store": "results/store",
    "models": [{"name": "tiny", "source": "tiny"}],
    "schemes": ["bf16", "rtn-int4"],
    "gpus": ["cpu"],
    "datasets": [{"name": "arithmetic", "source": "tiny"}],
    "engine": {"kv_cache_memory_bytes": 16777216, "enforce_eager": True, "max_num_seqs": 16},
    "kernels": {"tokens": [1]},
    "latency": {"batch_sizes": [1], "lengths": LENGTHS},
    "throughput": {"batch_sizes": [4], "lengths": LENGTHS},
    "serving": {"request_rates": [20], "concurrencies": [2], "lengths": LENGTHS, "requests": 10},
    "accuracy": [{"task": "gsm8k", "dataset": "arithmetic", "questions": 8, "shots": 1, "max_tokens": 32}],
    "perplexity": [{"dataset": "arithmetic", "documents": 4}],
    "fidelity": [{"dataset": "arithmetic", "documents": 4, "max_tokens": 32, "top_k": 64}],
    "repeats": {"least": 2, "most": 2, "relative_ci": 1},
}


@dataclass
class Run:
    """One ended Snakemake: `jobs` counts the jobs it started by rule, `new` are keys of points, `runs` new run records."""

    returncode: int
    text: str
    jobs: Counter
    new: dict
    runs: dict

    @property
    def starts(self):
        """{(rule, scheme): engine or server starts} of the run records written meanwhile."""
        counts = Counter()
        for run in self.runs.values():
            if run["engine_starts"]:
                counts[run["stage"], run["scheme"]] += run["engine_starts"]
        return dict(counts)

    @property
    def stages(self):
        """{stage: new points}"""
        return dict(Counter(record["identity"]["stage"] for record in self.new.values()))


class Checkout:
    """The project's files in a folder of their own, with the environments that are built already."""

    def __init__(self, folder, config=CONFIG):
        self.folder = Path(folder)
        self.config = copy.deepcopy(config)

    @classmethod
    def of_working_tree(cls, folder, config=CONFIG):
        """As a clone would be, with what is not committed yet. Every file is as new as the clone."""
        listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0")
        for name in filter(None, names):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        built = Path(os.environ["QUANTBENCH_ENGINE_PYTHON"]).absolute().parents[2]
        (folder / ".venvs").symlink_to(built, target_is_directory=True)
        return cls(folder, config)

    def copy(self, folder):
        """This checkout in its present state, Snakemake's memory, store, results and times of files included."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Checkout(folder, self.config)

    @property
    def store(self):
        return Store(self.folder / self.config["store"])

    @property
    def results(self):
        return self.folder / "results" / self.config["study"]

    def command(self, *arguments):
        return [sys.executable, "-m", "snakemake", *arguments, "--configfile", "config/test.yaml"]

    def environment(self):
        return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def write_config(self, text=None):
        (self.folder / "config" / "test.yaml").write_text(text or yaml.safe_dump(self.config))

    def snakemake(self, *arguments, text=None, timeout_s=1500):
        """Run to the end; `text` replaces the config file's text."""
        self.write_config(text)
        points, runs = self.store.read_points(), self.store.read_runs()
        ended = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
        return Run(
            returncode=ended.returncode,
            text=ended.stdout,
            jobs=Counter(re.findall(r"^(?:local)?rule (\w+):$", ended.stdout, re.MULTILINE)),
            new={key: record for key, record in self.store.read_points().items() if key not in points},
            runs={name: run for name, run in self.store.read_runs().items() if name not in runs},
        )

    def done(self, *arguments, **more):
        """Run to a good end."""
        run = self.snakemake(*arguments, **more)
        assert run.returncode == 0, run.text
        return run

    def start(self):
        """Run in the background, in a process group of its own, as a shell's foreground job."""
        self.write_config()
        with open(self.folder / "snakemake.log", "w") as log:
            return subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env=self.environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=default_interrupt,
            )

    def forget(self, *stages):
        """Take these stages' points out of the store."""
        for key, record in self.store.read_points().items():
            if record["identity"]["stage"] in stages:
                self.store.point_path(key).unlink()

    def processes(self):
        """Every living process that works in this checkout, wherever it stands in the process tree."""
        return [process for process in psutil.process_iter() if works_in(process, self.folder)]

    def ports(self):
        """Ports on which these processes listen."""
        return {c.laddr.port for p in self.processes() for c in connections(p) if c.status == psutil.CONN_LISTEN}


def base_study(tmp_path_factory):
    """The checkout of one whole run of CONFIG, with that Run as `first`; to be copied, not worked in.

    It takes minutes, so all processes of a test run (pytest-xdist) share the one that the first of them makes.
    """
    folder = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent
    with open(folder / "base-study.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record, tree = folder / "base-study.pickle", folder / "base-study" / "quantbench"
        if not tree.exists():
            tree.mkdir(parents=True)
            record.write_bytes(pickle.dumps(Checkout.of_working_tree(tree).snakemake()))
        assert record.exists(), "the base study did not end; the first test that wanted it says why"
    base = Checkout(tree)
    base.first = pickle.loads(record.read_bytes())
    assert base.first.returncode == 0, base.first.text
    return base


def default_interrupt():
    """A test runner in the background may ignore Ctrl-C, and a child would inherit that; a shell's job does not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def works_in(process, folder):
    try:
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(folder)
    except psutil.Error:
        return False


def connections(process):
    try:
        return process.net_connections("inet")
    except psutil.Error:
        return []


def wait_until(condition, within_s, what):
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, f"{what}: not within {within_s} s"
        time.sleep(0.05)
