"""Print which scheme runs on which device, and how: rule support. Answers that the store lacks are the rules' alone.

python workflow/scripts/show_support.py --manifest=results/demo/manifest.json --store=results/store
"""

import argparse
import json
import sys
from pathlib import Path

from quantbench.errors import UserError
from quantbench.memory import fit_lines
from quantbench.store import Store
from quantbench.support_table import kernels_of_load, support_rows, support_text


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--manifest", type=Path, required=True, help="the study's manifest.json")
    parser.add_argument("--store", type=Path, required=True, help="folder of the store")
    options = parser.parse_args(argv)
    manifest, store = json.loads(options.manifest.read_text()), Store(options.store)
    records = [(point, store.read_point(point["key"])) for point in manifest["points"]]
    found = {stage: [(p, r) for p, r in records if r and p["stage"] == stage] for stage in ("support", "load")}
    kernels = [row for point, record in found["load"] for row in kernels_of_load(manifest, point, record)]
    print("\n".join([support_text(support_rows(manifest, found["support"], kernels)), *fit_lines(manifest)]))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
