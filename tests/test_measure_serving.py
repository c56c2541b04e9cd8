"""measure_serving: what it does without a server, then with a real one."""

import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import measure_serving
import psutil
import pytest
from quantbench.engine import server as engine_server
from quantbench.engine.server import EngineFailed, ServerDied, command_line, server_environment
from quantbench.keys import canonical_json, key
from quantbench.points import expand
from quantbench.store import Store

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "workflow" / "scripts"
ENGINE_ARGS = {"dtype": "bfloat16", "max_model_len": None, "kv_cache_memory_bytes": 64 << 20, "enforce_eager": True}
LENGTHS = {"input_tokens": 32, "output_tokens": 16, "requests": 12, "seed": 0}
PARAMS = [LENGTHS | {"load": "rate", "rate_per_s": rate} for rate in (4, 16)]
PARAMS += [LENGTHS | {"load": "concurrency", "concurrency": users} for users in (1, 4)]
W4A16 = {"computes": "w4a16", "ignore": ["lm_head"]}
QUANTIZED = {"layer_kind": "qkv_proj", "count": 2, "kernel": "AKernel", "computes": "w4a16", "quantized": True}
PLAIN = QUANTIZED | {"kernel": "UnquantizedLinearMethod", "computes": "bf16", "quantized": False}


# Any request is within the hour, so that only the two ends are sent: loads that PARAMS has already.
SEARCH = {"least_rate_per_s": 4, "most_rate_per_s": 16, "probes": 5, "probe_protocol": 1, "send": LENGTHS}
SEARCH |= {"slo": {"e2e_s": 3600, "share": 0.9}}


def group(stage, params):
    return {"stage": stage, "protocol": 1, "versions": {}, "params": params}


def make_job(checkpoint="nowhere", params=PARAMS, expects=W4A16):
    common = {"artefact": "point", "checkpoint": "c" * 64, "gpu": "cpu", "epoch": 0, "engine_args": ENGINE_ARGS}
    return {
        "gpu": "cpu",
        "model": "random",
        "scheme": "a-scheme",
        "gpu_entry": {"environment": "engine-cpu", "name_patterns": [".*"]},
        "checkpoint_path": str(checkpoint),
        "engine_args": ENGINE_ARGS,
        "expects": expects,
        "common": common,
        "groups": [group("serving", params)],
        "load_point": common | {"stage": "load", "protocol": 1, "versions": {}, "params": {}},
    }


def options(job, folder):
    return [f"--job={canonical_json(job)}", f"--store={folder / 'store'}", f"--output={folder / 'pointer.json'}"]


def stored(job, folder):
    store = Store(folder / "store")
    return [store.read_point(point["key"]) for point in expand(job)]


@pytest.fixture
def server(monkeypatch):
    """server(failure=..., kernels=...): a server that is there only in name, or not even that."""

    def pretend(failure=None, kernels=(QUANTIZED,)):
        class Pretended:
            start_s = 1.0
            calls = 0

            def wait_until_ready(self, limit_s=None):
                if failure:
                    raise failure

            def kernels(self):
                return list(kernels)

        @contextlib.contextmanager
        def start_server(checkpoint, engine_args, log, gpu_entry):
            Pretended.calls += 1
            log.touch()
            yield Pretended()

        monkeypatch.setattr(measure_serving, "start_server", start_server)
        monkeypatch.setitem(sys.modules, "quantbench.engine.client", type(sys)("client"))
        return Pretended

    return pretend


def test_with_nothing_missing_only_the_pointer_is_written(tmp_path, server):
    pretended, job = server(), make_job()
    for point in expand(job):
        Store(tmp_path / "store").write_point(point["identity"], status="ok", rows=[{}], run_id="r")
    assert measure_serving.main(options(job, tmp_path)) == 0
    assert (tmp_path / "pointer.json").exists()
    assert pretended.calls == 0 and not Store(tmp_path / "store").read_runs()


def test_what_the_engine_could_not_load_gets_no_server(tmp_path, server):
    pretended, job = server(), make_job()
    Store(tmp_path / "store").write_point(
        job["load_point"], status="unsupported", reason="no kernel", rows=[], run_id="the-engine-run"
    )
    assert measure_serving.main(options(job, tmp_path)) == 0
    assert pretended.calls == 0
    for point in stored(job, tmp_path):
        assert (point["status"], point["reason"], point["run_id"]) == ("unsupported", "no kernel", "the-engine-run")


