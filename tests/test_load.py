"""load.py: when requests arrive and what they ask."""

import itertools

import pytest
from quantbench.load import (
    PROMPTS,
    WARM_UP,
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
