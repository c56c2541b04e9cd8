"""What commands on a whole study have in common: list_points, plan, usage."""

import argparse
import json
import sys

from quantbench.errors import UserError
from quantbench.study import load_study


def study_parser(doc):
    """Parser of a script with this docstring, whose `--config` is given back as `study`. Raises UserError while it parses."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--config", dest="study", type=study, required=True, help="the study's config as JSON")
    return parser


def study(text):
    """The study of a config as JSON. Raises UserError."""
    # The title is the report's; the schema asks for one.
    return load_study({"title": "-", **json.loads(text)})


def run(main):
    """Call main(); exit with its status, or with one sentence and 1 for a UserError."""
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
