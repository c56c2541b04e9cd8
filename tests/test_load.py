"""load.py and arrivals.py: when requests arrive, prompts of one length, and whether the client kept up."""

import itertools

import pytest
from quantbench.arrivals import due_s, gamma_offsets, ramp_offsets
from quantbench.load import (
    PROMPTS,
    WARM_UP,
    client_fault,
    ordinary_token_ids,
    poisson_offsets,
    random_prompts,
    warm_up_requests,
)


def test_arrivals_are_a_poisson_process():
    offsets_s = poisson_offsets(rate_per_s=8, requests=4001, seed=0)
    gaps_s = [late - early for early, late in itertools.pairwise(offsets_s)]
    assert offsets_s[0] == 0
    assert min(gaps_s) >= 0
    # exponential gaps: mean 1/8 s and standard deviation the same; 4000 tell the mean to 1/8 / 63 = 0.002 s
    mean_s = sum(gaps_s) / 4000
    assert mean_s == pytest.approx(1 / 8, abs=0.008)
    assert (sum((gap - mean_s) ** 2 for gap in gaps_s) / 4000) ** 0.5 == pytest.approx(1 / 8, rel=0.1)


def test_the_seed_alone_decides_the_arrivals():
    assert poisson_offsets(8, 50, seed=1) == poisson_offsets(8, 50, seed=1) != poisson_offsets(8, 50, seed=2)
    # twice the rate: the same arrivals in half the time
    assert poisson_offsets(16, 50, seed=1) == pytest.approx([s / 2 for s in poisson_offsets(8, 50, seed=1)])
    assert poisson_offsets(8, 10, seed=1) == poisson_offsets(8, 50, seed=1)[:10]


@pytest.mark.parametrize("burstiness", [0.25, 1, 9])
def test_bursty_arrivals_have_the_rate_and_the_spread(burstiness):
    offsets_s = gamma_offsets(8, burstiness, 20_001, seed=0)
    gaps_s = [late - early for early, late in itertools.pairwise(offsets_s)]
    mean_s = sum(gaps_s) / 20_000
    deviation_s = (sum((gap - mean_s) ** 2 for gap in gaps_s) / 20_000) ** 0.5
    assert offsets_s[0] == 0 and min(gaps_s) >= 0
    # gamma of shape k: coefficient of variation 1 / sqrt(k), here 2, 1 and 1/3
    assert mean_s == pytest.approx(1 / 8, rel=0.06)
    assert deviation_s / mean_s == pytest.approx(burstiness**-0.5, rel=0.08)


def test_a_ramp_rises_in_a_straight_line_and_moves_nothing_that_is_measured():
    ramp = ramp_offsets(rate_per_s=200, ramp_s=20, burstiness=1, seed=0)
    assert all(-20 < early <= late < 0 for early, late in itertools.pairwise(ramp))
    # half of 200 a second times 20 s; the rate rises, so three quarters of them come in the second half
    assert len(ramp) == pytest.approx(2000, rel=0.1)
    assert sum(offset >= -10 for offset in ramp) / len(ramp) == pytest.approx(3 / 4, abs=0.04)
    plain = {"load": "rate", "rate_per_s": 200, "requests": 50, "seed": 0}
    assert due_s(plain) == poisson_offsets(200, 50, 0)
    assert due_s(plain | {"ramp_s": 20}) == ramp + poisson_offsets(200, 50, 0)


def test_all_at_once_is_all_at_once():
    assert due_s({"load": "all_at_once", "requests": 3, "seed": 0}) == [0, 0, 0]


@pytest.mark.parametrize(
    ("lag_s", "first_s", "at_fault"),
    [
        (0.026, 0.100, True),  # 26 % of the time to the first token
        (0.024, 0.100, False),
        (0.003, 0.010, False),  # 30 %, but less than a tick of the scheduler
        (0.500, 0.600, True),
    ],
)
def test_a_client_that_lags_is_the_bottleneck(lag_s, first_s, at_fault):
    rows = [{"scheduled_s": t, "sent_s": t + lag_s, "first_token_s": t + first_s} for t in range(5)]
    fault = client_fault(rows)
    assert bool(fault) == at_fault
    assert not at_fault or f"sent requests {1e3 * lag_s:.1f} ms after they were due" in fault


def test_prompts_have_the_length_asked_for_and_begin_differently():
    prompts = random_prompts(range(100, 600), input_tokens=32, requests=400, seed=0)
    assert {len(prompt) for prompt in prompts} == {32}
    assert {token for prompt in prompts for token in prompt} <= set(range(100, 600))
    assert len({prompt[0] for prompt in prompts}) == 400
    assert all(type(token) is int for token in prompts[0])


def test_more_requests_than_ids_still_gives_distinct_prompts():
    prompts = random_prompts(range(16), input_tokens=32, requests=100, seed=0)
    assert len({tuple(prompt) for prompt in prompts}) == 100


def test_warm_up_prompts_are_others_than_the_measured_ones():
    measured = random_prompts(range(500), 32, 40, seed=0, stream=PROMPTS)
    warm_up = random_prompts(range(500), 32, 40, seed=0, stream=WARM_UP)
    assert not {tuple(prompt) for prompt in measured} & {tuple(prompt) for prompt in warm_up}


def test_special_tokens_are_no_text():
    config = {"vocab_size": 12, "bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": None}
    tokenizer = {
        "model": {"vocab": {f"t{i}": i for i in range(10)}},  # the embedding is padded from 10 to 12 rows
        "added_tokens": [{"id": 0, "special": True}, {"id": 9, "special": False}],
    }
    assert ordinary_token_ids(config, tokenizer) == [4, 5, 6, 7, 8]
    assert ordinary_token_ids(config) == [0, 4, 5, 6, 7, 8, 9, 10, 11]


def test_a_models_text_part_has_the_vocabulary():
    assert ordinary_token_ids({"text_config": {"vocab_size": 5, "eos_token_id": 4}, "bos_token_id": 0}) == [1, 2, 3]


def test_unigram_vocabularies_are_lists():
    tokenizer = {"model": {"vocab": [["<unk>", 0.0], ["a", -1.0], ["b", -2.0]]}, "added_tokens": [{"id": 0}]}
    assert ordinary_token_ids({"vocab_size": 4}, tokenizer) == [1, 2]


@pytest.mark.parametrize(
    ("params", "count"), [({"load": "concurrency", "concurrency": 4}, 8), ({"load": "rate", "rate_per_s": 3}, 2)]
)
def test_warm_up_is_twice_the_concurrency_or_two(params, count):
    assert warm_up_requests(params) == count
