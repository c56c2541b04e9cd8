"""What a forced kernel does to a scheme's speed: beside the same weights with the kernel that vLLM takes by itself. Pure.

The trap this explains: 4-bit weights that are slower than 16-bit ones under load, for the sake of the kernel, not of the format.
"""

from quantbench import display
from quantbench.engine_args import dtype_of, forced_backend, is_of_backend
from quantbench.schemes import recipe_identity
from quantbench.statistics import ratio_of_medians_ci

# What tells one measured batch from another.
PLACE = ("batch_size", "input_tokens", "output_tokens")


def sentences(context):
    """One sentence per gpu, model and forced scheme: which kernel ran instead of which, and what became of the speed."""
    engine, schemes = context.study["engine"], context.manifest["schemes"]
    found = []
    for gpu in context.study["gpus"]:
        for model in context.models:
            for name in context.study["schemes"]:
                backend = forced_backend(engine, schemes[name])
                free = _same_weights(schemes, name, engine)
                if backend is None or schemes[name]["format"] is None or free is None:
                    continue
                forced, taken = (_kernels(context, gpu, model, scheme) for scheme in (name, free))
                if not all(is_of_backend(kernel, backend) for kernel in forced):
                    instead = (
                        f"the kernels of {backend} were asked for, {display.listed(forced)} ran: it is not measured"
                    )
                    found.append(f"{name} on {gpu}, {model}: {instead}.")
                elif forced and taken:
                    found.append(_sentence(context, gpu, model, name, free, (forced, taken)))
    return found


def _same_weights(schemes, name, engine):
    """The scheme of the same recipe and number type whose kernels vLLM takes by itself, or None."""
    recipe, dtype = recipe_identity(schemes[name]), dtype_of(engine, schemes[name])
    others = (
        other
        for other, scheme in schemes.items()
        if other != name and (recipe_identity(scheme), dtype_of(engine, scheme)) == (recipe, dtype)
    )
    return next((other for other in others if forced_backend(engine, schemes[other]) is None), None)


def _kernels(context, gpu, model, scheme):
    """Classes of the kernels that ran a scheme's quantized layers."""
    frame = context.ok("kernels")
    rows = [] if frame is None else frame.filter(gpu=gpu, model=model, scheme=scheme).to_dicts()
    promised = context.manifest["schemes"][scheme]["computes"]
    return sorted({row["kernel"] for row in rows if row["kernel"] and row["expected"] == promised})


def _sentence(context, gpu, model, name, free, kernels):
    forced, taken = map(display.listed, kernels)
    said = f"{name} on {gpu}, {model}: {forced} is forced where vLLM takes {taken} ({free})"
    beside = _ratios(context, gpu, model, name, free)
    if not beside:
        return f"{said}; the two have no batch in common."
    ends = list(dict.fromkeys((beside[0], beside[-1])))
    speeds = display.listed(f"{display.with_interval(ratio, display.factor)} at {where}" for where, ratio in ends)
    trap = _trap(context, gpu, model, name, free)
    return f"{said}, which makes it {speeds} as fast{trap}."


def _trap(context, gpu, model, name, free):
    """Where the forced scheme loses to the baseline and the free one wins."""
    wins = {where for where, (_, low, _) in _ratios(context, gpu, model, free, context.baseline) if low > 1}
    lost = [where for where, (_, _, high) in _ratios(context, gpu, model, name, context.baseline) if high < 1]
    both = [where for where in lost if where in wins]
    if not both:
        return ""
    where = display.listed(both)
    return f"; at {where} it is slower than {context.baseline}, and {free} is faster: the kernel is why, not the format"


def _ratios(context, gpu, model, scheme, other):
    """[(where, (ratio, low, high))] of the speed of a scheme over another's: latencies by batch, then throughputs."""
    found = []
    for table in ("latency", "throughput"):
        mine, theirs = (_batches(context, table, gpu, model, name) for name in (scheme, other))
        for place in sorted(mine.keys() & theirs.keys()):
            if min(len(mine[place]), len(theirs[place])) > 1:
                # Of times: theirs over mine is the speed of mine over theirs.
                ratio = ratio_of_medians_ci(mine[place], theirs[place], context.confidence)
                found.append((f"batch {place[0]} ({table})", ratio))
    return found


def _batches(context, table, gpu, model, scheme):
    """{place: elapsed seconds} of a scheme's first start, of the study's first length alone."""
    frame = context.ok(table)
    rows = [] if frame is None else frame.filter(gpu=gpu, model=model, scheme=scheme, start=1).to_dicts()
    rows = [row for row in rows if row["input_tokens"] is not None]
    found = {}
    for row in rows:
        if row["input_tokens"] == rows[0]["input_tokens"] and row["output_tokens"] == rows[0]["output_tokens"]:
            found.setdefault(tuple(row[name] for name in PLACE), []).append(row["elapsed_s"])
    return found
