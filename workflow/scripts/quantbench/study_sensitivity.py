"""What a study asks about sensitivity, and everything wrong with it, before anything runs."""

from quantbench.errors import UserError
from quantbench.schemes import layout_of
from quantbench.sensitivity import entries, parts, spare_parts
from quantbench.validation import nearest


def reference_faults(config, schemes):
    """Entries about schemes or data that the study does not have, or that leave nothing to scan; and spares without a scan."""
    faults, asked = [], config["schemes"]
    names = [entry["name"] for entry in config.get("datasets", [])]
    for place, entry in entries(config):
        scheme = schemes.get(entry["scheme"])
        if entry["scheme"] not in asked or scheme is None:
            faults.append(
                f"{place}.scheme: {entry['scheme']!r} is not among the study's schemes{nearest(entry['scheme'], asked)}"
            )
        elif scheme["toolkit"] != "llmcompressor":
            faults.append(f"{place}.scheme: {entry['scheme']!r} has no checkpoint that is made here; name one that has")
        elif layout_of(scheme) != "compressed-tensors":
            faults.append(
                f"{place}.scheme: {entry['scheme']!r} is in layout {layout_of(scheme)}; name the scheme of the same "
                "numbers in layout compressed-tensors"
            )
        if entry["dataset"] not in names:
            hint = nearest(entry["dataset"], names) if names else "; the config has no datasets section"
            faults.append(f"{place}.dataset: unknown data set {entry['dataset']!r}{hint}")
    scans = [tuple(entry[name] for name in ("scheme", "per", "dataset")) for _, entry in entries(config)]
    for i, scan in enumerate(scans):
        if scan in scans[:i]:
            faults.append(
                f"sensitivity[{i}]: {' '.join(scan)} stands twice; one scan of a scheme on a data set is enough"
            )
    for name in asked:
        parent = schemes.get(name, {}).get("spare", {}).get("worst_of")
        if parent and not any(entry["scheme"] == parent for _, entry in entries(config)):
            line = f"- {{scheme: {parent}, dataset: ...}}"
            faults.append(f"schemes: {name} spares the worst layers of {parent}, so sensitivity needs an entry {line}")
    return faults


def datasets(config):
    """Names of the data sets whose rows are read as text."""
    return [entry["dataset"] for _, entry in entries(config)]


def split_rows(config):
    """[(place, data set, split, rows asked)], as study_quality.split_rows."""
    return [(f"{place}.documents", e["dataset"], e["split"], e["documents"]) for place, e in entries(config)]


def model_faults(config, schemes, name, model_config):
    """What does not fit one model: its architecture, its context, a share that spares nothing."""
    faults, context = [], model_config.get("max_position_embeddings")
    for place, entry in entries(config):
        try:
            parts(schemes[entry["scheme"]], model_config, entry["per"])
        except UserError as error:
            return [f"{place}: model {name!r} cannot be scanned: {error}"]
        if context and entry["max_tokens"] > context:
            faults.append(
                f"{place}.max_tokens: {entry['max_tokens']} is more than the context of model {name!r}, {context}"
            )
    for scheme in config["schemes"]:
        if "spare" not in schemes[scheme]:
            continue
        found, spare = spare_parts(config, schemes, scheme, model_config), schemes[scheme]["spare"]
        whole = sum(part["parameters"] for part in found.values())
        least = min(part["parameters"] for part in found.values()) / whole
        if spare["share"] < least:
            faults.append(
                f"schemes: {scheme} may spare {spare['share']:g} of the weights, but the smallest part of model {name!r} "
                f"has {least:.2g} of them; raise spare.share"
            )
    return faults
