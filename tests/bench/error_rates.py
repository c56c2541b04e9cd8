"""How often the report would be wrong: A/A comparisons and planted differences through the report's own code.

    make bench            or: python tests/bench/error_rates.py [--rounds N]

Each row makes 200 studies whose truth is known, has comparison.py judge them, and counts. A promise is an upper bound on
false alarms, or a lower bound on what is found or covered. The observed rate stands with its Wilson interval: `holds` means
that the interval does not contradict the promise. Rows without a promise show what happens without a safeguard. Seeded, so
a row changes only with the code. Prints a table, writes reports/error-rates.json; the exit status is 1 if a promise is broken.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "workflow" / "scripts"))

from quantbench import paired, statistics
from quantbench.comparison import summarize
from quantbench.store import write_atomically
from quantbench.study import ROOT
from quantbench.verdict import BETTER, EQUAL, WORSE

OUTPUT = ROOT / "reports" / "error-rates.json"
KEYS = {"gpu": "g", "model": "m", "status": "ok", "reason": None}
REPEATS = {"least": 5, "most": 30, "relative_ci": 0.02, "confidence": 0.95}


class Row(NamedTuple):
    """`event(rng)` says whether it happened in one made-up study; `promise` is ("<=" or ">=", rate) or None."""

    name: str
    event: object
    promise: tuple | None


def observe(row, rounds, seed=0):
    """{"name", "count", "rounds", "rate", "low", "high", "promise", "holds"} of one row; holds is None without a promise."""
    rng = np.random.default_rng([seed, *row.name.encode()])
    count = sum(bool(row.event(rng)) for _ in range(rounds))
    low, high = paired.wilson(count, rounds)
    holds = None
    if row.promise:
        sense, rate = row.promise
        holds = low <= rate if sense == "<=" else high >= rate
    found = {"name": row.name, "count": count, "rounds": rounds, "rate": count / rounds, "low": low, "high": high}
    return found | {"promise": row.promise, "holds": holds}


# --- accuracy ---------------------------------------------------------------------------------------------------------


def answers(rng, n, lost, won, schemes, share=0.7, noise=0.0):
    """Table `accuracy`: a baseline with `share` right, schemes that lose and win these shares, each on its own.

    `noise` of the baseline's answers change, half of them either way, in a second start of its own.
    """
    right = rng.random(n) < share
    table = _answers("bf16", right, 1)
    if noise:
        table += _answers("bf16", _changed(rng, right, noise / 2, noise / 2, share), 2)
    for scheme in schemes:
        table += _answers(scheme, _changed(rng, right, lost, won, share), 1)
    return {"accuracy": table}


def _changed(rng, right, lost, won, share):
    u = rng.random(len(right))
    return np.where(right, u >= lost / share, u < won / (1 - share))


def _answers(scheme, right, start):
    task = {"task": "t", "dataset": "d", "shots": 0, "filter": "none", "scheme": scheme, "start": start}
    return [KEYS | task | {"question": i, "correct": bool(c)} for i, c in enumerate(right)]


def kinds(tables):
    """The verdicts on all schemes of a study."""
    return [found["kind"] for entry in summarize(tables, "bf16") for found in entry["accuracy"] if "kind" in found]


def any_difference(n, changed, schemes=6, noise=0.0):
    names = [f"s{i}" for i in range(schemes)]
    half = changed / 2
    return lambda rng: {WORSE, BETTER} & set(kinds(answers(rng, n, half, half, names, noise=noise)))


def loss_found(n, changed, loss):
    lost, won = (max(changed, loss) + loss) / 2, (max(changed, loss) - loss) / 2
    return lambda rng: kinds(answers(rng, n, lost, won, ["s"])) == [WORSE]


def called_equal(n, changed, loss):
    return lambda rng: kinds(answers(rng, n, (changed + loss) / 2, (changed - loss) / 2, ["s"])) == [EQUAL]


# --- documents --------------------------------------------------------------------------------------------------------


def documents(rng, count, shift):
    """Documents' lengths, the baseline's nats, and a scheme's, `shift` nats a token more, with chance by document."""
    tokens = rng.integers(50, 500, count)
    base = tokens * rng.lognormal(0.7, 0.3, count)
    return tokens, base, base + tokens * (shift + rng.normal(0, 0.02, count))


