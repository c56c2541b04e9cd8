"""The study, its jobs, and the few functions that rules need."""

import os
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# Relative, since Snakemake remembers inputs by their path: a moved checkout is the same checkout.
SCRIPTS = Path(os.path.relpath(Path(workflow.basedir) / "workflow" / "scripts"))
sys.path.insert(0, str(SCRIPTS.resolve()))

from quantbench.cluster import RESOURCES
from quantbench.errors import UserError
from quantbench.manifest import unstaged_message
from quantbench.table_schema import SCHEMA as TABLES
from quantbench.workflow import MEASURING, Workflow

# What `snakemake compare` sets the study beside is no part of the study.
COMPARED = config.pop("compare", None)

try:
    STUDY = Workflow(config)
except UserError as error:
    raise WorkflowError(str(error))

if not workflow.is_main_process:
    # On a compute node, which may have no home folder: Snakemake makes a cache there at each start, the one in srun's step too.
    os.environ["XDG_CACHE_HOME"] = str(Path(".snakemake/cache").resolve())

# Not beside a run in progress (a dry run may be): that one still waits for its pointers.
if workflow.is_main_process and not any(Path(".snakemake/locks").glob("*")):
    STUDY.forget_pointers()


CLUSTER_RESOURCES = [*RESOURCES.values(), "runtime", "mem_mb"]


wildcard_constraints:
    study="[^/]+",
    gpu="[^/]+",
    model="[^/]+",
    scheme="[^/]+",
    task="[^/]+",


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
    # A job's own Snakemake, on its node, runs that job alone: it need not ask the store about all others.
    if STUDY.planned:
        return STUDY.pointers(*names) if workflow.is_main_process else []
    return refuse_unstaged


def refuse_unstaged(wildcards=None):
    """Input function of what cannot be planned yet: nothing runs, and the message says what to do."""
    raise WorkflowError(unstaged_message(STUDY.study))


def python(environment):
    """The words of a shell command that end in an environment's Python: built by build_env, or the site's own."""
    return STUDY.interpreter(environment, SCRIPTS)


def ready(environment):
    """What a job waits for to have that Python."""
    return [ancient(stamp) for stamp in STUDY.ready(environment)]


def engine_python(wildcards):
    return python(STUDY.engine_environment(wildcards.gpu))


def engine_ready(wildcards):
    return ready(STUDY.engine_environment(wildcards.gpu))


def resources(name):
    """What jobs of a rule ask a cluster for (config/cluster.yaml), as functions of the job and its attempt.

    None asks for nothing, as does every run on this machine. Evaluated again where a submitted job runs, for Snakemake's
    inner srun: that needs the cores alone, and the estimate behind time and memory costs a look at the whole store.
    """

    def ask(resource):
        # Snakemake counts memory in two units and refuses None for it; of 0, sbatch is not asked.
        nothing = 0 if resource == "mem_mb" else None

        def value(wildcards, attempt):
            executor = workflow.executor_plugin
            if executor is None or executor.common_settings.local_exec and not executor.common_settings.dryrun_exec:
                return nothing
            estimated = resource in ("runtime", "mem_mb")
            if estimated and not workflow.is_main_process:
                return nothing
            return STUDY.resources(name, attempt, estimated, **wildcards)[resource] or nothing

        return value

    return {resource: ask(resource) for resource in CLUSTER_RESOURCES}


def refuse_misfits():
    """Before the first job: say which jobs can't fit the site's limits, however often they are started."""
    if workflow.non_local_exec and (found := STUDY.misfits(1 + workflow.execution_settings.retries)):
        raise WorkflowError("\n".join(["these jobs do not fit:", *[f"  - {sentence}" for sentence in found]]))


def staged():
    return STUDY.staged()


def environments():
    return [stamp for name in STUDY.environments for stamp in STUDY.ready(name)]


def staging_environment():
    """Hub sources are fetched by the engine's environment, which has the hub's client; local ones need none."""
    return ready(STUDY.hub_environment) if STUDY.hub_environment else []


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
    return [f"reports/{STUDY.study.name}.{suffix}" for suffix in ("html", "summary.json", "md")]


# Staging is over when these jobs run: nothing may reach for the hub. Engine output goes to the log, progress to the console.
OFFLINE = "HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1 QUANTBENCH_CONSOLE=3"
# What a job knows of its node: where it may write (scratch.py).
NODE = STUDY.node_variables()
STAGING_PYTHON = python(STUDY.hub_environment) if STUDY.hub_environment else shlex.quote(sys.executable)
