"""What the documents say is there, is there."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def schema_keys(schema):
    for name, part in schema.get("properties", {}).items():
        yield name
        yield from schema_keys(part)
        yield from schema_keys(part.get("items", {}))


def test_every_config_key_is_documented():
    schema = json.loads((ROOT / "workflow/schemas/config.schema.json").read_text())
    parts = [schema, schema["$defs"]["offline"], schema["$defs"]["lengths"]["items"]]
    documented = set(re.findall(r"`([a-z0-9_]+)", (ROOT / "config/README.md").read_text()))
    assert {key for part in parts for key in schema_keys(part)} <= documented


def test_links_of_the_documents_lead_somewhere():
    for document in [ROOT / "README.md", ROOT / "config/README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
