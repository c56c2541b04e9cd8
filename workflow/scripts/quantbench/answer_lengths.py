"""How long a scheme's answers are beside the baseline's: one that rambles or is cut off is named. Pure.

Quantized models fail in ways that a score alone hides: they repeat themselves until the most tokens are reached, or stop
early. Both change what a served answer costs, too.
"""

import numpy as np

from quantbench.paired import mcnemar_exact
from quantbench.statistics import RESAMPLES, SEED

# A change of length below this is not worth a word, however sure: answers of equal quality differ by a few tokens.
LEAST_CHANGE = 0.05


def compare_lengths(baseline, mine, confidence=0.95):
    """What a scheme's generated answers say beside the baseline's to the same questions, or None where none was generated.

    baseline, mine  rows of table `accuracy` of one task, filter and start each
    questions       that both answered
    tokens, baseline_tokens    mean length of an answer
    ratio, low, high           total length over the baseline's, and its bootstrap interval, questions resampled together
    cut_off, baseline_cut_off  answers that ran into the most tokens; p: exact McNemar test of those two
    kind            "rambling" (more answers cut off, or longer), "terse" (shorter) or None; `words` say so, "" for None
    """
    theirs = {row["question"]: row for row in baseline if row.get("output_tokens") is not None}
    pairs = [(theirs[r["question"]], r) for r in mine if r.get("output_tokens") is not None and r["question"] in theirs]
    if not pairs:
        return None
    before, after = (np.array([pair[side]["output_tokens"] for pair in pairs], float) for side in (0, 1))
    cut = [[bool(pair[side]["cut_off"]) for pair in pairs] for side in (0, 1)]
    lost = sum(now and not then for then, now in zip(*cut, strict=True))
    won = sum(then and not now for then, now in zip(*cut, strict=True))
    ratio, low, high = _ratio_ci(before, after, confidence)
    found = {"questions": len(pairs), "tokens": float(after.mean()), "baseline_tokens": float(before.mean())}
    found |= {"ratio": ratio, "low": low, "high": high, "cut_off": sum(cut[1]), "baseline_cut_off": sum(cut[0])}
    found["p"] = mcnemar_exact(lost, won)
    more_cut = lost > won and found["p"] < 1 - confidence
    return found | _said(found, more_cut)


def _said(found, more_cut):
    longer = found["low"] is not None and found["low"] > 1 and found["ratio"] >= 1 + LEAST_CHANGE
    shorter = found["high"] is not None and found["high"] < 1 and found["ratio"] <= 1 - LEAST_CHANGE
    said = []
    if more_cut:
        cut = f"{found['cut_off']} of {found['questions']} answers ran into the most tokens"
        said.append(f"{cut}, {found['baseline_cut_off']} of the baseline's")
    if longer or shorter:
        change = f"{abs(found['ratio'] - 1) * 100:.0f} % {'longer' if longer else 'shorter'}"
        said.append(f"answers are {change} ({found['tokens']:.0f} tokens instead of {found['baseline_tokens']:.0f})")
    kind = "rambling" if more_cut or longer else "terse" if shorter else None
    return {"kind": kind, "words": f"{kind}: {'; '.join(said)}" if kind else ""}


def _ratio_ci(before, after, confidence):
    """sum(after) / sum(before) and its percentile bootstrap interval (Efron 1979); None where there is no interval."""
    ratio = float(after.sum() / before.sum())
    if len(before) < 2:
        return ratio, None, None
    rng = np.random.default_rng(SEED)
    # How often each question is drawn is multinomial; the blocks keep memory small.
    drawn = (
        rng.multinomial(len(before), np.full(len(before), 1 / len(before)), size=500) for _ in range(RESAMPLES // 500)
    )
    ratios = np.concatenate([(counts @ after) / (counts @ before) for counts in drawn])
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return ratio, float(low), float(high)
