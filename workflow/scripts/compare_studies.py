"""Print how a study differs from another one, or from itself at another time.

    python workflow/scripts/compare_studies.py --manifest=results/demo/manifest.json --tables=results/demo/tables --other=WHAT

WHAT is the name of another study that was measured here, a copy of a study's results folder, or a store in which this study
was measured once more.
"""

import argparse
import json
import sys
from pathlib import Path

from quantbench.compare_studies import compare, comparison_text, find_other
from quantbench.errors import UserError
from quantbench.tables import read_tables


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True, help="manifest.json of the study")
    parser.add_argument("--tables", type=Path, required=True, help="folder with the study's tables")
    parser.add_argument("--other", required=True, help="what it is compared with")
    arguments = parser.parse_args(argv)
    manifest = json.loads(arguments.manifest.read_text())
    there = find_other(arguments.other, manifest)
    print(comparison_text(arguments.other, compare(there, (manifest, read_tables(arguments.tables)))))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
