"""Say what a study used: device hours per gpu, the share spent measuring, engine starts, killed runs, and a rerun's cost.

python workflow/scripts/usage.py --config='{"study": "demo", ...}'
"""

from quantbench.command import run, study_parser
from quantbench.manifest import build_manifest
from quantbench.usage import read_usage


def main(argv=None):
    study = study_parser(__doc__).parse_args(argv).study
    print(read_usage(build_manifest(study), study.store))


if __name__ == "__main__":
    run(main)
