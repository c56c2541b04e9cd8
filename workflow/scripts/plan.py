"""Say what a study lacks and why, what is skipped and why, and the device time it would take. Nothing is started.

python workflow/scripts/plan.py --config='{"study": "demo", ...}'
"""

from quantbench.cluster import placement, requests
from quantbench.command import run, study_parser
from quantbench.manifest import build_manifest
from quantbench.plan import plan_text
from quantbench.points import CHECKPOINT_JOBS


def main(argv=None):
    study = study_parser(__doc__).parse_args(argv).study

    def asked(rule, target, estimate):
        gpu = None if rule in CHECKPOINT_JOBS else target[0]
        return requests(placement(study.cluster, rule, gpu), estimate)[0]

    print(plan_text(build_manifest(study), study.store, asked))


if __name__ == "__main__":
    run(main)
