"""The report in a real browser: it draws every chart, complains about nothing, fetches nothing, and fits the screen."""

import shutil
import warnings

import pytest
from quantbench.report import render
from quantbench.tables import build_tables
from screenshot import ARGUMENTS, BROWSERS
from synthetic import synthetic_study

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        path = None
    if path is None:
        warnings.warn("the report was NOT looked at: no chromium, or no playwright, on this machine", stacklevel=1)
        pytest.skip("no chromium, or no playwright, on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A study of two gpus with hostile text in its title, and with one stage not measured."""
    root = tmp_path_factory.mktemp("report")
    manifest = synthetic_study(root)
    tables = build_tables(manifest, root / "store")
    manifest["study"]["title"] = HOSTILE
    del manifest["study"]["perplexity"]
    tables["perplexity"] = tables["perplexity"].clear()
    (root / "report.html").write_text(render(manifest, tables)[0])
    return root / "report.html"


@pytest.fixture(scope="module", params=[1400, 390])
def page(browser, report, request):
    """The report, drawn, at one width. In the end an error for anything that the browser complained about or asked for."""
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    faults = []
    page.on("console", lambda said: faults.append(f"console {said.type}: {said.text}"))
    page.on("pageerror", lambda error: faults.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda asked: faults.append(f"request: {asked.url}") if asked.url != report.as_uri() else None)
    page.goto(report.as_uri())
    page.wait_for_selector("html[data-drawn]", timeout=60_000)
    yield page
    page.close()
    assert faults == []


def test_every_chart_is_drawn_with_marks_inside_its_box(page):
    charts = page.evaluate(
        """[...document.querySelectorAll("[data-chart]")].map(box => {
          const svg = box.querySelector("svg")
          const marks = svg ? svg.querySelectorAll(".mark-symbol path, .mark-rect path") : []
          return {name: box.dataset.chart, marks: marks.length, words: box.getAttribute("aria-label").length,
                  outside: svg ? svg.getBoundingClientRect().right - box.getBoundingClientRect().right : null,
                  height: svg ? svg.getBoundingClientRect().height : 0}})"""
    )
    assert len(charts) > 20
    for chart in charts:
        assert chart["marks"] >= 1 and chart["words"] > 20 and chart["height"] > 50, chart
        assert chart["outside"] <= 1, chart


def test_the_page_never_scrolls_sideways_but_tables_do(page):
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    page.evaluate(
        "document.querySelectorAll('details:not([open])').forEach(d => {d.open = true; d.dataset.unfolded = 1})"
    )
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    cut = page.evaluate(
        """[...document.querySelectorAll("table")].filter(table => {
          const box = table.parentElement
          return table.scrollWidth > box.clientWidth && getComputedStyle(box).overflowX !== "auto"}).length"""
    )
    assert cut == 0
    page.evaluate("document.querySelectorAll('[data-unfolded]').forEach(details => details.open = false)")


def test_the_answer_and_the_first_rows_are_on_the_first_screen(page):
    page.evaluate("window.scrollTo(0, 0)")
    answer, table = (page.locator(name).first.bounding_box() for name in (".answer", ".scroll.first"))
    assert answer["y"] < 300
    if page.viewport_size["width"] == 1400:
        assert table["y"] + 100 < 900
        # With verdicts, and with the longest of notes, the table needs no scrolling.
        assert page.evaluate("(box => box.scrollWidth - box.clientWidth)(document.querySelector('.scroll.first'))") <= 0


def test_hostile_text_is_shown_as_text(page):
    assert page.locator("h1").inner_text() == HOSTILE
    assert page.locator("img").count() == 0


def test_a_point_tells_its_numbers(page):
    page.locator("#latency [data-chart]").first.scroll_into_view_if_needed()
    page.locator("#latency .mark-symbol path").first.hover(force=True)
    page.wait_for_selector("#vg-tooltip-element.visible", timeout=5_000)
    assert "ms" in page.locator("#vg-tooltip-element").inner_text()
