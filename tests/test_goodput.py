"""goodput.py and token_gaps.py: what of a load is within its objective, and times between tokens."""

import json

import numpy as np
import pytest
from quantbench.goodput import goodput, meets, tpot_s, words
from quantbench.token_gaps import gap_quantiles, histogram

SLO = {"ttft_s": 0.2, "tpot_s": 0.05, "share": 0.75}


def request(due, first, last, tokens=11, error=None):
    row = {"scheduled_s": due, "sent_s": due, "first_token_s": first, "finished_s": last, "output_tokens": tokens}
    return row | {"error": error}


GOOD = request(1.0, 1.1, 1.5)  # first after 0.1 s, then ten tokens in 0.4 s: 40 ms each
SLOW_START = request(1.0, 1.3, 1.5)
SLOW_TOKENS = request(1.0, 1.1, 1.7)  # 60 ms each


def test_a_request_has_to_keep_every_limit():
    assert tpot_s(GOOD) == pytest.approx(0.04)
    assert [meets(row, SLO) for row in (GOOD, SLOW_START, SLOW_TOKENS)] == [True, False, False]
    assert meets(SLOW_START, {"tpot_s": 0.05, "ttft_s": None}) and not meets(GOOD, {"e2e_s": 0.4})
    # one token has no time per further token
    assert meets(request(0, 0.1, 0.1, tokens=1), SLO)
    assert not meets(request(0, None, None, error="no"), SLO)


def test_waiting_before_the_server_counts():
    late = GOOD | {"scheduled_s": 0.8}  # due 0.3 s before its first token, sent 0.1 s before
    assert not meets(late, SLO)


def test_goodput_is_requests_within_the_slo_per_second():
    rows = [request(0, 0.1, 0.5), request(1, 1.1, 1.5), request(2, 2.1, 2.5), request(3, 3.5, 4.0)]
    found = goodput(rows, SLO)
    # three of four are within, in the 4 s from the first one's due time to the last token; 44 tokens in all
    assert (found["within"], found["share"], found["met"]) == (3, 0.75, True)
    assert (found["requests_per_s"], found["output_tokens_per_s"]) == (0.75, 11)
    # Wilson for 3 of 4
    assert (found["low"], found["high"]) == (pytest.approx(0.3006, abs=1e-4), pytest.approx(0.9544, abs=1e-4))
    assert not goodput(rows, SLO | {"share": 0.9})["met"]


def test_an_slo_in_words():
    said = words(SLO, lambda s: f"{1e3 * s:g} ms")
    assert said == "75 % of the requests have their first token within 200 ms and each further token within 50 ms"


def test_gaps_are_kept_to_half_a_percent():
    gaps = [0.0123] * 99 + [0.2]
    text = histogram(gaps)
    assert sum(json.loads(text).values()) == 100
    (median, *_), (most, *_) = gap_quantiles([text], (0.5, 1.0))
    assert median == pytest.approx(0.0123, rel=0.006) and most == pytest.approx(0.2, rel=0.006)
    assert histogram([]) is None and gap_quantiles([None], (0.5,)) is None


def test_all_gaps_of_a_load_count_alike():
    # 30 gaps of 10 ms in one answer, 10 of 100 ms in another: three quarters are 10 ms
    texts = [histogram([0.01] * 30), histogram([0.1] * 10), None]
    (q70, *_), (q80, *_) = gap_quantiles(texts, (0.7, 0.8))
    assert q70 == pytest.approx(0.01, rel=0.006) and q80 == pytest.approx(0.1, rel=0.006)


def test_the_interval_of_gaps_comes_from_answers_and_holds_the_truth():
    rng, hits = np.random.default_rng(0), 0
    # Answers differ, gaps within one hardly do: 60 answers of 100 gaps tell the median of 6000 like that of 60.
    truth = 0.01
    for _ in range(25):
        speeds = truth * np.exp(0.3 * rng.standard_normal(60))
        texts = [histogram(s * np.exp(0.02 * rng.standard_normal(100))) for s in speeds]
        [(_, low, high)] = gap_quantiles(texts, (0.5,))
        hits += low <= truth <= high
    # 95 % of 25 are 24; fewer than 19 would happen twice in ten thousand times
    assert hits >= 19
