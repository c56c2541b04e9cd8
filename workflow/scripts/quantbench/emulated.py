"""Which variants of a study are emulated, as what, and what becomes of that once the engine itself was asked. Pure.

A study with `emulate: true` has further points of quality for each scheme that a device may have no kernel for: the same
measurement in another engine start, with engine/emulation.py in place of the kernel. Their identity says so. They are never
of a time.
"""

from quantbench.engine_args import dtype_of, forced_backend
from quantbench.kernel_verdict import FLOATS, OWN_FLOAT, known_failure, promised_of
from quantbench.schemes import layout_of
from quantbench.support import FLOAT_OF_DTYPE, rule_family, support

# Raised by hand, with the reason beside it, when the numbers that an emulation computes change: in its points' identities.
EMULATION = 1
STAGES = ("accuracy", "perplexity", "fidelity")
# Formats whose kernel engine/emulation.py stands in for, by the names of support.RULES.
FAMILIES = (
    "w8a8-int8",
    "w8a8-fp8",
    "w8a8-fp8-tensor",
    "w8a8-fp8-block",
    "w4a8-fp8",
    "w4a4-fp4",
    "w4a16-fp4",
    "mxfp4",
)


def is_emulated(study, scheme, gpu_entry):
    """Whether a study asks for a scheme's numbers where a device has, or may turn out to have, no kernel for it."""
    recipe, engine = study.schemes[scheme], study.config["engine"]
    dtype = dtype_of(engine, recipe)
    # Where a forced kernel is missing, that says nothing of the scheme.
    if forced_backend(engine, recipe):
        return False
    if not study.config["emulate"] or scheme == study.config["baseline"] or recipe["format"] is None:
        return False
    if layout_of(recipe) != "compressed-tensors" or rule_family(recipe["format"]) not in FAMILIES:
        return False
    # An emulation still computes in the engine's own type.
    if support(None, {}, FLOAT_OF_DTYPE[dtype], gpu_entry, dtype).level == "unsupported":
        return False
    found = support(recipe["format"], recipe["engine_args"], recipe["computes"], gpu_entry, dtype)
    return found.level in ("unsupported", "unknown")


def identity(engine_args):
    """What an emulated point's identity has besides, or instead of, a native one's."""
    # Its Python is not made to be compiled, and is not timed.
    return {"emulated": EMULATION, "engine_args": engine_args | {"enforce_eager": True}}


def decided(job, load):
    """(status, reason) that the record of a variant's own `load` point (None: there is none) decides for a job's points, or
    None where they have to be measured. `ok` says that nothing is to be emulated: such a point has no rows."""
    failure = known_failure(load, job["expects"], job["engine_args"]["dtype"])
    if "emulate" not in job:
        return failure
    if load is None or (failure and failure[0] in ("unsupported", "invalid")):
        return None
    return failure or ("ok", "the device has kernels of its own for it")


def fault(expects, kernels, dtype):
    """Why an emulated start is not the scheme's numbers, or None; arguments as in kernel_verdict.refusal."""
    wrong = []
    for entry in kernels:
        promised = promised_of(expects, entry, OWN_FLOAT[dtype], expects.get("left"))
        if entry["computes"] != (promised if promised in FLOATS else f"emulated-{promised}"):
            wrong.append(f"{entry['layer_kind']} took {entry['kernel']}")
    return f"not emulated as {expects['computes']}: {', '.join(sorted(wrong))}" if wrong else None
