"""Every scheme's quality beside the baseline's: accuracy by question, perplexity and fidelity by document, and size.

Rows are dicts of the tables; a baseline that was started several times has rows of each `start`. What a scheme is said to
lose it has lost against each of them: the p-value is the greatest, the interval reaches over all.
"""

import math

from quantbench import paired, statistics
from quantbench.answer_lengths import compare_lengths
from quantbench.verdict import MARGINS, verdict

# Which reading of the answers decides, where a task has several: the stricter one, as GSM8K defines it,
# and of a multiple choice by the likelihood per byte of each answer, as HellaSwag's and ARC's scores are published.
DECIDING_FILTERS = ("strict-match", "acc_norm")

# One set of questions, asked and read in one way.
TASK = ("task", "dataset", "shots", "chat_template", "filter")


# Starts count from 1.
FIRST_START = 1


def ok(rows, name):
    """The measured rows of one table."""
    return [row for row in rows.get(name, []) if row["status"] == "ok"]


def grouped(rows, *columns):
    """{values of columns: rows}, in order of appearance."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row.get(column) for column in columns), []).append(row)
    return groups


def by_start(rows):
    """[rows of one start], in the order of the starts; rows without a column `start` are of one."""
    starts = {}
    for row in rows:
        starts.setdefault(row.get("start") or 0, []).append(row)
    return [starts[start] for start in sorted(starts)]


def is_emulated(rows):
    """Whether the device had no kernel for what these rows measured; a variant's rows are all of one kind."""
    return any(row.get("emulated") for row in rows)


# --- accuracy ---------------------------------------------------------------------------------------------------------


def accuracy(base, rows, is_baseline, confidence, power):
    """The entries "accuracy" of comparison.summarize, all but what takes all schemes of a family: see `adjust`."""
    groups, baseline = grouped(ok(rows, "accuracy"), *TASK), grouped(ok(base, "accuracy"), *TASK)
    found = []
    for group, answers in groups.items():
        mine, *again = by_start(answers)
        filters = sorted(other[-1] for other in groups if other[:-1] == group[:-1])
        deciding = next((name for name in DECIDING_FILTERS if name in filters), filters[0])
        right = sum(row["correct"] for row in mine)
        low, high = paired.wilson(right, len(mine), confidence)
        entry = {**dict(zip(TASK, group, strict=True)), "decides": group[-1] == deciding, "n": len(mine)}
        entry |= {"share": right / len(mine), "low": low, "high": high, "emulated": is_emulated(mine)}
        if is_baseline:
            entry["noise"] = _accuracy_noise(mine, again, confidence)
        elif group in baseline:
            starts = by_start(baseline[group])
            entry |= _against(starts, mine, confidence, power)
            # The other filters read the same answers.
            entry["length"] = compare_lengths(starts[0], mine, confidence) if entry["decides"] else None
        found.append(entry)
    return found


def _pairs(before, after):
    """[(right before, right after)] of the questions that both were asked."""
    theirs = {row["question"]: row["correct"] for row in before}
    return [(theirs[row["question"]], row["correct"]) for row in after if row["question"] in theirs]


def _against(starts, mine, confidence, power):
    compared = [_compared(pairs, confidence) for start in starts if (pairs := _pairs(start, mine))]
    if not compared:
        return {}
    first = compared[0]
    changed = (first["lost"] + first["won"]) / first["pairs"]
    worst = {
        "p": max(each["p"] for each in compared),
        "difference_low": min(each["difference_low"] for each in compared),
        "difference_high": max(each["difference_high"] for each in compared),
    }
    smallest = paired.smallest_difference(first["pairs"], changed, 1, confidence, power)
    return first | worst | {"power": power, "smallest_detectable": smallest}


def _compared(pairs, confidence):
    before, after = zip(*pairs, strict=True)
    lost, won = paired.discordant(before, after)
    difference, low, high = paired.difference_ci(lost, won, len(pairs), confidence)
    both = sum(before) - lost
    recovery = paired.recovery_ci(sum(before), sum(after), both, confidence)
    return {
        "pairs": len(pairs),
        "lost": lost,
        "won": won,
        "baseline_share": sum(before) / len(pairs),
        "difference": difference,
        "difference_low": low,
        "difference_high": high,
        "bootstrap": list(statistics.paired_bootstrap_ci(before, after, confidence)[1:]),
        "recovery": recovery[0],
        "recovery_low": recovery[1],
        "recovery_high": recovery[2],
        "p": paired.mcnemar_exact(lost, won),
    }


def _accuracy_noise(mine, again, confidence):
    """The baseline beside its own further starts: the one that changed most answers. None with one start."""
    found = [_compared(pairs, confidence) for start in again if (pairs := _pairs(mine, start))]
    names = ("pairs", "lost", "won", "difference", "difference_low", "difference_high", "p")
    most = max(found, key=lambda each: each["lost"] + each["won"], default=None)
    return most and {name: most[name] for name in names} | {"starts": len(found) + 1}


def adjust(summary, confidence, power, margin):
    """Holm across the schemes that one baseline was compared with, and the verdicts, which need all of them."""
    families = {}
    for entry in summary:
        for found in entry["accuracy"]:
            if "p" in found:
                family = (entry["gpu"], entry["model"], *(found[c] for c in TASK))
                families.setdefault(family, []).append(found)
    for family in families.values():
        for found, p in zip(family, statistics.holm([found["p"] for found in family]), strict=True):
            changed = (found["lost"] + found["won"]) / found["pairs"]
            needed = paired.questions_needed(
                found["difference"], changed, margin, len(family), confidence=confidence, power=power
            )
            found |= {"p_holm": p, "comparisons": len(family), "questions_needed": needed, "margin": margin}
            said = accuracy_verdict(found, confidence)
            found |= {"kind": said.kind, "words": said.words}


