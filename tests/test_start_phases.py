"""Phases of an engine's start, read in vLLM's log."""

from quantbench.start_phases import start_phases, start_rows

# vLLM 0.32 on two GPUs, shortened; each worker says its own.
CUDA = """
(Worker_TP0 pid=1) INFO 11-20 21:19:01 [default_loader.py:502] Loading weights took 3.10 seconds
(Worker_TP0 pid=1) INFO 11-20 21:19:01 [gpu_model_runner.py:5150] Model loading took 7.51 GiB memory and 4.012345 seconds
(Worker_TP1 pid=2) INFO 11-20 21:19:02 [gpu_model_runner.py:5150] Model loading took 7.51 GiB memory and 4.512345 seconds
(Worker_TP0 pid=1) INFO 11-20 21:19:30 [monitor.py:53] torch.compile took 21.30 s in total
(Worker_TP0 pid=1) INFO 11-20 21:19:40 [gpu_model_runner.py:6582] Graph capturing finished in 9 secs, took 0.61 GiB
(EngineCore pid=3) init engine (profile, create kv cache, warmup model) took 38.20 s (compilation: 21.30 s)
"""
EAGER = """
INFO 11-20 21:19:01 [default_loader.py:502] Loading weights took 0.03 seconds
INFO 11-20 21:19:01 [core.py:403] init engine (profile, create kv cache, warmup model) took 0.12 s
"""


def test_the_slowest_worker_counts():
    found = start_phases(CUDA)
    assert found == {"weights": 4.512345, "initialize": 38.2, "compile": 21.3, "graphs": 9.0}


def test_release_0_25_leaves_a_word_out():
    assert start_phases("Model loading took 7.51 GiB and 4.5 seconds") == {"weights": 4.5}


def test_what_did_not_happen_is_absent():
    assert start_phases(EAGER) == {"weights": 0.03, "initialize": 0.12}
    assert start_phases("") == {}


def test_rows_of_a_start():
    run = {"run_id": "r", "stage": "measure_engine", "gpu": "g", "model": "m", "scheme": "s", "engine_start_s": 2.0}
    rows = start_rows(run | {"start_phases_s": {"weights": 0.5}})
    assert [(row["phase"], row["elapsed_s"]) for row in rows] == [("ready", 2.0), ("weights", 0.5)]
    # as earlier releases of this workflow kept it, and a run that started nothing
    assert [row["phase"] for row in start_rows(run)] == ["ready"]
    assert start_rows(run | {"engine_start_s": None}) == []
