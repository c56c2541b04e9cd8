"""The study's calibrations: texts that calibrated schemes see, one mix or several named ones. Pure.

`calibration` is one mapping, or a list of mappings with names. Its parts are the data sets it reads: the one it names itself,
or those of its `mix`. A scheme sees the first calibration; `<scheme>.<name>` is the same scheme seeing another, a variant of
its own (no scheme's name has a dot).
"""

from quantbench.quantize.calibration import parts, rows_of_parts, shares
from quantbench.study_quality import has_chat_template
from quantbench.validation import nearest

# Of a part that leaves it out: calibrating on what is then scored would flatter the scheme.
SPLIT = "train"
# What a part says; all else belongs to the calibration as a whole.
PART = ("dataset", "split", "chat_template")


def calibrations(config):
    """[calibration] in the study's order; empty where the study has none."""
    found = config.get("calibration", [])
    return found if isinstance(found, list) else [found]


def datasets(config):
    """Names of the data sets that the study calibrates on."""
    return [part["dataset"] for calibration in calibrations(config) for part in parts(calibration)]


def label(calibration):
    """What tables and report call a calibration: its name, or its data sets."""
    return calibration.get("name") or " + ".join(part["dataset"] for part in parts(calibration))


def fill_splits(config):
    """Give the parts that name no split the one that is meant."""
    for calibration in calibrations(config):
        for part in calibration["mix"] or [calibration]:
            part["split"] = part["split"] or SPLIT


def with_variants(schemes, config):
    """The schemes, and `<scheme>.<name>` of each calibrated scheme and named calibration, which says `calibration: <name>`."""
    named = [calibration["name"] for calibration in calibrations(config) if calibration.get("name")]
    found = dict(schemes)
    for scheme, recipe in schemes.items():
        for name in named if recipe["calibrated"] else []:
            description = f"{recipe['description']} Calibrated on {name}."
            found[f"{scheme}.{name}"] = {**recipe, "description": description, "calibration": name}
    return found


def calibration_of(config, scheme):
    """The calibration that a scheme (of with_variants) sees; None for one that sees none."""
    if not scheme["calibrated"]:
        return None
    return next(c for c in calibrations(config) if scheme.get("calibration") in (None, c.get("name")))


def identity(calibration, keys):
    """A calibration as it goes into a checkpoint's identity, its data sets by their keys.

    What is at its default is left out, so that one plain data set has the identity that it always had.
    """

    def plain(part):
        found = {"dataset": keys[part["dataset"]], "split": part["split"]}
        return found | ({"chat_template": True} if part.get("chat_template") else {})

    whole = {name: calibration[name] for name in ("samples", "max_tokens", "seed")}
    if not calibration.get("mix"):
        return plain(calibration) | whole
    return {"mix": [plain(part) | {"share": part["share"]} for part in calibration["mix"]], **whole}


# --- what is wrong with them --------------------------------------------------------------------------------------------


def _places(config):
    several = isinstance(config.get("calibration"), list)
    return [(f"calibration[{i}]" if several else "calibration", c) for i, c in enumerate(calibrations(config))]


def reference_faults(config, names, schemes):
    """Calibrations that name no data, unknown data or one another, and schemes that cannot see the one they name.

    names    of the study's data sets
    schemes  of config/schemes, by name
    """
    faults = []
    for place, calibration in _places(config):
        faults += _form_faults(place, calibration, several="[" in place)
        for i, part in enumerate(calibration["mix"] or ([calibration] if calibration["dataset"] else [])):
            where = f"{place}.mix[{i}]" if calibration["mix"] else place
            if part["dataset"] not in names:
                hint = nearest(part["dataset"], names) if names else "; the config has no datasets section"
                faults.append(f"{where}.dataset: unknown data set {part['dataset']!r}{hint}")
    taken = [calibration.get("name") for calibration in calibrations(config)]
    faults += [f"calibration: name {n!r} stands twice" for i, n in enumerate(taken) if n and n in taken[:i]]
    return faults + _scheme_faults(config, [name for name in taken if name], schemes)


def _form_faults(place, calibration, several):
    faults = []
    if several and not calibration["name"]:
        faults.append(f"{place}.name: is missing; each of several calibrations has a name, such as own-text")
    if bool(calibration["dataset"]) == bool(calibration["mix"]):
        faults.append(f"{place}: give dataset, a name in datasets, or mix, a list of them with their shares")
    if calibration["mix"]:
        given = [name for name in PART if calibration[name]]
        faults += [f"{place}.{name}: of a mix each part says it; put it into mix[0], mix[1], ..." for name in given]
        counts = rows_of_parts(shares(calibration), calibration["samples"])
        faults += [
            f"{place}.mix[{i}].share: {part['share']:g} of {sum(shares(calibration)):g} is not one row of the "
            f"{calibration['samples']} samples; raise the share or samples"
            for i, (part, count) in enumerate(zip(calibration["mix"], counts, strict=True))
            if not count
        ]
    return faults


def _scheme_faults(config, names, schemes):
    """Schemes named `<scheme>.<calibration>` that there cannot be, and two names of one checkpoint."""
    faults, asked = [], config["schemes"]
    for name in asked:
        scheme, dot, calibration = name.partition(".")
        if not dot or scheme not in schemes:
            continue
        if not schemes[scheme]["calibrated"]:
            faults.append(f"schemes: {name!r}: {scheme} sees no calibration; write {scheme!r}")
        elif scheme in asked and [calibration] == names[:1]:
            faults.append(f"schemes: {scheme!r} and {name!r} are the same, since a scheme sees the first calibration")
    return faults


def rows_asked(config):
    """[(place, data set, split, rows asked)] of every part of every calibration."""
    asked = []
    for place, calibration in _places(config):
        counts = rows_of_parts(shares(calibration), calibration["samples"])
        for i, (part, rows) in enumerate(zip(parts(calibration), counts, strict=True)):
            where = (
                f"{place}.mix[{i}] of {calibration['samples']} samples" if calibration["mix"] else f"{place}.samples"
            )
            asked.append((where, part["dataset"], part["split"], rows))
    return asked


def model_faults(config, name, model):
    """Calibrations through a chat template that a model does not have."""
    return [
        f"{place}: chat_template is true, but model {name!r} has none; leave it out, or false"
        for place, calibration in _places(config)
        if any(part["chat_template"] for part in parts(calibration)) and not has_chat_template(model["folder"])
    ]
