"""When requests are due: seconds since the measured load began, negative for those of a ramp. Pure, seeded."""

import numpy as np

from quantbench.load import ARRIVALS, RAMP, poisson_offsets


def due_s(params):
    """[seconds] of every request of an open loop, in order: first those of the ramp, which are not measured.

    params  of a serving point: load (rate or all_at_once), requests, seed; of a rate also rate_per_s and, where they are
            not at their defaults, burstiness and ramp_s
    """
    if params["load"] == "all_at_once":
        return [0.0] * params["requests"]
    rate, seed = params["rate_per_s"], params["seed"]
    if burstiness := params.get("burstiness"):
        offsets_s = gamma_offsets(rate, burstiness, params["requests"], seed)
    else:
        offsets_s = poisson_offsets(rate, params["requests"], seed)
    return ramp_offsets(rate, params.get("ramp_s", 0), params.get("burstiness", 1), seed) + offsets_s


def gamma_offsets(rate_per_s, burstiness, requests, seed):
    """Seconds from the first request to each, with gamma gaps of mean 1/rate_per_s and shape `burstiness`.

    Below 1 requests come in bursts, above 1 evenly; 1 is a Poisson process. As `vllm bench serve --burstiness`: the
    gaps' coefficient of variation is 1 / sqrt(burstiness).
    """
    generator = np.random.default_rng([seed, ARRIVALS])
    gaps_s = generator.gamma(burstiness, 1 / (rate_per_s * burstiness), requests)
    gaps_s[:1] = 0
    return np.cumsum(gaps_s).tolist()


def ramp_offsets(rate_per_s, ramp_s, burstiness, seed):
    """Seconds, all negative, of requests whose rate rises in a straight line from 0 at -ramp_s to rate_per_s at 0.

    By time change: gaps of mean 1 make counts, and the count expected until t seconds into the ramp is rate t^2 / (2 ramp).
    """
    if not ramp_s:
        return []
    expected = rate_per_s * ramp_s / 2
    generator = np.random.default_rng([seed, RAMP])
    counts = []
    while (count := (counts[-1] if counts else 0) + generator.gamma(burstiness, 1 / burstiness)) < expected:
        counts.append(count)
    return [float(np.sqrt(2 * ramp_s * count / rate_per_s) - ramp_s) for count in counts]
