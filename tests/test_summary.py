"""The summary file keeps its schema, and the Markdown of it stays short and harmless."""

import json
from pathlib import Path

import jsonschema
import pytest
from quantbench.summary import markdown

SCHEMA = json.loads((Path(__file__).parents[1] / "workflow/schemas/summary.schema.json").read_text())


def test_the_summary_keeps_its_schema(rendered):
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.check_schema(SCHEMA)
    # As it is read from the file: JSON's numbers and lists.
    summary = json.loads(json.dumps(rendered[1]))
    assert [error.message for error in validator.iter_errors(summary)] == []
    del summary["schemes"][0]["chosen"]
    assert len(list(validator.iter_errors(summary))) == 1


def test_every_key_of_the_schema_is_described():
    def walk(part, where):
        for name, inner in part.get("properties", {}).items():
            assert inner.get("description"), f"{where}{name}"
            walk(inner, f"{where}{name}.")
            walk(inner.get("items", {}), f"{where}{name}[].")

    walk(SCHEMA, "")


def test_markdown_has_the_answer_and_a_row_per_scheme(rendered):
    text = markdown(rendered[1])
    for answer in rendered[1]["answer"]:
        assert answer["sentence"].split(":")[0] in text.replace("\\", "")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "| tiny |" in line]
    assert len(rows) == 10 and sum("**chosen**" in row for row in rows) == 2
    assert any("unsupported: no CPU kernel computes FP4" in row for row in rows)
    # Eight columns, so nine bars that are not text.
    assert {row.replace("\\|", "").count("|") for row in rows} == {9}
    assert len(text) < 5_000


def test_a_large_summary_tells_what_was_chosen(rendered):
    rows = [{**row, "gpu": f"gpu-{number}"} for number in range(10) for row in rendered[1]["schemes"][:5]]
    text = markdown({**rendered[1], "schemes": rows})
    # 50 rows, of each five the baseline and the choice.
    assert sum("| tiny |" in line for line in text.splitlines()) == 20 and "30 more rows in the report" in text


@pytest.mark.parametrize("hostile", ["<img src=x>", "a | b", "[x](http://y)", "two\nlines", "@someone #1 `code`"])
def test_names_are_text_in_markdown(rendered, hostile):
    rows = [{**row, "model": hostile} for row in rendered[1]["schemes"]]
    text = markdown({**rendered[1], "title": hostile, "schemes": rows})
    assert text.startswith("## ") and "<img" not in text.replace("\\<", "") and "](http" not in text.replace("\\]", "")
    table = [line for line in text.splitlines() if line.startswith("| cpu") or line.startswith("| h200")]
    assert len(table) == 10 and {line.replace("\\|", "").count("|") for line in table} == {9}