def accuracy_verdict(found, confidence=0.95):
    """The verdict on one entry of accuracy."""
    ends = (100 * found[name] for name in ("difference", "difference_low", "difference_high"))
    return verdict(
        *ends,
        margin=100 * found["margin"],
        confidence=confidence,
        p=found["p_holm"],
        needed=found["questions_needed"],
        noisy=found["questions_needed"] is not None and found["questions_needed"] <= found["pairs"],
        most=100 * found["baseline_share"],
    )


# --- perplexity and fidelity ------------------------------------------------------------------------------------------


def perplexity(base, rows, is_baseline, confidence, margin=MARGINS["perplexity"]):
    """The entries "perplexity" of comparison.summarize."""
    baseline, found = grouped(ok(base, "perplexity"), "dataset"), []
    for (dataset,), documents in grouped(ok(rows, "perplexity"), "dataset").items():
        mine, *again = by_start(documents)
        nats, tokens = (sum(row[name] for row in mine) for name in ("negative_log_likelihood", "tokens"))
        entry = {"dataset": dataset, "perplexity": math.exp(nats / tokens), "ratio": None, "low": None, "high": None}
        entry["emulated"] = is_emulated(mine)
        others = again if is_baseline else by_start(baseline.get((dataset,), []))
        ratios = [ratio for start in others if (ratio := _perplexity_ratio(start, mine, confidence))]
        if is_baseline:
            far = max(ratios, key=lambda each: abs(math.log(each[0])), default=None)
            entry["noise"] = far and dict(zip(("ratio", "low", "high"), far, strict=True))
        elif ratios:
            entry |= _perplexity_verdict(ratios, confidence, margin)
        found.append(entry)
    return found


def _perplexity_ratio(before, after, confidence):
    theirs = {row["document"]: row for row in before}
    pairs = [(theirs[row["document"]], row) for row in after if row["document"] in theirs]
    if not pairs:
        return None
    nlls = ([pair[side]["negative_log_likelihood"] for pair in pairs] for side in (0, 1))
    return statistics.perplexity_ratio_ci(*nlls, [row["tokens"] for _, row in pairs], confidence)


def _perplexity_verdict(ratios, confidence, margin):
    ratio, known = ratios[0][0], all(low is not None for _, low, _ in ratios)
    low, high = (min(r[1] for r in ratios), max(r[2] for r in ratios)) if known else (None, None)
    # Lower is better: the verdict gets the interval turned over.
    turned = [None if value is None else 100 * (1 - value) for value in (ratio, high, low)]
    said = verdict(*turned, margin=100 * margin, confidence=confidence, unit="%", of="documents")
    return {"ratio": ratio, "low": low, "high": high, "margin": margin, "kind": said.kind, "words": said.words}


def fidelity(base, rows, is_baseline, confidence):
    """The entries "fidelity": KL divergence to the baseline and top-1 agreement per token, documents resampled.

    Of the baseline's further starts the same numbers are the noise floor: what the engine does to itself.
    """
    found = []
    again = [row for row in ok(base, "fidelity") if (row.get("start") or 0) > FIRST_START]
    noise = {group: _noise_floor(theirs, confidence) for group, theirs in grouped(again, "dataset").items()}
    for (dataset,), documents in grouped(ok(rows, "fidelity"), "dataset").items():
        floor = noise.get((dataset,))
        if not is_baseline:
            entry = {"dataset": dataset, **_per_token(by_start(documents)[0], confidence), "noise": floor}
            entry["emulated"] = is_emulated(documents)
            found.append(entry | {"words": fidelity_words(entry)})
        elif floor:
            found.append({"dataset": dataset, **floor, "noise": None, "words": "noise floor", "emulated": False})
    return found


def _noise_floor(rows, confidence):
    """The further start of the baseline that is furthest from its first."""
    return max((_per_token(start, confidence) for start in by_start(rows)), key=lambda each: each["kl"])


def _per_token(rows, confidence):
    tokens = [row["tokens"] for row in rows]
    entry = {"documents": len(rows), "tokens": sum(tokens)}
    for name, column in (("kl", "kl_divergence"), ("top1", "top1_agreement")):
        mean, low, high = statistics.mean_per_token_ci([row[column] for row in rows], tokens, confidence)
        # A divergence is never negative, a share never above 1; an interval of few documents may be.
        if low is not None:
            low, high = max(low, 0.0), high if name == "kl" else min(high, 1.0)
        entry |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    return entry


def fidelity_words(found):
    """Whether the divergence is more than a second start of the baseline shows; "" where there was none."""
    floor = found["noise"]
    if floor is None or found["kl_low"] is None or floor["kl_high"] is None:
        return ""
    return (
        "beyond the baseline's own noise" if found["kl_low"] > floor["kl_high"] else "within the baseline's own noise"
    )


# --- size -------------------------------------------------------------------------------------------------------------


def size(baseline, mine):
    """{"bytes", "bits_per_weight", "ratio"} of a checkpoint, or None; ratio is bytes over the baseline's."""
    if mine is None or mine["bytes"] is None:
        return None
    ratio = mine["bytes"] / baseline["bytes"] if baseline and baseline["bytes"] else None
    return {"bytes": mine["bytes"], "bits_per_weight": mine["bits_per_weight"], "ratio": ratio}
