"""Where models and data sets come from, and the identities that their sources give them.

hf://org/name@revision   the hub: identity is the name and the 40-digit commit; any other revision is resolved once, by
                         staging, into config/pins.json
a folder or file         identity is the digests of its files, so a copy elsewhere is the same model
tiny                     the model or data set shipped in resources/tiny
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from quantbench.errors import UserError
from quantbench.keys import file_sha256

RESOURCES = Path(__file__).parents[3] / "resources" / "tiny"
PINS = Path("config/pins.json")
# What a model's folder contributes. Pickled weights and Python files are left behind: safetensors only, no remote code.
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "tiktoken.model", "merges.txt", "vocab.txt")
# All that is taken of a model whose weights are made up.
DUMMY_FILES = ("config.json",)
# The same weights a second time, in the layout of Mistral's own tools.
MISTRAL_WEIGHTS = "consolidated*.safetensors"
HUB_SOURCE = re.compile(r"hf://(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class Source:
    """A parsed `source:`; exactly one of `path` and `name` is set."""

    text: str
    path: Path | None = None
    name: str | None = None
    revision: str | None = None

    @property
    def pinned(self):
        return self.path is not None or bool(re.fullmatch(r"[0-9a-f]{40}", self.revision or ""))


def parse(text, tiny):
    """The Source of a config's text; `tiny` is the shipped folder that the word tiny stands for. Raises UserError."""
    if text == "tiny":
        return Source(text, path=RESOURCES / tiny)
    if text.startswith("hf:"):
        match = HUB_SOURCE.fullmatch(text)
        if not match:
            raise UserError(f"source {text!r} is not of the form hf://org/name@revision")
        return Source(text, name=match["name"], revision=match["revision"])
    if "://" in text:
        raise UserError(f"source {text!r}: valid are hf://org/name@revision, a path, or tiny")
    return Source(text, path=Path(text).expanduser())


def read_pins(path=PINS):
    """{pin_name: commit} of hub sources that staging has resolved."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: {error}; without it, staging resolves every source anew") from None


def pin_name(artefact, source):
    return f"{artefact} {source.text}"


def model_patterns(code=False, dummy=False):
    """Patterns of a model's files; with `code`, the Python that a model with trust_remote_code brings along; with `dummy`
    weights, config.json alone."""
    files = DUMMY_FILES if dummy else MODEL_FILES
    return [*files, "*.py"] if code else list(files)


def model_files(folder, code=False, dummy=False):
    """Sorted files of a local model. Raises UserError when it is no model, or has no safetensors and needs them."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"model source {str(folder)!r}: there is no config.json in it, or no such folder")
    found = {path for pattern in model_patterns(code, dummy) for path in folder.glob(pattern)}
    found -= {folder / "quantbench.json", *folder.glob(MISTRAL_WEIGHTS)}
    if not dummy and not any(path.suffix == ".safetensors" for path in found):
        raise UserError(
            f"model source {str(folder)!r}: no *.safetensors; other weight files are not loaded, convert them first (the "
            "speed alone can be measured without: weights: dummy)"
        )
    return sorted(found)


def dataset_files(path):
    """{split: file} of a local data set: a JSONL file is its split `test`, a folder holds <split>.jsonl."""
    path = Path(path)
    if path.is_file() and path.suffix == ".jsonl":
        return {"test": path}
    files = {file.stem: file for file in sorted(path.glob("*.jsonl"))} if path.is_dir() else {}
    if not files:
        raise UserError(f"data set source {str(path)!r}: valid is a .jsonl file, or a folder of <split>.jsonl files")
    return files


def model_identity(source, pins, digest=file_sha256, code=False, dummy=False):
    """Identity of a model, or None for a hub source that staging has yet to resolve; flags as in model_patterns."""
    extra = {"code": True} if code else {}
    extra |= {"weights": "dummy"} if dummy else {}
    if source.path is not None:
        files = {path.name: digest(path) for path in model_files(source.path, code, dummy)}
        return {"artefact": "model", "files": files, **extra}
    identity = _hub_identity("model", source, pins)
    return identity and {**identity, **extra}


def dataset_identity(source, subset, pins, digest=file_sha256):
    """Identity of a data set, or None for a hub source that staging has yet to resolve."""
    if source.path is not None:
        return {
            "artefact": "dataset",
            "files": {split: digest(file) for split, file in dataset_files(source.path).items()},
        }
    identity = _hub_identity("dataset", source, pins)
    return identity and {**identity, "subset": subset}


def _hub_identity(artefact, source, pins):
    commit = source.revision if source.pinned else pins.get(pin_name(artefact, source))
    return commit and {"artefact": artefact, "hub": source.name, "commit": commit}


class DigestCache:
    """File digests remembered by path, size and modification time, so that large models are read once."""

    def __init__(self, path):
        self.path = Path(path)
        try:
            self.known = json.loads(self.path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            self.known = {}

    def __call__(self, path):
        stat = path.stat()
        tag = f"{stat.st_size} {stat.st_mtime_ns}"
        name = str(path.resolve())
        if self.known.get(name, [None])[0] != tag:
            self.known[name] = [tag, file_sha256(path)]
            # Only files that take noticeable time to read are worth a line in the cache.
            if stat.st_size > 1 << 28:
                self._save()
        return self.known[name][1]

    def _save(self):
        from quantbench.store import write_atomically

        write_atomically(self.path, json.dumps(self.known, indent=0, sort_keys=True))
