"""Bring one model, data set or task's data into the store, from the hub or from a local folder.

python workflow/scripts/stage.py --job='{"kind": "model", ...}' --store=results/store --output=results/demo/models/tiny.json
"""

import argparse
import json
from pathlib import Path

from quantbench.keys import canonical_json
from quantbench.staging import stage
from quantbench.store import Store, write_atomically
from quantbench.supervise import supervised


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--job", type=json.loads, required=True, help="the job as JSON: kind, name, source, identity")
    parser.add_argument("--store", type=Path, required=True, help="folder of the store")
    parser.add_argument("--output", type=Path, required=True, help="pointer to write")
    arguments = parser.parse_args(argv)
    entry_key, folder = stage(arguments.job, Store(arguments.store))
    write_atomically(arguments.output, canonical_json({"key": entry_key, "path": str(folder)}))


if __name__ == "__main__":
    supervised(main)
