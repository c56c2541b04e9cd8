"""The client against a server of known speed (mock_server.py), both in the engine environment's interpreter."""

import json
import subprocess
from pathlib import Path

import pytest
from quantbench.keys import file_sha256

ROOT = Path(__file__).parents[1]
LENGTHS = {"input_tokens": 24, "output_tokens": 8, "seed": 0}
RATE = LENGTHS | {"load": "rate", "rate_per_s": 40, "requests": 40}
CLOSED = LENGTHS | {"load": "concurrency", "concurrency": 3, "requests": 12}

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def measure(engine_python):
    def run(params, **case):
        case |= {"params": params, "warm_up": 2 * params.get("concurrency", 1)}
        code = f"import sys; sys.path += {[str(ROOT / 'tests'), str(ROOT / 'workflow/scripts')]}\n"
        code += f"import mock_server; mock_server.main({case!r})"
        done = subprocess.run([engine_python, "-c", code], capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("REPORT"))[6:])

    return run


def ttft_s(row):
    return row["first_token_s"] - row["scheduled_s"]


@pytest.fixture(scope="module")
def steady(measure):
    return measure(RATE)


def test_open_loop_measures_the_servers_speed(steady):
    rows = steady["rows"]
    assert [row["request"] for row in rows] == list(range(40))
    assert steady["first_error"] is None
    # the first token after 100 ms; the other seven 10 ms apart, so 70 ms more; a busy machine adds to that
    assert 0.100 <= min(map(ttft_s, rows)) < 0.150
    assert 0.060 <= min(row["finished_s"] - row["first_token_s"] for row in rows) < 0.105
    assert all(row["scheduled_s"] <= row["sent_s"] < row["first_token_s"] < row["finished_s"] for row in rows)
    assert {(row["input_tokens"], row["output_tokens"], row["error"]) for row in rows} == {(24, 8, None)}
    # seven gaps of 10 ms each: bin b begins at 1.01^b microseconds, so 10 ms are in bin 925
    gaps = [json.loads(row["token_gaps"]) for row in rows]
    assert all(sum(found.values()) == 7 for found in gaps)
    assert sum(count for found in gaps for b, count in found.items() if 900 < int(b) < 1000) > 7 * 4


def test_a_client_that_keeps_up_is_no_bottleneck(steady):
    lags_s = sorted(row["sent_s"] - row["scheduled_s"] for row in steady["rows"])
    assert steady["client_fault"] is None
    assert lags_s[0] >= 0 and lags_s[20] < 0.02


def test_requests_are_exact_and_warm_up_is_not_recorded(steady):
    assert len(steady["prompts"]) == 42
    assert {len(prompt) for prompt in steady["prompts"]} == {24}
    assert len({tuple(prompt) for prompt in steady["prompts"]}) == 42
    assert set(steady["headers"]) == {"Bearer a-key"}
    for body in steady["bodies"]:
        assert (body["max_tokens"], body["ignore_eos"], body["temperature"]) == (8, True, 0.0)


