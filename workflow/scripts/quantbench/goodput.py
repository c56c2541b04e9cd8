"""What a load is worth under a service-level objective (SLO): the requests that met it, and how many of them a second.

An SLO is {"ttft_s", "tpot_s", "e2e_s": the most seconds of a request, each of them optional; "share": of the requests}. A
request meets it when it meets all of its limits; a load does when at least `share` of its requests do (Zhong et al. 2024,
DistServe, 2.2). Times count from when a request was due.
"""

from quantbench.paired import wilson

LIMITS = {"ttft_s": "their first token", "tpot_s": "each further token", "e2e_s": "the whole answer"}


def ttft_s(row):
    """Seconds from when a request was due until its first token."""
    return row["first_token_s"] - row["scheduled_s"]


def e2e_s(row):
    """Seconds from when a request was due until its last token."""
    return row["finished_s"] - row["scheduled_s"]


def tpot_s(row):
    """Seconds per token after the first, on average over the answer; None of an answer of one token."""
    if row["output_tokens"] < 2:
        return None
    return (row["finished_s"] - row["first_token_s"]) / (row["output_tokens"] - 1)


TIMES = {"ttft_s": ttft_s, "tpot_s": tpot_s, "e2e_s": e2e_s}


def meets(row, slo):
    """Whether a request kept every limit of the SLO. One that failed did not; one token has no time per further token."""
    if row.get("error"):
        return False
    times = {name: TIMES[name](row) for name in LIMITS if slo.get(name) is not None}
    return all(seconds is None or seconds <= slo[name] for name, seconds in times.items())


def duration_s(rows):
    """Seconds from the first request's due time until the last token."""
    return max(row["finished_s"] for row in rows) - min(row["scheduled_s"] for row in rows)


def goodput(rows, slo, confidence=0.95):
    """Of a load's requests, none of which failed: {"within", "requests", "share", "low", "high", "met",
    "requests_per_s", "output_tokens_per_s"}.

    share                the part of the requests within the SLO, with its Wilson interval
    met                  whether that is what the SLO asks
    requests_per_s       requests within the SLO per second: the goodput
    output_tokens_per_s  tokens generated per second, of all requests
    """
    within, seconds = sum(meets(row, slo) for row in rows), duration_s(rows)
    low, high = wilson(within, len(rows), confidence)
    share = within / len(rows)
    found = {"within": within, "requests": len(rows), "share": share, "low": low, "high": high}
    found |= {"met": share >= slo["share"], "requests_per_s": within / seconds}
    return found | {"output_tokens_per_s": sum(row["output_tokens"] for row in rows) / seconds}


def words(slo, seconds):
    """An SLO in words: "90 % of the requests have their first token within 200 ms"; `seconds` writes a time."""
    parts = [f"{LIMITS[name]} within {seconds(slo[name])}" for name in LIMITS if slo.get(name) is not None]
    return f"{100 * slo['share']:g} % of the requests have {' and '.join(parts)}"
