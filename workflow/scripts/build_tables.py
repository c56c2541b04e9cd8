"""Collect a study's points from the store into tidy tables, as Parquet and CSV.

python workflow/scripts/build_tables.py --manifest=results/demo/manifest.json --store=results/store --output=FOLDER
"""

import argparse
import gc
import json
import sys
from pathlib import Path

from quantbench.errors import UserError
from quantbench.store import Store
from quantbench.tables import build_tables, write_tables


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--manifest", type=Path, required=True, help="manifest.json of the study")
    parser.add_argument("--store", type=Path, required=True, help="folder of the store")
    parser.add_argument("--output", type=Path, required=True, help="folder for the tables")
    arguments = parser.parse_args(argv)
    # A short process that keeps nearly all it makes: looking for garbage would be a fifth of its time.
    gc.disable()
    tables = build_tables(json.loads(arguments.manifest.read_text()), Store(arguments.store))
    write_tables(tables, arguments.output)
    print(", ".join(f"{table}: {len(frame)} rows" for table, frame in tables.items()), file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
