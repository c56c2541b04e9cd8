"""Numbers and names as a person reads them. SI inside the library, converted here and nowhere else."""

import re

MISSING = "–"

# What engine and workflow say at length (how it begins), as a reader needs it first.
IN_SHORT = (
    ("silently ran unquantized", "vLLM silently ran it unquantized"),
    ("Failed to find a kernel", "vLLM has no kernel on this device"),
)
LONGEST_SHORT = 140
# Behind the name of a scheme whose numbers no kernel of the device computed.
EMULATED = " (emulated)"


def factor(value):
    """1.824 -> "1.82×". None -> a dash."""
    return MISSING if value is None else f"{value:.3g}×" if value >= 10 else f"{value:.2f}×"


def share(value, digits=1):
    """0.625 -> "62.5 %"."""
    return MISSING if value is None else f"{100 * value:.{digits}f} %"


def points(value, digits=1):
    """A difference of two shares, in percentage points, signed: -0.08 -> "−8.0"."""
    return MISSING if value is None else f"{100 * value:+.{digits}f}".replace("-", "−")


def seconds(value):
    """0.0123 -> "12.3 ms"."""
    return scaled(value, "s", ((1, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n")))


def amount(value, unit):
    """4.8e12, "B/s" -> "4.80 TB/s"."""
    return scaled(value, unit, ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")))


def rate(value, unit):
    """4093.2, "tokens/s" -> "4,093 tokens/s"."""
    return MISSING if value is None else f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def scaled(value, unit, steps):
    if value is None:
        return MISSING
    size, prefix = next((step for step in steps if abs(value) >= step[0]), steps[-1])
    number = value / size
    return f"{number:.0f} {prefix}{unit}" if abs(number) >= 100 else f"{number:.3g} {prefix}{unit}"


def interval(low, high, shown):
    """Both ends as `shown` writes them, in brackets; no interval: an empty text."""
    return "" if low is None or high is None else f"[{shown(low)}, {shown(high)}]"


def with_interval(estimate, shown):
    """(value, low, high) -> "1.82× [1.79×, 1.85×]"."""
    value, low, high = estimate
    return " ".join(filter(None, (shown(value), interval(low, high, shown))))


def called(scheme, emulated):
    """A scheme's name where its numbers are shown."""
    return scheme + EMULATED if emulated else scheme


def listed(names):
    """["a", "b", "c"] -> "a, b and c"."""
    names = list(names)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def time_unit(most_s):
    """(unit, seconds in it) in which the greatest time of a chart is a handy number."""
    return next(((unit, size) for unit, size in (("s", 1), ("ms", 1e-3)) if most_s >= size), ("µs", 1e-6))


def in_short(reason):
    """A reason's first sentence, or the plain words for a reason that is known; the whole is said further down."""
    known = next((words for start, words in IN_SHORT if reason.startswith(start)), None)
    first = known or re.split(r"(?<=[^\s.])\.\s|\n", reason.strip())[0]
    return first if len(first) <= LONGEST_SHORT else f"{first[: LONGEST_SHORT - 1].rstrip()}…"


def times(value):
    """1.394 -> "1.39 times", in a sentence."""
    return f"{value:.2f} times"
