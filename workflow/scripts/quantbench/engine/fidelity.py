"""How far a scheme's next-token distributions lie from the baseline's own, token by token, on text that both read.

The baseline's `reference` point keeps, for every position of held-out documents, its `top_k` most likely next tokens with
their log-probabilities. A scheme's `fidelity` point reads the very same tokens and is asked for its own `top_k`.

What KL is computed of: an engine names the tokens that *it* finds likely, so a token of the baseline's list has a
probability in the scheme's only where both lists have it. The vocabulary is therefore divided into those tokens, each for
itself, and one class of all others, whose probability in either distribution is what the others leave. Merging outcomes
never raises a divergence (data processing inequality; Cover and Thomas 2006, 2.7 and 4.4): what is reported is a **lower
bound** of the divergence over the vocabulary. `unresolved_mass`, the baseline's probability in that one class, says how
much of the distribution the bound cannot see into; with `top_k` at least the vocabulary's size it is 0, and the
divergence exact. Either is subject to the rounding of 32-bit log-probabilities, about 1e-6 nat per token.
"""

import numpy as np

from quantbench.errors import UserError

FILE = "distributions.npz"
# Numbers that the engine hands over at once; as Python objects they take some 100 bytes each.
ENTRIES = 1_000_000
# What the sum of 32-bit probabilities leaves of 1 is noise below this.
ROUNDING = 1e-6
# Of a token that a distribution excludes (-inf): a finite number, so that a sum stays one.
LEAST_LOG = -1e4


def measure_reference(session, texts, params, folder):
    """Rows of the baseline's documents; its distributions are written below `folder`.

    params  `max_tokens` that a document is cut to, `top_k` of the distributions
    """
    tokenizer = session.llm.get_tokenizer()
    prompts = {n: tokenizer(text).input_ids[: params["max_tokens"]] for n, text in enumerate(texts)}
    # A first token is predicted by nothing.
    prompts = {n: ids for n, ids in prompts.items() if len(ids) > 1}
    if not prompts:
        raise UserError("fidelity: no document has two tokens")
    found = list(distributions(session, list(prompts.values()), params["top_k"]))
    np.savez(
        folder / FILE,
        documents=np.array(list(prompts)),
        lengths=np.array([len(ids) for ids in prompts.values()]),
        prompts=np.concatenate([np.array(ids, np.int32) for ids in prompts.values()]),
        ids=np.concatenate([part["ids"] for part in found]),
        logs=np.concatenate([part["logs"] for part in found]),
    )
    return [_row(number, part) for number, part in zip(prompts, found, strict=True)]


def measure_fidelity(session, params, folder):
    """Rows of the documents of a reference, which lies in `folder`: see table `fidelity`."""
    with np.load(folder / FILE) as file:
        stored = {name: file[name] for name in file.files}
    vocabulary = _vocabulary(session)
    prompts = [part.tolist() for part in np.split(stored["prompts"], np.cumsum(stored["lengths"])[:-1])]
    # A document of n tokens has n - 1 positions that predict one.
    ends = np.cumsum(stored["lengths"] - 1)
    rows = []
    for number, end, mine in zip(
        stored["documents"], ends, distributions(session, prompts, params["top_k"]), strict=True
    ):
        part = slice(end - len(mine["ids"]), end)
        theirs = {name: stored[name][part] for name in ("ids", "logs")}
        divergence, unresolved = divergences(theirs, mine, vocabulary)
        row = _row(int(number), mine) | {"kl_divergence": float(divergence.sum())}
        row |= {"largest_kl_divergence": float(divergence.max()), "unresolved_mass": float(unresolved.sum())}
        row["top1_agreement"] = int(np.sum(theirs["ids"][:, 0] == mine["ids"][:, 0]))
        rows.append(row)
    return rows


def divergences(baseline, other, vocabulary):
    """([positions] KL(baseline || other) in nats, [positions] unresolved mass): a lower bound, see above.

    baseline, other  {"ids", "logs"}, each [positions, k]: tokens by falling probability, and their log-probabilities
    vocabulary       number of tokens; where both have them all, the divergence is exact
    """
    matched, other_logs = _at_tokens(baseline["ids"], other, vocabulary)
    logs = np.maximum(baseline["logs"].astype(float), LEAST_LOG)
    other_logs = np.maximum(other_logs, LEAST_LOG)
    p, q = np.exp(logs) * matched, np.exp(other_logs) * matched
    divergence = np.sum(p * (logs - other_logs), axis=1)
    if min(baseline["ids"].shape[1], other["ids"].shape[1]) >= vocabulary:
        return divergence, np.zeros(len(divergence))
    rest_p, rest_q = (np.maximum(1 - part.sum(axis=1), ROUNDING) for part in (p, q))
    return divergence + rest_p * np.log(rest_p / rest_q), np.where(rest_p > ROUNDING, rest_p, 0.0)


def _at_tokens(ids, other, vocabulary):
    """(whether `other` names the token, its log-probability there, else 0), both shaped like `ids`."""
    # One search for all positions: each gets a range of numbers of its own.
    offsets = np.arange(len(ids), dtype=np.int64)[:, None] * vocabulary
    named = (other["ids"] + offsets).ravel()
    order = np.argsort(named)
    wanted = (ids + offsets).ravel()
    places = np.minimum(np.searchsorted(named, wanted, sorter=order), len(named) - 1)
    places = order[places]
    matched = named[places] == wanted
    logs = np.where(matched, other["logs"].ravel()[places].astype(float), 0.0)
    return matched.reshape(ids.shape), logs.reshape(ids.shape)


def distributions(session, prompts, top_k):
    """{"ids", "logs": [positions, k], "actual": [positions]} of each prompt: what the engine expects after each token.

    actual  log-probability of the token that follows
    """
    from vllm import SamplingParams

    k = min(top_k, _vocabulary(session))
    parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=k, detokenize=False, flat_logprobs=True)
    for group in _groups(prompts, k):
        outputs = session.llm.generate([{"prompt_token_ids": ids} for ids in group], parameters, use_tqdm=False)
        for ids, output in zip(group, outputs, strict=True):
            flat = output.prompt_logprobs
            # Of each position the token that follows, then the k likeliest; of the first, nothing.
            shape = (len(ids) - 1, k + 1)
            tokens = np.array(flat.token_ids, np.int32).reshape(shape)
            logs = np.array(flat.logprobs, np.float32).reshape(shape)
            yield {"ids": tokens[:, 1:], "logs": logs[:, 1:], "actual": logs[:, 0]}


def _groups(prompts, k):
    """The prompts in groups of at most ENTRIES numbers, or one prompt."""
    group, size = [], 0
    for ids in prompts:
        if group and size + len(ids) * k > ENTRIES:
            yield group
            group, size = [], 0
        group.append(ids)
        size += len(ids) * k
    yield group


def _vocabulary(session):
    return session.llm.llm_engine.model_config.get_vocab_size()


def _row(number, found):
    likelihood = found["actual"].astype(float).sum()
    return {"document": number, "tokens": len(found["actual"]), "negative_log_likelihood": float(-likelihood)}