def test_a_server_that_says_why_it_cannot_start_is_a_result(tmp_path, server):
    server(failure=EngineFailed("out_of_memory", "No available memory for the cache blocks."))
    job = make_job()
    assert measure_serving.main(options(job, tmp_path)) == 0
    assert {point["status"] for point in stored(job, tmp_path)} == {"out_of_memory"}
    (run,) = Store(tmp_path / "store").read_runs().values()
    assert (run["points_measured"], run["engine_starts"]) == (4, 1) and run["ended_at"]


def test_a_server_that_dies_is_not_a_result(tmp_path, server, capsys):
    server(failure=ServerDied("the server ended (status -9); its last lines: boom"))
    job = make_job()
    assert measure_serving.main(options(job, tmp_path)) == 1
    assert stored(job, tmp_path) == [None] * 4
    assert not (tmp_path / "pointer.json").exists()
    assert "boom" in capsys.readouterr().err


def test_a_scheme_that_ran_unquantized_is_not_measured_as_the_scheme(tmp_path, server):
    server(kernels=[PLAIN])
    job = make_job()
    assert measure_serving.main(options(job, tmp_path)) == 0
    for point in stored(job, tmp_path):
        assert point["status"] == "invalid" and "UnquantizedLinearMethod" in point["reason"]
        assert point["rows"] == []


def limited_server(store, limit, dies_after=None):
    """(measure_load, rates it was sent): the first token comes after 0.1 s up to `limit` requests a second, else after 1 s."""
    sent = []

    async def measure_load(identity):
        if len(sent) == dies_after:
            raise ServerDied("the server ended")
        rate = identity["params"]["rate_per_s"]
        sent.append(rate)
        after_s = 0.1 if rate <= limit else 1.0
        row = {"scheduled_s": 0, "first_token_s": after_s, "finished_s": 2, "output_tokens": 16, "error": None}
        store.write_point(identity, status="ok", rows=[row] * 12, run_id="r")

    return measure_load, sent


def run_search(store, search, limit, **more):
    """(rates that were sent, the search's rows or None when the server died)"""
    kept = []
    measure_load, sent = limited_server(store, limit, **more)
    identity = {"artefact": "point", **group("search", search)}
    with contextlib.suppress(ServerDied):
        asyncio.run(
            measure_serving.measure_search(
                identity, measure_load, store, lambda *_, rows, measured_s: kept.extend(rows)
            )
        )
    return sent, kept or None


def test_a_search_sends_loads_until_the_rate_is_known_and_keeps_each(tmp_path):
    store, search = Store(tmp_path), SEARCH | {"most_rate_per_s": 64, "slo": {"ttft_s": 0.5, "share": 0.9}}
    sent, rows = run_search(store, search, limit=20)
    # the ends, then sqrt(4 x 64) = 16, sqrt(16 x 64) = 32, sqrt(16 x 32) = 22.6
    assert sent == [4, 64, 16, 32, 22.6] == [row["rate_per_s"] for row in rows]
    assert [row["met"] for row in rows] == [True, False, True, False, False]
    assert all(store.read_point(row["probe_key"])["identity"]["stage"] == "serving" for row in rows)


def test_a_search_goes_on_where_its_server_died(tmp_path):
    store, search = Store(tmp_path), SEARCH | {"most_rate_per_s": 64, "slo": {"ttft_s": 0.5, "share": 0.9}}
    assert run_search(store, search, limit=20, dies_after=3) == ([4, 64, 16], None)
    sent, rows = run_search(store, search, limit=20)
    assert sent == [32, 22.6] and len(rows) == 5
    # With a larger budget or another SLO only what is new is sent.
    assert run_search(store, search | {"probes": 6}, limit=20)[0] == [19.0]
    assert run_search(store, search | {"slo": {"ttft_s": 5, "share": 0.9}}, limit=20)[0] == []


