"""What requests ask: prompts and how many tokens to generate, of fixed lengths, a distribution, or a file's. Pure, seeded.

For throughput as for serving: `draw_lengths` has the lengths of a distribution, `Prompts.take` the requests themselves.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from quantbench.errors import UserError
from quantbench.load import PROMPTS, random_prompts, read_token_ids

# The lengths that `vllm bench` leaves out of a conversation file (benchmarks/datasets, is_valid_sequence): so the same
# file gives requests like its own.
LEAST_TOKENS, MOST_PROMPT_TOKENS, MOST_TOKENS = 4, 1024, 2048
# A distribution so far beyond the context that a draw hardly ever fits is refused, not waited for.
MOST_DRAWS = 1000


class Asked(NamedTuple):
    """One request: token ids of its prompt, and how many tokens are generated for it."""

    prompt: list
    output_tokens: int


class Prompts:
    """The requests of one load after another on one model.

    token_ids   ids to make random prompts of
    context     the longest prompt and answer together, in tokens; None for no limit
    files       {sha256: path} of workloads that are files
    tokenizer   tokenizer.json of the model, which files' texts go through; None where there is none
    """

    def __init__(self, token_ids, context=None, files=None, tokenizer=None):
        self.token_ids, self.context, self.files, self.tokenizer = token_ids, context, files or {}, tokenizer
        self._read = {}

    def take(self, params, requests, stream=PROMPTS):
        """`requests` Asked of a point's parameters; another stream gives others."""
        seed, workload = params["seed"], params.get("workload")
        if workload is None:
            prompts = random_prompts(self.token_ids, params["input_tokens"], requests, seed, stream)
            return [Asked(prompt, params["output_tokens"]) for prompt in prompts]
        if "sha256" in workload:
            known = self._conversations(workload["sha256"])
            order = np.random.default_rng([seed, stream]).permutation(len(known))
            return [known[place] for place in np.resize(order, requests)]
        lengths = draw_lengths(workload, requests, seed, self.context, stream)
        longest = max(inputs for inputs, _ in lengths)
        prompts = random_prompts(self.token_ids, longest, requests, seed, stream)
        return [Asked(prompt[:inputs], outputs) for prompt, (inputs, outputs) in zip(prompts, lengths, strict=True)]

    def _conversations(self, digest):
        if digest not in self._read:
            rows = read_conversations(self.files[digest], digest)
            self._read[digest] = tokenized(rows, self.tokenizer, self.context, self.files[digest])
        return self._read[digest]


def prompts_of(job, checkpoint):
    """What the loads of a variant are made of: the ids of its vocabulary, its context, the study's own files."""
    config = json.loads((checkpoint / "config.json").read_text())
    own = (config.get("text_config") or config).get("max_position_embeddings")
    tokenizer = checkpoint / "tokenizer.json"
    return Prompts(
        read_token_ids(checkpoint),
        context=job["engine_args"].get("max_model_len") or own,
        files=job.get("workload_files"),
        tokenizer=tokenizer if tokenizer.exists() else None,
    )


def draw_lengths(workload, requests, seed, context=None, stream=PROMPTS):
    """[(prompt tokens, generated tokens)] of a distribution of config/workloads.yaml.

    Each part is lognormal of a `mean` and a `sigma`, the standard deviation of the logarithm, held between `least` and
    `most`: what lies outside, or does not fit the `context`, is drawn again. Raises UserError where hardly anything fits.
    """
    generator = np.random.default_rng([seed, stream])
    return [_draw(workload, generator, context) for _ in range(requests)]


def _draw(workload, generator, context):
    for _ in range(MOST_DRAWS):
        pair = []
        for part in (workload["input_tokens"], workload["output_tokens"]):
            # The mean of a lognormal is exp(mu + sigma^2 / 2).
            drawn = round(generator.lognormal(np.log(part["mean"]) - part["sigma"] ** 2 / 2, part["sigma"]))
            pair.append(drawn if part["least"] <= drawn <= part["most"] else None)
        if None not in pair and (context is None or sum(pair) <= context):
            return tuple(pair)
    raise UserError(f"a workload's lengths do not fit the model's context of {context} tokens")


def read_conversations(path, digest=None):
    """[(prompt text, answer text or None, output_tokens or None)] of a file.

    .json   a list of conversations in ShareGPT's form: the first turn is the prompt, the length of the second the answer's
    .jsonl  rows with `prompt` and `output_tokens`

    Raises UserError naming file and row; with a digest also where the file is not what it was when the study was read.
    """
    data = Path(path).read_bytes()
    if digest and hashlib.sha256(data).hexdigest() != digest:
        raise UserError(f"{path} has changed since the study was read; run the same command again")
    try:
        if str(path).endswith(".json"):
            turns = [entry["conversations"] for entry in json.loads(data)]
            return [(first["value"], second["value"], None) for first, second, *_ in (t for t in turns if len(t) > 1)]
        rows = []
        for number, line in enumerate(data.decode().splitlines(), start=1):
            row = json.loads(line) if line.strip() else None
            if row is None:
                continue
            if not isinstance(row["prompt"], str) or not isinstance(row["output_tokens"], int):
                raise UserError(f"{path}, line {number}: a row has the text `prompt` and the number `output_tokens`")
            rows.append((row["prompt"], None, row["output_tokens"]))
        return rows
    except (KeyError, TypeError, ValueError) as error:
        form = "ShareGPT's [{'conversations': [{'value': ...}, ...]}, ...], or JSONL rows of prompt and output_tokens"
        raise UserError(f"{path}: not of the form {form} ({type(error).__name__}: {error})") from None


def tokenized(rows, tokenizer, context, path):
    """[Asked] of a file's texts, without those that `vllm bench` leaves out or that the context does not hold."""
    if tokenizer is None:
        raise UserError(f"{path}: the model has no tokenizer.json to read its texts with")
    from tokenizers import Tokenizer

    encode = Tokenizer.from_file(str(tokenizer)).encode_batch
    prompts = encode([prompt for prompt, _, _ in rows])
    answers = encode([answer or "" for _, answer, _ in rows])
    found = []
    for prompt, answer, (_, _, given) in zip(prompts, answers, rows, strict=True):
        ids, outputs = prompt.ids, len(answer.ids) if given is None else given
        fits = len(ids) + outputs <= min(MOST_TOKENS, context or MOST_TOKENS)
        if min(len(ids), outputs) >= LEAST_TOKENS and len(ids) <= MOST_PROMPT_TOKENS and fits:
            found.append(Asked(ids, outputs))
    if not found:
        raise UserError(f"{path}: none of its {len(rows)} conversations fits the model's context of {context} tokens")
    return found
