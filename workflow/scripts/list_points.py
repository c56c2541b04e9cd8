"""Write a study's manifest: every artefact and every point with its identity and key, from the config alone.

python workflow/scripts/list_points.py --config='{"study": "demo", ...}' --output=results/demo/manifest.json
"""

import json
from pathlib import Path

from quantbench.command import run, study_parser
from quantbench.manifest import build_manifest
from quantbench.store import write_atomically


def main(argv=None):
    parser = study_parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="manifest.json")
    arguments = parser.parse_args(argv)
    write_atomically(arguments.output, json.dumps(build_manifest(arguments.study), indent=1, sort_keys=True))


if __name__ == "__main__":
    run(main)