def perplexity_differs(count):
    def event(rng):
        tokens, base, nats = documents(rng, count, 0.0)
        _, low, high = statistics.perplexity_ratio_ci(base, nats, tokens)
        return not low <= 1 <= high

    return event


def divergence_covered(count):
    """KL divergence per token, skewed over documents (Gamma with shape 2), mean 0.02 nats."""

    def event(rng):
        tokens = rng.integers(50, 500, count)
        _, low, high = statistics.mean_per_token_ci(tokens * rng.gamma(2.0, 0.01, count), tokens)
        return low <= 0.02 <= high

    return event


# --- speed ------------------------------------------------------------------------------------------------------------


def speeds(rng, starts, gain=1.0, shared=0.0, own=0.0, within=0.005, repeats=10, batches=(1, 4, 16, 64)):
    """Table `latency`: a baseline of so many starts and a scheme of one. Standard deviations of logarithms: `shared` by
    all points of a start, each point's `own` in a start, and of repeats `within` a point."""
    table = []
    for scheme, count, seconds in (("bf16", starts, 1.0), ("s", 1, 1.0 / gain)):
        for start in range(1, count + 1):
            shift = rng.normal(0, shared)
            for batch in batches:
                center = math.log(seconds * batch) + shift + rng.normal(0, own)
                point = {"scheme": scheme, "start": start, "batch_size": batch, "input_tokens": 8, "output_tokens": 8}
                times = np.exp(center + rng.normal(0, within, repeats))
                table += [KEYS | point | {"repeat": i, "elapsed_s": float(t)} for i, t in enumerate(times)]
    return {"latency": table}


def speed_said(start, **options):
    """Whether the first batch of the study, chosen beforehand, is said to be faster or slower."""

    def event(rng):
        found = summarize(speeds(rng, **options), "bf16")[1]["batches"][0]
        return found["words"].startswith(start)

    return event


def median_covered(n):
    """Times with a tail: exponential, 2 % of the median, on top of a floor."""
    return lambda rng: _holds(statistics.median_ci(1 + 0.02 * rng.exponential(size=n)), 1 + 0.02 * math.log(2))


def median_covered_when_narrow(spread):
    """Repeated, as a measurement is, until the interval is narrow enough."""

    def event(rng):
        times = list(1 + spread * rng.standard_normal(2))
        while not statistics.narrow_enough(times, REPEATS):
            times.append(1 + spread * rng.standard_normal())
        return _holds(statistics.median_ci(times), 1.0)

    return event


def p99_differs(requests):
    def event(rng):
        ratio = statistics.ratio_of_quantiles_ci(rng.lognormal(0, 0.5, requests), rng.lognormal(0, 0.5, requests), 0.99)
        return not _holds(ratio, 1.0)

    return event


def _holds(estimate, truth):
    _, low, high = estimate
    return low <= truth <= high


# --- the table --------------------------------------------------------------------------------------------------------


