"""What a server is asked, and when: arrival times and prompts. Pure, and the same for every scheme of a study."""

import json
from pathlib import Path

import numpy as np

# One stream of random numbers per purpose, so that more requests change no earlier arrival and no earlier prompt.
ARRIVALS, PROMPTS, WARM_UP, WAKING, RAMP = 0, 1, 2, 3, 4
# A new process is given work for so long before anything is timed: on a CPU it gets faster for its first two seconds.
WAKING_S = 3.0
# What a client may send late, as a share of the time to the first token: above the first the report says so, above the
# second it is the client that was measured. Less than a tick of the system's scheduler (250 Hz) says nothing about it.
LAG_NOTED, LAG_SHARE, TICK_S = 0.05, 0.25, 0.004


def poisson_offsets(rate_per_s, requests, seed):
    """Seconds from the first request to each of `requests`, with exponential gaps of mean 1/rate_per_s."""
    gaps_s = np.random.default_rng([seed, ARRIVALS]).exponential(1 / rate_per_s, requests)
    gaps_s[:1] = 0
    return np.cumsum(gaps_s).tolist()


def random_prompts(token_ids, input_tokens, requests, seed, stream=PROMPTS):
    """`requests` lists of exactly `input_tokens` ids drawn from `token_ids`.

    No two begin with the same id as long as there are enough ids, so that none is ever found in a prefix cache.
    """
    generator = np.random.default_rng([seed, stream])
    ids = np.asarray(token_ids)
    prompts = generator.choice(ids, (requests, input_tokens))
    prompts[:, 0] = np.resize(generator.permutation(ids), requests)
    return prompts.tolist()


def ordinary_token_ids(config, tokenizer=None):
    """Ids that stand for text: those of the vocabulary without added, special, begin, end and padding tokens.

    config     the model's config.json
    tokenizer  its tokenizer.json; without one every id below vocab_size counts, but for begin, end and padding
    """
    text_config = config.get("text_config") or config
    ids = set(range(text_config.get("vocab_size") or config["vocab_size"]))
    if tokenizer:
        vocabulary = tokenizer["model"]["vocab"]
        # Unigram models list [piece, score] pairs: the id is the position.
        ids &= set(vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary)))
        ids -= {token["id"] for token in tokenizer.get("added_tokens") or []}
    for part in (config, text_config):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            special = part.get(name)
            ids -= set(special if isinstance(special, list) else [special])
    return sorted(ids)


def read_token_ids(checkpoint):
    """`ordinary_token_ids` of a checkpoint's folder."""
    tokenizer = Path(checkpoint) / "tokenizer.json"
    config = json.loads((Path(checkpoint) / "config.json").read_text())
    return ordinary_token_ids(config, json.loads(tokenizer.read_text()) if tokenizer.exists() else None)


def client_lag(rows):
    """(seconds, share) by which a client sent late: the mean from scheduled to sent, alone and over that to the first token.

    rows of a load of which no request failed. What reads the answers is the loop that sends the requests, so where sending
    is late, reading is, too.
    """
    lag_s = sum(row["sent_s"] - row["scheduled_s"] for row in rows) / len(rows)
    return lag_s, lag_s * len(rows) / sum(row["first_token_s"] - row["scheduled_s"] for row in rows)


def client_fault(rows):
    """Why the client was the bottleneck of a load, or None."""
    lag_s, share = client_lag(rows)
    if lag_s <= TICK_S or share <= LAG_SHARE:
        return None
    return (
        f"the client was the bottleneck: on average it sent requests {1e3 * lag_s:.1f} ms after they were due, "
        f"{100 * share:.0f} % of the time to the first token; with more than {100 * LAG_SHARE:g} % it is no measurement of "
        "the server: give the job more cores, or lower the load"
    )


def warm_up_requests(params):
    """How many requests go ahead of a load and are not recorded: twice the concurrency, or two."""
    return 2 * params["concurrency"] if params["load"] == "concurrency" else 2