def test_the_key_is_in_the_environment_and_nowhere_else(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    environment = server_environment({"environment": "engine-cpu"}, "a-secret")
    assert environment["VLLM_API_KEY"] == "a-secret"
    assert [name for name, value in environment.items() if "a-secret" in value] == ["VLLM_API_KEY"]
    assert environment["VLLM_WORKER_MULTIPROC_METHOD"] == "fork"
    on_gpu = server_environment({"environment": "engine-cuda"}, "a-secret")
    assert "VLLM_WORKER_MULTIPROC_METHOD" not in on_gpu.keys() - os.environ.keys()


def test_engine_arguments_as_command_line():
    arguments = {"max_model_len": None, "enforce_eager": True, "enable_prefix_caching": False, "dtype": "bfloat16"}
    assert command_line(arguments | {"compilation_config": {"mode": 0}}) == [
        "--enforce-eager",
        "--no-enable-prefix-caching",
        "--dtype=bfloat16",
        '--compilation-config={"mode": 0}',
    ]


def test_prefix_caching_stays_off_whatever_the_study_says():
    assert engine_server.FIXED_ARGS["enable_prefix_caching"] is False


# --- with a real server ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(engine_python, tmp_path_factory):
    folder = tmp_path_factory.mktemp("random") / "model"
    folder.mkdir()
    command = [engine_python, ROOT / "tests" / "random_llama.py", folder]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return folder


def family_of(process, model):
    """The server that a job has started, then all below it: vLLM renames those, so they are found through the server."""
    servers = [child for child in psutil.Process(process.pid).children(recursive=True) if serves(child, model)]
    return servers + [child for server in servers for child in server.children(recursive=True)]


def serves(process, model):
    with contextlib.suppress(psutil.Error):
        command = " ".join(process.cmdline())
        return "serve.py" in command and str(model) in command
    return False


def ports(processes):
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found |= {c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    return found


def wait_until(condition, limit_s=300):
    until = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)
    return value


def status_without_key(port, path):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        return opener.open(f"http://127.0.0.1:{port}{path}", timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def served(engine_python, model, tmp_path_factory):
    """One server for the tests below: four loads, then an endless one under which its worker is killed."""
    folder = tmp_path_factory.mktemp("served")
    endless = LENGTHS | {"load": "concurrency", "concurrency": 2, "requests": 100_000}
    job = make_job(model, expects={"computes": "bf16", "ignore": []})
    job["groups"] += [group("search", [SEARCH]), group("serving", [endless])]
    command = [engine_python, SCRIPTS / "measure_serving.py", *options(job, folder)]
    with open(folder / "said", "w") as said:
        process = subprocess.Popen(command, stderr=said)
    try:
        wait_until(lambda: stored(job, folder)[4] or process.poll() is not None)
        time.sleep(1)
        assert process.poll() is None, (folder / "said").read_text()[-3000:]
        family = family_of(process, model)
        [port] = [port for port in ports(family) if f"--port={port}" in family[0].cmdline()]
        secret = family[0].environ()["VLLM_API_KEY"]
        refused = [
            status_without_key(port, path) for path in ("/health", "/v1/models", "/collective_rpc", "/server_info")
        ]
        family[-1].kill()  # a worker: the API process is still there and answers with errors
        process.wait(timeout=300)
    finally:
        # What it has started ends with it.
        process.kill()
    return SimpleNamespace(
        folder=folder, family=family, key=secret, refused=refused, status=process.returncode, points=stored(job, folder)
    )


@pytest.mark.engine
def test_one_server_measures_every_rate_and_concurrency(served):
    for point in served.points[:4]:
        # On a busy machine the client may starve beside the server.
        assert point["status"] == "ok" or "the client was the bottleneck" in point["reason"]
        assert [row["request"] for row in point["rows"]] == list(range(12))
        for row in point["rows"]:
            assert row["scheduled_s"] <= row["sent_s"] < row["first_token_s"] < row["finished_s"]
            assert (row["input_tokens"], row["output_tokens"], row["error"]) == (32, 16, None)
    # one user never has two requests under way; four users share the work of twelve requests
    one, four = served.points[2]["rows"], served.points[3]["rows"]
    assert all(late["sent_s"] >= early["finished_s"] for early, late in itertools.pairwise(one))
    assert sum(row["sent_s"] < four[0]["finished_s"] for row in four) == 4
    (run,) = Store(served.folder / "store").read_runs().values()
    assert run["engine_starts"] == 1 and run["points_measured"] >= 5 and run["engine_start_s"] > 1
    assert {group["layer_kind"] for group in run["kernels"]} >= {"qkv_proj", "down_proj"}


@pytest.mark.engine
def test_a_search_shares_its_loads_with_the_study(served):
    found = {row["rate_per_s"]: row["probe_key"] for row in served.points[4]["rows"]}
    least, most = (key(point["identity"]) for point in served.points[:2])
    # The most is not sent where the least was no measurement.
    assert found[4] == least and found.get(16, most) == most


@pytest.mark.engine
def test_a_server_killed_during_a_load_loses_that_point_only(served):
    assert served.status == 1
    assert "the server ended" in (served.folder / "said").read_text()
    assert served.points[5] is None and None not in served.points[:5]
    assert not (served.folder / "pointer.json").exists()
    # the API process, the engine's and the worker
    assert len(served.family) >= 3 and not any(alive.is_running() for alive in served.family)


@pytest.mark.engine
def test_the_key_guards_every_path_and_is_written_nowhere(served):
    assert served.refused == [401] * 4
    assert len(served.key) > 30
    for path in served.folder.rglob("*"):
        assert path.is_dir() or served.key.encode() not in path.read_bytes(), path
    assert (served.folder / "pointer.server.log").stat().st_size > 0
