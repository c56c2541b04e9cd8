"""Identities and keys: everything that goes into an artefact, and nothing else, as canonical JSON and its SHA-256."""

import hashlib
import json


def canonical_json(value):
    """One text per value: sorted keys, no spaces, no NaN. Raises ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def key(identity):
    """Hexadecimal SHA-256 of an identity's canonical JSON."""
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


def file_sha256(path):
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
