"""What a scheme promised beside what the engine's kernels did. Pure."""

import re

from quantbench.engine_args import is_of_backend

# The last is of a start whose kernels were emulated (engine/emulation.py): the scheme's numbers, and never its times.
VERDICTS = ("as_promised", "computes_other", "unquantized", "emulated")
FLOATS = ("bf16", "fp16", "fp32")
# The engine's names of the types that layers left alone run in, and the schemes' names.
OWN_FLOAT = {"bfloat16": "bf16", "float16": "fp16"}
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def verdict(promised, observed_computes, quantized):
    """One of VERDICTS, for one group of layers; None when the kernel that ran is not known.

    promised           what the scheme says it computes, for these layers (see promised_for)
    observed_computes  what the kernel that ran computes; None for an unknown kernel
    quantized          False for a layer that ran in the model's own type
    """
    if not quantized:
        return "as_promised" if promised in FLOATS and observed_computes == promised else _unquantized(promised)
    if observed_computes is None:
        return None
    return "as_promised" if observed_computes == promised else "computes_other"


def _unquantized(promised):
    """A layer in its own type: where another type of float was promised it computes another, else it is unquantized."""
    return "computes_other" if promised in FLOATS else "unquantized"


def promised_for(scheme, layer_kind, dtype="bf16"):
    """What a scheme promises for the layers of one kind: its `computes`, or the model's own type for ignored layers.

    `ignore` holds the names the toolkit matches: the layer's own name, or "re:" and a regular expression on it. Of a
    layer that the engine fuses it names the parts; vLLM wants all of them ignored, or none.
    """
    for part in FUSED.get(layer_kind, (layer_kind,)):
        for ignored in scheme.get("ignore") or []:
            pattern = ignored[3:] if ignored.startswith("re:") else re.escape(ignored.rsplit(".", 1)[-1]) + "$"
            if re.match(pattern, part):
                return dtype
    return scheme["computes"]


def promised_of(scheme, entry, dtype, left):
    """What a scheme promises for one group of layers that an engine reported: promised_for, or the model's own type where
    the group is no more than the layers of its kind that the scheme leaves alone.

    entry  {"layer_kind", "count", "quantized", ...} (see engine/kernels.py); left: {layer kind: count} (model_fit.left_alone)
    """
    if not entry["quantized"] and entry["count"] <= (left or {}).get(entry["layer_kind"], 0):
        return dtype
    return promised_for(scheme, entry["layer_kind"], dtype)


def refusal(expects, kernels, dtype):
    """Why a variant must not be measured as its scheme, or None: one that silently ran unquantized is not the scheme.

    expects  {"computes", "ignore"} of the scheme, how many layers of a kind it leaves alone: {"left": {kind: count}}, and
             the "linear_backend" that its kernels are forced to, if any
    kernels  what the engine reported (see engine/kernels.py)
    dtype    the engine's dtype: bfloat16 or float16
    """
    if expects.get("linear_backend") and (other := _other_backend(expects["linear_backend"], kernels)):
        return other
    own = OWN_FLOAT[dtype]
    if expects["computes"] in FLOATS:
        return None
    wrong = []
    for entry in kernels:
        promised = promised_of(expects, entry, own, expects.get("left"))
        if verdict(promised, entry["computes"], entry["quantized"]) == "unquantized":
            wrong.append(entry["layer_kind"])
    if not wrong:
        return None
    ran = ", ".join(sorted({entry["kernel"] for entry in kernels if entry["layer_kind"] in wrong}))
    return f"silently ran unquantized: {', '.join(wrong)} took {ran} instead of computing {expects['computes']}"


def _other_backend(backend, kernels):
    """Why a forced backend was not obeyed, or None: where it has no kernel for a layer vLLM only warns, and takes another."""
    other = [entry for entry in kernels if entry["quantized"] and not is_of_backend(entry["kernel"], backend)]
    if not other:
        return None
    kinds, ran = (sorted({entry[name] for entry in other}) for name in ("layer_kind", "kernel"))
    return f"the kernels of {backend} were asked for, but {', '.join(kinds)} took {', '.join(ran)}: vLLM has none of them here"


def known_failure(load, expects, dtype):
    """(status, reason) that a variant's stored `load` point decides for its other points, without an engine; else None.

    load  the store's record of the `load` point, or None
    """
    if load is None:
        return None
    if load["status"] != "ok":
        return load["status"], load["reason"]
    reason = refusal(expects, load["rows"][0]["kernels"], dtype)
    return ("invalid", reason) if reason else None
