"""The shipped model and data are what their digests say, and the questions are held out."""

import json
import re
from pathlib import Path

from quantbench.keys import file_sha256

TINY = Path(__file__).parents[1] / "resources" / "tiny"


def test_the_shipped_files_have_the_digests_written_beside_them():
    lines = (TINY / "model" / "SHA256SUMS").read_text().split("\n")
    listed = dict(reversed(line.split(maxsplit=1)) for line in lines if line)
    names = {path.resolve() for folder in ("model", "data") for path in (TINY / folder).iterdir()}
    assert {(TINY / "model" / name).resolve() for name in listed} == names - {TINY / "model" / "SHA256SUMS"}
    for name, digest in listed.items():
        assert file_sha256(TINY / "model" / name) == digest
    assert (TINY / "model" / "model.safetensors").stat().st_size <= 10_000_000


def numbers(split):
    rows = [json.loads(line) for line in (TINY / "data" / f"{split}.jsonl").read_text().splitlines()]
    # the working begins with the expression: "21+58: 1+8=9, ..."
    return [frozenset(map(int, re.match(r"(\d+)[+-](\d+):", row["answer"]).groups())) for row in rows]


def test_no_pair_of_numbers_that_is_asked_was_trained_on():
    train, test = set(numbers("train")), numbers("test")
    assert len(test) >= 200
    assert not train & set(test)
