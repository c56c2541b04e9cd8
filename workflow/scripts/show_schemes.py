"""Print what every scheme of a study needs and yields: rule schemes. Without a study: all schemes that come along, as Markdown.

python workflow/scripts/show_schemes.py --manifest=results/demo/manifest.json
python workflow/scripts/show_schemes.py > docs/schemes.md
"""

import argparse
import json
import sys
from pathlib import Path

from quantbench.errors import UserError
from quantbench.scheme_needs import needs_text, schemes_page
from quantbench.schemes import load_schemes

FOLDER = Path(__file__).parents[2] / "config" / "schemes"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--manifest", type=Path, help="a study's manifest.json; left out: the page docs/schemes.md")
    options = parser.parse_args(argv)
    if options.manifest is None:
        sys.stdout.write(schemes_page(load_schemes(FOLDER)))
        return
    manifest = json.loads(options.manifest.read_text())
    configs = {name: model["config"] for name, model in manifest["models"].items()}
    print(needs_text({name: manifest["schemes"][name] for name in manifest["study"]["schemes"]}, configs))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
