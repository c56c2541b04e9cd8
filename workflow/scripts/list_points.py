"""Write a study's manifest: every artefact and every point with its identity and key, from the config alone.

python workflow/scripts/list_points.py --config='{"study": "demo", ...}' --output=results/demo/manifest.json
"""

import argparse
import json
import sys
from pathlib import Path

from quantbench.errors import UserError
from quantbench.manifest import build_manifest
from quantbench.store import write_atomically
from quantbench.study import load_study


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=json.loads, required=True, help="the study's config as JSON")
    parser.add_argument("--output", type=Path, required=True, help="manifest.json")
    arguments = parser.parse_args(argv)
    # The title is the report's; the schema asks for one.
    manifest = build_manifest(load_study({"title": "-", **arguments.config}))
    write_atomically(arguments.output, json.dumps(manifest, indent=1, sort_keys=True))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
