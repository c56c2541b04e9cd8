"""The study, its jobs, and the few functions that rules need."""

import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# Relative, since Snakemake remembers inputs by their path: a moved checkout is the same checkout.
SCRIPTS = Path(os.path.relpath(Path(workflow.basedir) / "workflow" / "scripts"))
sys.path.insert(0, str(SCRIPTS.resolve()))

from quantbench.errors import UserError
from quantbench.manifest import unstaged_message
from quantbench.table_schema import SCHEMA as TABLES
from quantbench.workflow import MEASURING, Workflow

try:
    STUDY = Workflow(config)
except UserError as error:
    raise WorkflowError(str(error))

# Not beside a run in progress (a dry run may be): that one still waits for its pointers.
if workflow.is_main_process and not any(Path(".snakemake/locks").glob("*")):
    STUDY.forget_pointers()


wildcard_constraints:
    study="[^/]+",
    gpu="[^/]+",
    model="[^/]+",
    scheme="[^/]+",


def config_text(wildcards):
    """What decides the study's points; a function, or Snakemake would read braces in it as wildcards."""
    return STUDY.config_text()


def job(name):
    """The job of a rule as one canonical text: the param that decides whether it is stale. Not on its command line, where a
    large study would not fit; the script finds the same job in the manifest."""
    return lambda wildcards: STUDY.job_text(name, **wildcards)


def needs(name):
    """Pointers that the jobs of a rule wait for: checkpoints that the store lacks. What is stored is read from there."""
    return lambda wildcards: STUDY.needs(name, **wildcards)


def pointers(*names):
    """Pointers of the jobs for which the store lacks something; of all rules where none is named."""
    return STUDY.pointers(*names) if STUDY.planned else refuse_unstaged


def refuse_unstaged(wildcards=None):
    """Input function of what cannot be planned yet: nothing runs, and the message says what to do."""
    raise WorkflowError(unstaged_message(STUDY.study))


def python(environment):
    """Interpreter of an environment, which build_env makes."""
    return f"{STUDY.environment(environment)}/bin/python"


def engine_python(wildcards):
    return python(STUDY.engine_environment(wildcards.gpu))


def engine_ready(wildcards):
    return ancient(f"{STUDY.environment(STUDY.engine_environment(wildcards.gpu))}/ready")


def staged():
    return STUDY.staged()


def environments():
    return [f"{STUDY.environment(name)}/ready" for name in STUDY.environments]


def staging_environment():
    """Hub sources are fetched by the engine's environment, which has the hub's client; local ones need none."""
    return [ancient(f"{STUDY.environment(STUDY.hub_environment)}/ready")] if STUDY.hub_environment else []


def library(script):
    """A local script and the library, whose content decides whether tables and report are stale. Jobs that measure do not
    list theirs: what a point depends on is in its key, and an edited comment must not cost GPU hours."""
    return [SCRIPTS / f"{script}.py", *sorted((SCRIPTS / "quantbench").glob("*.*"))]


def reference_files():
    """What the report quotes: other people's figures, and data sheets of devices that the study does not have."""
    folder = Path(workflow.basedir) / "config"
    published = [*sorted((folder / "published").glob("*.csv")), folder / "published" / "sources.yaml"]
    return [os.path.relpath(path) for path in [folder / "gpus.yaml", *published]]


def table_files():
    return expand(f"results/{STUDY.study.name}/tables/{{table}}.{{suffix}}", table=TABLES, suffix=["parquet", "csv"])


def report_files():
    return [f"reports/{STUDY.study.name}.html", f"reports/{STUDY.study.name}.summary.json"]


# Staging is over when these jobs run: nothing may reach for the hub. Engine output goes to the log, progress to the console.
OFFLINE = "HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1 QUANTBENCH_CONSOLE=3"
STAGING_PYTHON = python(STUDY.hub_environment) if STUDY.hub_environment else sys.executable
