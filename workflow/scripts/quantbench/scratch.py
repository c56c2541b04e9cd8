"""Where a job may write on its node: a folder of its own on the node's own disk, and the study's cache of compiled code.

Compute nodes may have no home folder, and a home on a shared file system is no place for a thousand small files. So a job
of Slurm has HOME, TMPDIR and every cache that its tools keep pointed elsewhere, before any of them is imported:

    the job's folder      on scratch; removed when the job ends, however it ends (supervise.py)
    the cache             results/<study>/cache/<gpu>: what compilers make (torch.compile, Triton, FlashInfer, CUDA). It is
                          kept because the server would compile again what the engine compiled, and every retry too; a GPU
                          waits minutes for that. Delete it at any time: nothing depends on it.

The rules say which scratch (QUANTBENCH_SCRATCH, from config/cluster.yaml) and which cache (QUANTBENCH_CACHE). A script that
is run by hand has neither and is left alone; so is a job outside of Slurm, whose user has a home with warm caches.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import tempfile
import time
from pathlib import Path

from quantbench.console import say
from quantbench.errors import UserError
from quantbench.keys import file_sha256

PREFIX = "quantbench-"
NEW_S = 60
# A socket's path has at most 107 characters; vLLM's and multiprocessing's names take up to 45 of them.
LONGEST_TMPDIR = 60
# Caches of compiled code, below the study's cache: variable and folder. vLLM keeps torch.compile's, and what it found out
# about model classes, below its own root; by hashes of versions, model and options, as the others do.
COMPILED = {
    "VLLM_CACHE_ROOT": "vllm",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
    "TRITON_HOME": "triton",
    "TRITON_CACHE_DIR": "triton/cache",
    "CUDA_CACHE_PATH": "cuda",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "DG_JIT_CACHE_DIR": "deep_gemm",
    "TILELANG_CACHE_DIR": "tilelang",
    "TVM_FFI_CACHE_DIR": "tvm_ffi",
    "CUTE_DSL_CACHE_DIR": "cute_dsl",
    "NUMBA_CACHE_DIR": "numba",
}
# All else that a tool would put below the home folder, below the job's folder.
PASSING = {
    "HOME": "home",
    "XDG_CACHE_HOME": "home/.cache",
    "XDG_CONFIG_HOME": "home/.config",
    "XDG_DATA_HOME": "home/.local/share",
    "XDG_STATE_HOME": "home/.local/state",
    "HF_HOME": "home/.cache/huggingface",
    "TORCH_HOME": "home/.cache/torch",
    "MPLCONFIGDIR": "home/.config/matplotlib",
    "VLLM_CONFIG_ROOT": "home/.config/vllm",
    "LM_HARNESS_CACHE_PATH": "home/.cache/lm_eval",
    "TMPDIR": "tmp",
}
# A user's own would win over HF_HOME and may lie in the home folder.
OVERRIDING = ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_ASSETS_CACHE", "HF_XET_CACHE", "TRANSFORMERS_CACHE",
              "VLLM_ASSETS_CACHE", "VLLM_XLA_CACHE_PATH", "VLLM_RPC_BASE_PATH", "FLASHINFER_CUBIN_DIR", "TMP", "TEMP")  # fmt: skip


def announce():
    """Name the folder of this job, for this process and those that it starts; called where its end is certain to be seen.

    Nothing is made yet. Does nothing outside of Slurm, nor for a script that is run by hand.
    """
    if {"QUANTBENCH_SCRATCH", "SLURM_JOB_ID"} <= os.environ.keys():
        os.environ["QUANTBENCH_JOB"] = f"{PREFIX}{os.getuid()}-{secrets.token_hex(4)}"


def remove():
    """Remove the folder of this job, wherever it could be made."""
    if name := os.environ.get("QUANTBENCH_JOB"):
        for root in roots():
            shutil.rmtree(root / name, ignore_errors=True)


def isolate(device):
    """Point HOME, TMPDIR and every cache of this process elsewhere; before torch and its like are imported.

    device   name of the gpu that the job is for, or of its kind; names the cache that such jobs share
    Raises UserError where nowhere can be written.
    """
    if "QUANTBENCH_JOB" not in os.environ:
        return
    folder = job_folder()
    cache = Path(os.environ["QUANTBENCH_CACHE"]).absolute() / device
    variables = {name: folder / path for name, path in PASSING.items()}
    variables |= {name: cache / path for name, path in COMPILED.items()}
    for path in variables.values():
        path.mkdir(parents=True, exist_ok=True)
    if len(str(variables["TMPDIR"])) > LONGEST_TMPDIR:
        del variables["TMPDIR"]
    for name in OVERRIDING:
        os.environ.pop(name, None)
    # Whose checkout git may read, for the commit in the provenance.
    if (settings := Path("~/.gitconfig").expanduser()).exists():
        os.environ.setdefault("GIT_CONFIG_GLOBAL", str(settings))
    os.environ.update({name: str(path) for name, path in variables.items()})
    # Who a process belongs to is looked up for the names of caches; an image may know no name.
    os.environ.setdefault("LOGNAME", str(os.getuid()))
    tempfile.tempdir = None


def job_folder():
    """The folder of this job, made at its first use on the first scratch that lets us. Raises UserError where none does."""
    name, tried = os.environ["QUANTBENCH_JOB"], []
    for root in roots():
        try:
            (root / name).mkdir(mode=0o700, exist_ok=True)
            _lock(root / name)
        except OSError as error:
            tried.append(f"{root}: {error.strerror}")
            continue
        if tried:
            say(f"scratch: {'; '.join(tried)}; using {root}")
        sweep(root)
        return root / name
    raise UserError(
        f"no folder to write to on this node ({'; '.join(tried)}); set `scratch` in config/cluster.yaml to one"
    )


def roots():
    """Folders that may hold the job's folder, the site's own first; without one, Slurm's, then the system's."""
    asked = os.path.expandvars(os.environ.get("QUANTBENCH_SCRATCH", ""))
    slurm = os.environ.get("SLURM_TMPDIR")
    system = [os.environ.get("TMPDIR"), "/tmp", "/var/tmp"]
    return [Path(path) for path in dict.fromkeys(filter(None, [asked, slurm, *system]))]


def sweep(root):
    """Remove folders of jobs that were killed together with their supervisor: nobody holds their locks any more."""
    for folder in root.glob(f"{PREFIX}{os.getuid()}-*"):
        with contextlib.suppress(OSError):
            # One that is just being made has no lock yet.
            if time.time() - folder.stat().st_mtime < NEW_S:
                continue
            with open(folder / "lock") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


# Open for as long as this process lives: the lock on the job's folder.
_LOCKS = {}


def _lock(folder):
    if folder not in _LOCKS:
        file = open(folder / "lock", "w")  # noqa: SIM115
        fcntl.flock(file, fcntl.LOCK_SH)
        _LOCKS[folder] = file


# --- checkpoints --------------------------------------------------------------------------------------------------------


def local_checkpoint(path):
    """The checkpoint at `path`, or a verified copy of it on this node where the site asks for copies.

    Where there is no room, or no scratch but the system's memory, the original is used and one sentence says so. A copy
    whose digests are not the store's (or, in entries without them, the original's) raises UserError.
    """
    if not os.environ.get("QUANTBENCH_COPY_CHECKPOINTS") or "QUANTBENCH_JOB" not in os.environ:
        return path
    source, folder = Path(path), job_folder()
    files = sorted(file for file in source.iterdir() if file.is_file())
    size, room = sum(file.stat().st_size for file in files), shutil.disk_usage(folder).free
    if size > room:
        say(
            f"scratch: {folder.parent} has {room / 1e9:.1f} GB for a checkpoint of {size / 1e9:.1f} GB; it is read from the store"
        )
        return path
    copy = folder / "checkpoint"
    try:
        copy.mkdir(exist_ok=True)
        for file in files:
            shutil.copyfile(file, copy / file.name)
    except OSError as error:
        # Another job of the node may have taken the room meanwhile.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        shutil.rmtree(copy, ignore_errors=True)
        say(f"scratch: {folder.parent}: {error.strerror}; the checkpoint is read from the store")
        return path
    verify(source, copy)
    return str(copy)


def verify(source, copy):
    """Hold a copy to the digests that the store has of an entry's files. Raises UserError with the first file that differs."""
    known = stored_digests(source)
    for file in sorted(source.iterdir()):
        if file.is_file() and file.name != "quantbench.json":
            expected = known.get(file.name) or file_sha256(file)
            if file_sha256(copy / file.name) != expected:
                raise UserError(
                    f"{copy / file.name} is not what the store has of {file}: the copy, or the store's file, is damaged"
                )


def stored_digests(folder):
    """{name: SHA-256} of an entry's files as its quantbench.json says, {} where it has none."""
    try:
        record = json.loads((Path(folder) / "quantbench.json").read_text())
    except (OSError, ValueError):
        return {}
    # Those of a local model are its identity.
    return record.get("files") or record["identity"].get("files", {})
