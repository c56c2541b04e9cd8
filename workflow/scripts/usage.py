"""Say what a study used: device hours per gpu, the share spent measuring, engine starts, killed runs, and a rerun's cost.

python workflow/scripts/usage.py --config='{"study": "demo", ...}'
"""

import argparse
import json
import sys

from quantbench.errors import UserError
from quantbench.manifest import build_manifest
from quantbench.study import load_study
from quantbench.usage import read_usage


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=json.loads, required=True, help="the study's config as JSON")
    arguments = parser.parse_args(argv)
    study = load_study({"title": "-", **arguments.config})
    print(read_usage(build_manifest(study), study.store))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
