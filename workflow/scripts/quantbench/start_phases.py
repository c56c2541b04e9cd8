"""What the start of an engine is spent on, from what vLLM says in its log. Pure.

The lines are those of vLLM 0.25.1 and 0.32.0. Each device of a group says its own: the slowest counts. A phase that vLLM
does not mention did not happen (no graphs are captured with enforce_eager) or left no trace, and is absent.
"""

import re

TOTAL = "ready"
NUMBER = r"([0-9.]+)"
# In the order of a start. `weights` and `initialize` follow each other; `compile` and `graphs` are parts of `initialize`,
# which also profiles the memory, allocates the cache and warms the kernels up.
PHASES = {
    "weights": (rf"Model loading took .*? and {NUMBER} seconds", rf"Loading weights took {NUMBER} seconds"),
    "initialize": (rf"init engine \(profile, create kv cache, warmup model\) took {NUMBER} s",),
    "compile": (rf"\(compilation: {NUMBER} s", rf"torch\.compile took {NUMBER} s in total"),
    "graphs": (rf"Graph capturing finished in {NUMBER} secs",),
}


def start_phases(text):
    """{phase: seconds} of the engine's start that a log tells of; the first pattern that the log has decides."""
    found = {}
    for phase, patterns in PHASES.items():
        seconds = next(filter(None, (re.findall(pattern, text) for pattern in patterns)), [])
        if seconds:
            found[phase] = max(float(one) for one in seconds)
    return found


def start_rows(run):
    """Rows of table `starts`: one for the whole start of a run's engine or server, one for each phase; none without one."""
    if run.get("engine_start_s") is None:
        return []
    keys = {name: run.get(name) for name in ("run_id", "stage", "gpu", "model", "scheme")}
    whole = {TOTAL: run["engine_start_s"]} | (run.get("start_phases_s") or {})
    return [keys | {"phase": phase, "elapsed_s": whole[phase]} for phase in (TOTAL, *PHASES) if phase in whole]
