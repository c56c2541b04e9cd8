"""A hung engine is ended after the study's limit, and the point it was at is a row; the mock is of a hang nobody can order."""

import asyncio
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import measure_serving
from quantbench.keys import canonical_json
from quantbench.points import expand
from quantbench.store import Store

SCRIPTS = Path(__file__).parents[1] / "workflow" / "scripts"
# The engine's constructor or one of its batches never returns. What follows is the real script.
HANGS = """
import sys, time
sys.path.insert(0, {scripts!r})
import measure_engine
measure_engine.check_device = measure_engine.check_versions = measure_engine.local_checkpoint = lambda *_: None

class Session:
    start_s, kernels, checkpoint, meter = 1.0, [], None, None

    def load_record(self):
        return {{"kernels": [], "engine_start_s": 1.0}}

    def latency(self, batch_size, **params):
        while batch_size == 2:
            time.sleep(1)
        return [{{"repeat": 0, "elapsed_s": 0.1, "ttft_s": 0.01}}]

def start(job, checkpoint):
    while {start_hangs}:
        time.sleep(1)
    return Session(), None

measure_engine.start = start
measure_engine.METERED = ()
measure_engine.main(sys.argv[1:])
"""


def run(folder, limits, start_hangs=False):
    common = {
        "artefact": "point",
        "checkpoint": "c" * 64,
        "gpu": "cpu",
        "epoch": 0,
        "engine_args": {"dtype": "bfloat16"},
    }
    sizes = [{"batch_size": batch, "input_tokens": 8, "output_tokens": 8, "repeats": {}} for batch in (1, 2, 4)]
    groups = [{"stage": "load", "protocol": 1, "versions": {}, "params": [{}]}]
    groups += [{"stage": "latency", "protocol": 1, "versions": {}, "params": sizes}]
    job = {"gpu": "cpu", "model": "m", "scheme": "bf16", "gpu_entry": {"environment": "engine-cpu"}, "limits": limits}
    job |= {"engine_args": {"dtype": "bfloat16"}, "expects": {"computes": "bf16", "ignore": [], "left": []}}
    job |= {"common": common, "groups": groups, "checkpoint_path": "nowhere"}
    code = HANGS.format(scripts=str(SCRIPTS), start_hangs=start_hangs)
    command = [sys.executable, "-c", code, f"--job={canonical_json(job)}", f"--store={folder / 'store'}"]
    done = subprocess.run([*command, f"--output={folder / 'pointer'}"], capture_output=True, text=True, timeout=120)
    store = Store(folder / "store")
    return done, [store.read_point(point["key"]) for point in expand(job)], store


def test_a_point_that_hangs_is_a_timeout_and_its_engine_is_ended(tmp_path):
    done, (load, first, hung, left), store = run(tmp_path, {"start_s": 60, "point_s": 1})
    assert done.returncode == 1 and "the point was not done after 1 s; run the same command again" in done.stderr
    assert (load["status"], first["status"]) == ("ok", "ok")
    assert (hung["status"], hung["reason"]) == ("timeout", "the point was not done after 1 s")
    assert left is None, "a new run measures what is left"
    (record,) = store.read_runs().values()
    assert record["ended_at"] and record["points_measured"] == 3


def test_an_engine_that_never_gets_ready_is_a_timeout_of_all_its_points(tmp_path):
    done, points, _ = run(tmp_path, {"start_s": 1, "point_s": 60}, start_hangs=True)
    assert done.returncode == 1
    assert {(point["status"], point["reason"]) for point in points} == {
        ("timeout", "the engine was not ready after 1 s")
    }


def test_a_load_that_a_server_never_answers_is_a_timeout():
    async def never():
        await asyncio.Event().wait()

    server = SimpleNamespace(alive=lambda: True)
    found = asyncio.run(measure_serving.load_result(server, never(), limit_s=0.1))
    assert found == ("timeout", "the load was not done after 0.1 s", [])
