"""Closed configs: every wrong key or value in one message that names it and the nearest valid one.

Runs in the workflow's environment only (jsonschema, yaml).
"""

import difflib
import json
import re
from pathlib import Path

import jsonschema
import yaml

from quantbench.errors import UserError

# libyaml reads the data sheets in a tenth of the time, which each start of Snakemake spends; not every build has it.
SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _UniqueKeyLoader(SAFE_LOADER):
    """YAML in which a key may stand only once; plain YAML keeps the last one without a word."""


def _unique_mapping(loader, node):
    seen = set()
    for key_node, _ in node.value:
        if key_node.value in seen:
            mark = key_node.start_mark
            raise UserError(f"{mark.name}, line {mark.line + 1}: key {key_node.value!r} stands twice")
        seen.add(key_node.value)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def load_yaml(text):
    """The value of a YAML text, of plain data only. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=SAFE_LOADER)


def read_yaml(path):
    """A YAML file's value. Raises UserError when it is absent, malformed or has a key twice."""
    path = Path(path)
    try:
        with open(path) as file:
            return yaml.load(file, Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None


def nearest(word, valid):
    """', did you mean ...' or the list of what is valid."""
    close = difflib.get_close_matches(str(word), [str(v) for v in valid], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(sorted(map(str, valid)))}"


def check(value, schema_path, where):
    """Hold a value to a JSON schema; raises one UserError that lists every fault with its place."""
    schema = json.loads(Path(schema_path).read_text())
    errors = jsonschema.Draft202012Validator(schema).iter_errors(value)
    messages = [_message(error) for error in sorted(errors, key=lambda e: [str(p) for p in e.absolute_path])]
    if messages:
        raise UserError("\n".join([f"{where} is not valid:", *[f"  - {message}" for message in messages]]))


def with_defaults(value, schema, root=None):
    """The value with every default of its schema filled in, at all levels."""
    root = root or schema
    if "$ref" in schema:
        schema = {**root["$defs"][schema["$ref"].rsplit("/", 1)[1]], **schema}
    if isinstance(value, dict):
        filled = {}
        for name, part in schema.get("properties", {}).items():
            if name in value:
                filled[name] = with_defaults(value[name], part, root)
            elif "default" in part:
                filled[name] = with_defaults(part["default"], part, root)
        return {**value, **filled}
    if isinstance(value, list) and "items" in schema:
        return [with_defaults(item, schema["items"], root) for item in value]
    return value


def _message(error):
    place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error.absolute_path).lstrip(".")
    at = f"{place}: " if place else ""
    if error.validator == "additionalProperties":
        valid = error.schema.get("properties", {})
        unknown = [name for name in error.instance if name not in valid]
        return "; ".join(f"{at}unknown key {name!r}{nearest(name, valid)}" for name in unknown)
    if error.validator == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
        return f"{at}key {' and '.join(map(repr, missing))} is missing"
    if error.validator == "enum":
        return f"{at}{error.instance!r} is not one of the values it may have{nearest(error.instance, error.validator_value)}"
    if error.validator == "type":
        kinds = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
        return f"{at}{error.instance!r} is of the wrong type; valid: {' or '.join(kinds)}{_hint(error)}"
    if error.validator == "pattern":
        slug = re.sub(r"[^a-z0-9._-]+", "-", str(error.instance).lower()).strip("-._") or "my-study"
        return (
            f"{at}{error.instance!r} is not a name; valid: lower-case letters, digits, '.', '_', '-', such as {slug!r}"
        )
    if error.validator == "minItems":
        return f"{at}the list is empty; give at least {error.validator_value}, or leave the section out"
    if error.validator in ("minimum", "exclusiveMinimum"):
        relation = "at least" if error.validator == "minimum" else "more than"
        return f"{at}{error.instance} is too small; valid: {relation} {error.validator_value}{_hint(error)}"
    if error.validator in ("maximum", "exclusiveMaximum"):
        relation = "at most" if error.validator == "maximum" else "less than"
        return f"{at}{error.instance} is too large; valid: {relation} {error.validator_value}{_hint(error)}"
    if error.validator == "anyOf":
        options = [" and ".join(part["required"]) for part in error.validator_value if "required" in part]
        return f"{at}give {' or '.join(options)}" if options else f"{at}{error.message}"
    return f"{at}{error.message}"


def _hint(error):
    description = error.schema.get("description")
    return f" ({description})" if description else ""
