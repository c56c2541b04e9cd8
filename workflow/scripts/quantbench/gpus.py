"""Data sheets of the devices a study may name (config/gpus.yaml), and the check that a job has the one it claims."""

import difflib
import json
import re
from pathlib import Path

from quantbench.errors import UserError

SCHEMA = Path(__file__).parents[2] / "schemas" / "gpus.schema.json"

# What a data sheet states and so has to name a source for; the price is the user's, the rest is no number.
FACTS = ("compute_capability", "memory_bytes", "memory_bandwidth_bytes_per_s", "l2_bytes")
RATES = ("matrix_flops_per_s", "sparse_flops_per_s")


def load_gpus(path):
    """The entries of a data sheet file, by name.

    Raises UserError: file, entry, key, and the nearest valid key; or a number that names no source.
    """
    # Workflow environment only; the engine's scripts import this module for check_device.
    import jsonschema
    import yaml

    from quantbench.validation import load_yaml

    try:
        entries = load_yaml(Path(path).read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot read the data sheets: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    schema = json.loads(SCHEMA.read_text())
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker(["regex"]))
    errors = sorted(validator.iter_errors(entries), key=lambda error: [str(part) for part in error.absolute_path])
    if errors:
        raise UserError(f"{path}: {_sentence(errors[0])}")
    for name, entry in entries.items():
        complaint = _source_complaint(name, entry)
        if complaint:
            raise UserError(f"{path}: {complaint}")
    return entries


def numbers(entry):
    """What a data sheet states, {"memory_bytes": 141000000000, "matrix_flops_per_s.fp8": 1.98e15, ...}, no null."""
    found = {field: entry[field] for field in FACTS}
    found |= {f"{group}.{dtype}": rate for group in RATES for dtype, rate in entry[group].items()}
    return {field: number for field, number in found.items() if number is not None}


def source_of(entry, field):
    """The text of the source of one number ("matrix_flops_per_s.fp8"): its own, else its group's; None without one."""
    own = entry["source_of"].get(field, entry["source_of"].get(field.split(".")[0]))
    return entry["sources"].get(own)


def _source_complaint(name, entry):
    """What is wrong with the sources of an entry, in the user's words; None when each number has one."""
    valid = [*FACTS, *RATES, *(f"{group}.{dtype}" for group in RATES for dtype in entry["matrix_flops_per_s"])]
    for field, source in entry["source_of"].items():
        if field not in valid:
            nearest = difflib.get_close_matches(field, valid, n=1, cutoff=0.0)[0]
            return f"{name}.source_of: no field {field!r}; the nearest is {nearest!r}"
        if source not in entry["sources"]:
            known = ", ".join(entry["sources"]) or "none"
            return f"{name}.source_of.{field}: no source {source!r} among {name}.sources ({known})"
    for field in numbers(entry):
        if source_of(entry, field) is None:
            return f"{name}.{field} has no source: name it in {name}.source_of, with its title and address in sources"
    return None


def _sentence(error):
    """One schema error in the user's words."""
    where = ".".join(str(part) for part in error.absolute_path) or "the file"
    if error.validator == "additionalProperties":
        valid = error.schema["properties"]
        unknown = next(key for key in error.instance if key not in valid)
        nearest = difflib.get_close_matches(str(unknown), valid, n=1, cutoff=0.0)
        return f"{where}: unknown key {unknown!r}; the nearest valid key is {nearest[0]!r}"
    if error.validator == "type" and isinstance(error.instance, str) and "number" in error.schema["type"]:
        return f"{where}: {error.instance!r} is text, not a number (write the sign of the exponent: 4.8e+12)"
    return f"{where}: {error.message}"


def check_device(entry, name):
    """Nothing when a device's name fits the entry. Raises UserError, naming both, when it does not.

    entry  one entry of the data sheets (only `name_patterns` and `description` are read)
    name   what the driver, or /proc/cpuinfo, calls the device this process sees
    """
    if any(re.fullmatch(pattern, name) for pattern in entry["name_patterns"]):
        return
    expected = entry.get("description") or " or ".join(entry["name_patterns"])
    raise UserError(
        f"this machine has {name!r}, the job is for {expected} (name_patterns: {', '.join(entry['name_patterns'])});"
        " run it on the right device, or give this one its own entry in the data sheets"
    )