def test_a_stalled_server_is_counted_from_the_scheduled_time(measure):
    rows = measure(RATE, server={"stall_at_s": 0.2, "stall_s": 0.6})["rows"]
    # Nothing comes out from 0.2 s to 0.8 s; what was scheduled at t in between has its first token at 0.8 s: 0.8 - t.
    caught = [row for row in rows if 0.25 < row["scheduled_s"] < 0.65]
    assert len(caught) > 5
    late_s = [ttft_s(row) - (0.8 - row["scheduled_s"]) for row in caught]
    # Not by less: the server's clock starts when the first request has come.
    assert min(late_s) >= 0 and sorted(late_s)[len(late_s) // 2] < 0.2
    # The schedule went on: who waits for an answer before sending would be late by half a second.
    lags_s = sorted(row["sent_s"] - row["scheduled_s"] for row in caught)
    assert lags_s[len(lags_s) // 2] < 0.25


def test_the_clients_own_lag_is_in_sight(measure):
    report = measure(RATE, client_blocks=[0.2, 0.6])
    rows = report["rows"]
    # six requests in ten are 0.3 s late on average, beside 0.1 s to their first token
    assert "the client was the bottleneck" in report["client_fault"]
    late = [row for row in rows if 0.25 < row["scheduled_s"] < 0.5]
    assert late
    for row in late:
        assert row["sent_s"] - row["scheduled_s"] > 0.05
        assert ttft_s(row) > row["first_token_s"] - row["sent_s"]


def test_closed_loop_keeps_its_concurrency(measure):
    report = measure(CLOSED)
    rows = report["rows"]
    assert report["most_at_once"] == 3
    assert len(report["prompts"]) == 6 + 12
    assert [row["request"] for row in rows] == list(range(12))
    # three users: request 3 is due when the first of 0, 1, 2 has its answer, 100 + 70 ms after the start
    assert rows[3]["scheduled_s"] == pytest.approx(min(row["finished_s"] for row in rows[:3]), abs=0.05)
    assert rows[2]["scheduled_s"] < 0.05


def test_a_closed_loop_goes_on_for_its_least_duration(measure):
    rows = measure(CLOSED | {"least_duration_s": 1.5})["rows"]
    # three users with answers of 170 ms: more than the twelve asked for, and nobody begins after 1.5 s
    assert len(rows) > 12
    assert [row["request"] for row in rows] == list(range(len(rows)))
    assert max(row["scheduled_s"] for row in rows) < 1.5 < max(row["finished_s"] for row in rows)


@pytest.mark.parametrize("params", [CLOSED, RATE], ids=["closed", "open"])
def test_a_ramp_comes_before_what_is_measured(measure, params):
    report = measure(params | {"ramp_s": 1})
    rows = report["rows"]
    assert [row["request"] for row in rows] == list(range(params["requests"]))
    assert min(row["scheduled_s"] for row in rows) >= 0
    # at least: of the closed loop one request each of its first two users; of the open loop half of 40 a second
    assert len(report["prompts"]) > 2 + params["requests"] + 2


def test_all_at_once_and_a_workload_of_different_lengths(measure):
    lognormal = {"sigma": 0.5, "least": 4, "most": 60}
    workload = {"input_tokens": lognormal | {"mean": 30}, "output_tokens": lognormal | {"mean": 8}}
    report = measure({"load": "all_at_once", "requests": 20, "seed": 0, "workload": workload})
    rows = report["rows"]
    assert {row["scheduled_s"] for row in rows} == {0}
    assert report["most_at_once"] == 20
    assert [row["input_tokens"] for row in rows] == [len(prompt) for prompt in report["prompts"][2:]]
    assert len({row["input_tokens"] for row in rows}) > 5 and len({row["output_tokens"] for row in rows}) > 3
    assert {row["error"] for row in rows} == {None}


def test_texts_of_a_file_go_through_the_models_tokenizer(measure, tmp_path):
    path, model = tmp_path / "chat.json", ROOT / "resources/tiny/model"
    turns = [
        ["Tom has 3 apples and buys 4 more.", "He has 7 apples in all now."],
        ["Hi", "no"],
        ["long " * 200, "yes " * 9],
    ]
    turns = [{"conversations": [{"value": value} for value in turn]} for turn in turns]
    path.write_text(json.dumps(turns))
    workload = {"sha256": file_sha256(path)}
    params = {"load": "all_at_once", "requests": 3, "seed": 0, "workload": workload}
    files = {"files": {workload["sha256"]: str(path)}, "tokenizer": str(model / "tokenizer.json"), "context": 100}
    report = measure(params, **files)
    # Too short is the second, too long for the context the third; the first comes as often as it is asked for.
    (prompt,) = {tuple(prompt) for prompt in report["prompts"]}
    assert {(row["input_tokens"], row["error"]) for row in report["rows"]} == {(len(prompt), None)}
    assert len(prompt) > 8 and {body["max_tokens"] for body in report["bodies"]} == {
        row["output_tokens"] for row in report["rows"]
    }


def test_a_new_server_answers_more_before_anything_is_recorded(measure):
    report = measure(CLOSED, fresh=True)
    # four at once, each 170 ms, for three seconds: 70; a busy machine's are fewer
    assert len(report["prompts"]) > 30 + 6 + 12
    assert len({tuple(prompt) for prompt in report["prompts"]}) == len(report["prompts"])
    assert [row["request"] for row in report["rows"]] == list(range(12))


@pytest.mark.parametrize(
    ("server", "says"),
    [
        ({"fails": 3, "status": 500}, "made to fail"),
        ({"fails": 3, "short_by": 2}, "asked for 8 tokens, got 6"),
    ],
)
def test_a_failed_request_is_a_row_with_its_error(measure, server, says):
    report = measure(CLOSED, server=server)
    failed = [row for row in report["rows"] if row["error"]]
    assert len(failed) == 1
    assert failed[0]["error"] == says
    assert failed[0]["first_token_s"] is None and failed[0]["finished_s"] is None
    assert report["first_error"] == f"1 of 12 requests failed; the first, number {failed[0]['request']}: {says}"
