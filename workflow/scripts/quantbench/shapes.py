"""Named sets of matrix products (config/shapes.yaml): shapes to time kernels at without the model at hand."""

import difflib
import json
from pathlib import Path

from quantbench.errors import UserError
from quantbench.roofline import layer_shapes

SCHEMA = Path(__file__).parents[2] / "schemas" / "shapes.schema.json"


def load_shapes(path):
    """The sets of a shape file, by name. Raises UserError: file, set, key, and what is valid."""
    # Workflow environment only.
    import jsonschema
    import yaml

    from quantbench.validation import load_yaml

    try:
        entries = load_yaml(Path(path).read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot read the shapes: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    errors = sorted(validator.iter_errors(entries), key=lambda error: [str(part) for part in error.absolute_path])
    if errors:
        raise UserError(f"{path}: {_sentence(errors[0])}")
    for name, entry in entries.items():
        if ("model" in entry) == ("shapes" in entry):
            raise UserError(f"{path}: {name}: give either 'model' (numbers of a config.json) or 'shapes' (n and k)")
    return entries


def shapes_of(entry, tensor_parallel_size=1):
    """The products of one set, as roofline.layer_shapes has them: [{"layer", "n", "k", "count"}].

    A model's layers are one device's part of `tensor_parallel_size`. Products that are given themselves are one
    device's already: layer "<n>x<k>", once each. Raises UserError where a model does not divide among the devices.
    """
    if "model" in entry:
        return layer_shapes(entry["model"], tensor_parallel_size)
    return [{"layer": f"{s['n']}x{s['k']}", "n": s["n"], "k": s["k"], "count": 1} for s in entry["shapes"]]


def _sentence(error):
    """One schema error in the user's words."""
    where = ".".join(str(part) for part in error.absolute_path) or "the file"
    if error.validator == "additionalProperties":
        valid = error.schema["properties"]
        unknown = next(key for key in error.instance if key not in valid)
        nearest = difflib.get_close_matches(str(unknown), valid, n=1, cutoff=0.0)
        return f"{where}: unknown key {unknown!r}; the nearest valid key is {nearest[0]!r}"
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        return f"{where}: key {missing!r} is missing"
    if error.validator == "pattern" and not error.absolute_path:
        return f"{error.instance!r}: a set's name has only lower-case letters, digits, dots and dashes"
    return f"{where}: {error.message}"
