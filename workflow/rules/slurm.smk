"""Before the first job and beside the others: the lock of a killed run, and what Slurm does with our jobs.

needs   nothing
makes   .snakemake/quantbench/<host>-<process>.json while this Snakemake runs
"""

import atexit

from quantbench import lock, slurm, supervise
from snakemake.logging import logger


def tell(line):
    """One line on the console and in Snakemake's log."""
    logger.warning(f"[quantbench] {line}")


if not workflow.is_main_process and "SLURM_JOB_ID" in os.environ:
    supervise.end_with_parent()

if workflow.is_main_process:
    released = lock.release()
    for line in released:
        tell(line)
    # Not done beside a lock (common.smk), which may be gone now.
    if released and not any(Path(".snakemake/locks").glob("*")):
        STUDY.forget_pointers()


onstart:
    refuse_misfits()
    # This Snakemake has the lock now.
    run = getattr(workflow.scheduler._executor, "run_uuid", None)
    locks = getattr(workflow.persistence, "_lockfile", {}).values()
    atexit.register(lock.note(locks, slurm_run=run).unlink, missing_ok=True)
    try:
        slurm.start(workflow, STUDY.study.name, tell)
    except UserError as error:
        raise WorkflowError(str(error))