def rows():
    """Every promise that the report makes, and what it would be without its safeguards."""
    found = []
    for n, changed in ((100, 0.1), (400, 0.04), (1319, 0.1)):
        name = f"accuracy A/A: any of 6 schemes said to differ, {n} questions, {100 * changed:g} % of answers change"
        found.append(Row(name, any_difference(n, changed), ("<=", 0.05)))
    name = "accuracy A/A: the same with a second start of the baseline, 4 % of answers change in it"
    found.append(Row(name, any_difference(400, 0.04, noise=0.04), ("<=", 0.05)))
    for n, changed in ((100, 0.1), (400, 0.04), (1319, 0.1)):
        loss = paired.smallest_difference(n, changed)
        name = f"accuracy planted: a loss of {100 * loss:.1f} points found, the smallest for {n} questions"
        found.append(Row(name, loss_found(n, changed, loss), (">=", 0.8)))
    name = "accuracy planted: a loss of just the margin, 1 point, called equal, 4000 questions"
    found.append(Row(name, called_equal(4000, 0.04, 0.01), ("<=", 0.025)))
    needed = paired.questions_needed(0.0, 0.04, margin=0.01)
    name = f"accuracy A/A: called equal within 1 point with the {needed} questions that it is said to need"
    found.append(Row(name, called_equal(needed, 0.04, 0.0), (">=", 0.8)))
    for count in (12, 60):
        found.append(Row(f"perplexity A/A: said to differ, {count} documents", perplexity_differs(count), ("<=", 0.05)))
        name = f"divergence per token: covered by its interval, {count} documents"
        found.append(Row(name, divergence_covered(count), (">=", 0.95)))
    one, two = {"starts": 1}, {"starts": 2}
    found += [
        Row("speed A/A: said to be faster, starts alike, 10 repeats", speed_said("better", **one), ("<=", 0.025)),
        Row("speed A/A: the same, 5 repeats", speed_said("better", **one, repeats=5), ("<=", 0.025)),
        Row("speed A/A: the same, 3 repeats", speed_said("better", **one, repeats=3), ("<=", 0.025)),
        Row(
            "speed A/A: said to be faster, starts differ by 2 %, one start",
            speed_said("better", **one, shared=0.02),
            None,
        ),
    ]
    for name, options in (
        ("starts differ by 2 % in all points", {"shared": 0.02}),
        ("starts differ by 2 % in each point", {"own": 0.02}),
        ("starts differ by 1.4 % in both ways", {"shared": 0.014, "own": 0.014}),
    ):
        event = speed_said("better", **two, **options)
        found.append(Row(f"speed A/A: said to be faster, {name}, two starts", event, ("<=", 0.025)))
    planted = speed_said("better", **two, gain=1.1, own=0.01)
    found.append(Row("speed planted: 1.1 times found, starts differ by 1 % in each point, two starts", planted, None))
    for n in (3, 5, 7, 15):
        found.append(Row(f"median of {n} repeats: covered by its interval", median_covered(n), (">=", 0.95)))
    name = "median repeated until narrow (2 %, spread 1 %): covered by its interval"
    found.append(Row(name, median_covered_when_narrow(0.01), (">=", 0.95)))
    found.append(Row("p99 A/A of 400 requests: said to differ", p99_differs(400), ("<=", 0.05)))
    return found


def table_lines(observed):
    """The table as text, one line a row."""
    width = max(len(found["name"]) for found in observed)
    lines = [f"{'what':{width}}  {'observed, % [95 % interval]':>28}  {'promised':>9}"]
    for found in observed:
        rate = " ".join([f"{100 * found['rate']:.1f}", f"[{100 * found['low']:.1f}, {100 * found['high']:.1f}]"])
        promise = "{} {:g} %".format(found["promise"][0], 100 * found["promise"][1]) if found["promise"] else "none"
        said = {True: "holds", False: "BROKEN", None: ""}[found["holds"]]
        lines.append(f"{found['name']:{width}}  {rate:>28}  {promise:>9}  {said}")
    return lines


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, metavar="N", help="made-up studies of each row")
    options = parser.parse_args(argv)
    observed = [observe(row, options.rounds) for row in rows()]
    OUTPUT.parent.mkdir(exist_ok=True)
    write_atomically(OUTPUT, json.dumps(observed, indent=2))
    print("\n".join([*table_lines(observed), f"all values: {OUTPUT.relative_to(ROOT)}"]))
    return 1 if any(found["holds"] is False for found in observed) else 0


if __name__ == "__main__":
    sys.exit(main())
