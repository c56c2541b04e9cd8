"""What many tests need: interpreters of the real environments, and how the suite is shared out among processes."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from forks import Forks
from quantbench.engine.settings import engine_environment
from slurm_cluster import slurm, slurm_with_accounting  # noqa: F401 (fixtures)

SCRIPTS = Path(__file__).parents[1] / "workflow" / "scripts"


# --- interpreters -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def engine_python():
    """Interpreter with vLLM; where there is none, the test is skipped."""
    return interpreter("QUANTBENCH_ENGINE_PYTHON")


@pytest.fixture(scope="session")
def quantize_python():
    """Interpreter with llm-compressor; where there is none, the test is skipped."""
    return interpreter("QUANTBENCH_QUANTIZE_PYTHON")


def interpreter(variable):
    if not os.environ.get(variable):
        pytest.skip(f"set {variable} to an interpreter that build_env.py prints, or run `make test`")
    return os.environ[variable]


@pytest.fixture(scope="session")
def engine_forks(engine_python):
    """Runs Python in the engine's environment, as on a CPU, with vLLM's linear layers imported."""
    environment = {**os.environ, **engine_environment({"environment": "engine-cpu"})}
    environment |= {"PYTHONPATH": str(SCRIPTS), "VLLM_LOGGING_LEVEL": "ERROR"}
    with Forks(engine_python, ["vllm.distributed", "vllm.model_executor.layers.linear"], environment) as forks:
        yield forks


@pytest.fixture(scope="session")
def ask_engine(engine_forks):
    """ask_engine(code, given=...) runs code that finds `given` under that name, and returns what it has called `answer`.

    Both are JSON. The code is run in a new folder.
    """

    def ask(code, given=None):
        with tempfile.TemporaryDirectory() as folder:
            whole = f"import json, sys\ngiven = json.load(sys.stdin)\n{code}\n"
            whole += "with open('answer.json', 'w') as file:\n    json.dump(answer, file)\n"
            done = engine_forks.run("-c", whole, input=json.dumps(given), folder=folder)
            assert done.returncode == 0, done.stderr[-3000:]
            return json.loads(Path(folder, "answer.json").read_text())

    return ask


# --- a made-up study, whose answers are known (synthetic.py) ---------------------------------------------------------------


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """(manifest, tables); whoever changes them works on a copy."""
    from quantbench.tables import build_tables
    from synthetic import synthetic_study

    root = tmp_path_factory.mktemp("study")
    manifest = synthetic_study(root)
    return manifest, build_tables(manifest, root / "store")


@pytest.fixture(scope="session")
def rendered(study):
    """(page, summary)"""
    from quantbench.report import render

    return render(*study)


# --- GPUs -------------------------------------------------------------------------------------------------------------


def pytest_collection_modifyitems(config, items):
    """Tests marked gpu run where there is one, and say elsewhere why they don't. In several processes the long ones begin."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and (reason := no_gpu()):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"needs an NVIDIA GPU: {reason}"))
    if os.environ.get("PYTEST_XDIST_WORKER"):
        items.sort(key=lambda item: place(item.nodeid))


def no_gpu():
    """Why there is no GPU here, or None. The driver's own tool is asked, since torch is not in the workflow's environment."""
    if shutil.which("nvidia-smi") is None:
        return "nvidia-smi is not installed"
    found = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    return None if found.returncode == 0 and found.stdout.strip() else "nvidia-smi lists none"


# --- several processes (tests/run) ------------------------------------------------------------------------------------------

# Minutes each, so they begin, and the processes end at about the same time. The base study before all that copy it.
EARLY = (
    "test_workflow.py::test_the_first_run",
    "test_slurm_chain",
    "test_slurm_faults",
    "test_slurm_site",
    "test_measure_gemm",
    "test_quantize_model",
    "test_staging",
    "test_measure_serving",
    "test_workflow",
    "test_faults",
)
# Each of these tests works on a copy of its own, of the base study or of a tree: any process may take it.
ONE_BY_ONE = ("test_workflow", "test_faults", "test_slurm_faults")
# These share a session's fixture, a process with vLLM imported.
TOGETHER = {
    "vllm": ("test_measure_gemm", "test_raw_ops", "test_chooser", "test_kernels", "test_emulation"),
}


def name_of(nodeid):
    return nodeid.rpartition("tests/")[2]


def place(nodeid):
    return next((i for i, name in enumerate(EARLY) if name_of(nodeid).startswith(name)), len(EARLY))


def unit(nodeid):
    """Tests of one unit run in one process: a file's, those of several files, or a single one."""
    name = name_of(nodeid)
    together = next((unit for unit, names in TOGETHER.items() if name.startswith(names)), name.partition("::")[0])
    return name if name.startswith(ONE_BY_ONE) else together


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Units(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return unit(nodeid)

    # In the order of collection, not by number of tests.
    config.option.loadscopereorder = False
    return Units(config, log)
