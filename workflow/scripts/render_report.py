"""Render a study's report: one self-contained HTML file, and what its first table says as JSON and as Markdown.

    python workflow/scripts/render_report.py --manifest=results/demo/manifest.json --tables=results/demo/tables
        --output=reports/demo.html --summary=reports/demo.summary.json --markdown=reports/demo.md

workflow/schemas/summary.schema.json describes every key of the JSON file.
"""

import argparse
import gc
import json
import sys
from pathlib import Path

from quantbench.errors import UserError
from quantbench.report import render
from quantbench.store import write_atomically
from quantbench.summary import markdown
from quantbench.tables import read_tables


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--manifest", type=Path, required=True, help="manifest.json of the study")
    parser.add_argument("--title", help="the question, where it is not the manifest's title")
    parser.add_argument("--tables", type=Path, required=True, help="folder with the study's tables")
    parser.add_argument("--output", type=Path, required=True, help="the HTML file to write")
    parser.add_argument("--summary", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--markdown", type=Path, help="the Markdown file to write")
    arguments = parser.parse_args(argv)
    manifest = json.loads(arguments.manifest.read_text())
    if arguments.title:
        manifest["study"]["title"] = arguments.title
    # A short process that keeps nearly all it makes: looking for garbage would be a fifth of its time.
    gc.disable()
    html, summary = render(manifest, read_tables(arguments.tables))
    write_atomically(arguments.output, html)
    write_atomically(arguments.summary, json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    if arguments.markdown:
        write_atomically(arguments.markdown, markdown(summary))
    print(f"{arguments.output}: {len(html.encode()) / 1e6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
