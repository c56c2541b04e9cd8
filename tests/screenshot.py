"""Make the README's picture: the first screen of a report, as a PNG of 1200 by 960 at most.

    python tests/screenshot.py reports/demo.html docs/report.png

Needs playwright and a chromium on the path. Not a test: run by hand after a report worth showing.
"""

import argparse
import shutil
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
ARGUMENTS += ["--disable-sync", "--no-first-run"]
WIDTH, HEIGHT = 1200, 960
MOST_BYTES = 300_000


def main(argv=None):
    # Here, so that a machine without it can still import the names above.
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, nargs="?", default=Path("reports/demo.html"))
    parser.add_argument("picture", type=Path, nargs="?", default=Path("docs/report.png"))
    arguments = parser.parse_args(argv)
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        parser.error(f"no browser on the path: none of {', '.join(BROWSERS)}")
    arguments.picture.parent.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(arguments.report.resolve().as_uri())
        page.wait_for_selector("html[data-drawn]", timeout=60_000)
        # The picture ends with the first table, or with the screen where that is longer.
        table = page.locator(".scroll.first").bounding_box()
        height = min(HEIGHT, round(table["y"] + table["height"]) + 12)
        page.screenshot(path=arguments.picture, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
        browser.close()
    size = arguments.picture.stat().st_size
    print(f"{arguments.picture}: {WIDTH} x {height}, {size / 1000:.0f} kB")
    if size > MOST_BYTES:
        parser.error(f"more than {MOST_BYTES / 1000:.0f} kB: too large for the repository")


if __name__ == "__main__":
    main()
