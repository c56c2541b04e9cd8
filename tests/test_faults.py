"""Runs that end badly: what is measured stays, nothing keeps running, and the same command measures the rest.

A Snakemake that was killed outright cannot remove its lock; the next one does, and says so.
"""

import os
import signal
import time
from copy import deepcopy

import pytest
from workflow_study import CONFIG, LENGTHS, base_study, needs_environments, wait_until

pytestmark = [pytest.mark.workflow, needs_environments]

# The base study's engine stages alone, of one variant.
OTHERS = ("kernels", "serving", "accuracy", "perplexity", "fidelity")
ENGINE_ONLY = {name: CONFIG[name] for name in CONFIG if name not in OTHERS}
ENGINE_ONLY |= {"schemes": ["bf16"]}
LONG = [{"input_tokens": 512, "output_tokens": 1024}]


@pytest.fixture
def checkout(tmp_path_factory, tmp_path):
    """A checkout in which all is measured; each test forgets what it wants to see measured."""
    copy = base_study(tmp_path_factory).copy(tmp_path / "quantbench")
    copy.config = deepcopy(ENGINE_ONLY)
    yield copy
    for process in copy.processes():
        process.kill()


def measured(checkout, stage=None):
    points = checkout.store.read_points()
    return {key for key, record in points.items() if stage in (None, record["identity"]["stage"])}


def kill_snakemake(process):
    """As the kernel does when memory is short: no handler runs, and nobody tells the jobs."""
    process.kill()


def interrupt(process):
    """Ctrl-C: the terminal sends it to the whole foreground group."""
    os.killpg(process.pid, signal.SIGINT)


@pytest.mark.parametrize("end", [kill_snakemake, interrupt])
def test_a_run_that_is_ended_in_mid_measurement_keeps_its_points_and_leaves_no_process(checkout, end):
    checkout.forget("latency", "throughput")
    # a short batch, then one of a minute
    checkout.config["latency"] = {"batch_sizes": [1], "lengths": LENGTHS + LONG}
    checkout.config["repeats"] = {"least": 20, "most": 20, "relative_ci": 1}
    process = checkout.start()
    wait_until(lambda: measured(checkout, "latency"), 300, "the first latency point")
    time.sleep(0.5)
    running = checkout.processes()
    assert any("measure_engine.py" in " ".join(p.cmdline()) for p in running), "ended before it could be killed"
    end(process)
    process.wait(timeout=60)
    wait_until(lambda: not checkout.processes(), 30, "the end of every process")
    before = measured(checkout)
    assert len(measured(checkout, "latency")) == 1
    assert process.returncode != 0

    checkout.config["latency"]["lengths"] = LENGTHS
    run = checkout.done()
    assert ("its lock is removed" in run.text) == (end is kill_snakemake)
    assert run.stages == {"throughput": 1}
    assert run.starts == {("measure_engine", "bf16"): 1}
    assert before < measured(checkout)
    assert checkout.done().jobs == {}


def test_a_server_that_is_measured_ends_with_its_run_and_frees_its_port(checkout):
    checkout.forget("serving")
    checkout.config["serving"] = CONFIG["serving"] | {"request_rates": [20, 0.05], "requests": 10}
    del checkout.config["serving"]["concurrencies"]
    process = checkout.start()
    wait_until(lambda: measured(checkout, "serving"), 300, "the first serving point")
    assert checkout.ports()
    kill_snakemake(process)
    process.wait(timeout=60)
    wait_until(lambda: not checkout.processes(), 30, "the end of every process")
    assert checkout.ports() == set()
    assert len(measured(checkout, "serving")) == 1

    checkout.config["serving"]["request_rates"] = [20, 30]
    run = checkout.done()
    assert run.stages == {"serving": 1}
    assert run.starts == {("measure_serving", "bf16"): 1}


def test_a_crash_of_one_variant_costs_the_others_nothing_and_is_no_point(checkout):
    checkout.forget("load", "latency", "throughput")
    checkout.config["schemes"] = ["rtn-int4", "bf16"]
    session = checkout.folder / "workflow/scripts/quantbench/engine/session.py"
    whole = session.read_text()
    first_line = "        from vllm import SamplingParams\n"
    assert whole.count(first_line) == 1
    crash = "        if not first_token and 'checkpoints' in str(self.checkpoint):\n"
    crash += "            raise RuntimeError('the moon is full')\n"
    session.write_text(whole.replace(first_line, crash + first_line))
    run = checkout.snakemake()
    assert run.returncode != 0
    assert "RuntimeError: the moon is full" in run.text
    # rtn-int4's load and latency were measured before it crashed; bf16 is whole
    assert run.stages == {"load": 2, "latency": 2, "throughput": 1}
    assert "build_tables" not in run.jobs
    assert checkout.processes() == []

    session.write_text(whole)
    again = checkout.done()
    assert again.stages == {"throughput": 1}
    assert again.starts == {("measure_engine", "rtn-int4"): 1}
    assert again.jobs["measure_engine"] == 1
