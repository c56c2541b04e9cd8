"""python stage_tasks.py TASK...: stage_task of each into store/, in one process; its imports are what takes long."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow" / "scripts"))

from quantbench.environments import pins
from quantbench.staging_tasks import stage_task
from quantbench.store import Store

ENVIRONMENT = Path(__file__).parents[1] / "envs" / "engine-cpu.txt"

for task in sys.argv[1:]:
    job = {"kind": "task", "task": task, "name": task, "lm_eval": pins(ENVIRONMENT)["lm-eval"], "identity": None}
    stage_task(job, Store("store"), "config/pins.json")
