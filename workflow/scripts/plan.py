"""Say what a study lacks and why, what is skipped and why, and the device time it would take. Nothing is started.

python workflow/scripts/plan.py --config='{"study": "demo", ...}'
"""

import argparse
import json
import sys

from quantbench.cluster import placement, requests
from quantbench.errors import UserError
from quantbench.manifest import build_manifest
from quantbench.plan import plan_text
from quantbench.study import load_study


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=json.loads, required=True, help="the study's config as JSON")
    arguments = parser.parse_args(argv)
    study = load_study({"title": "-", **arguments.config})

    def asked(rule, target, estimate):
        gpu = None if rule == "quantize_model" else target[0]
        return requests(placement(study.cluster, rule, gpu), estimate)[0]

    print(plan_text(build_manifest(study), study.store, asked))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
