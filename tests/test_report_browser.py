"""The report in a real browser: it draws every chart, complains about nothing, fetches nothing, fits the screen, and leads
from a number to its rows. Every string that can come from outside is hostile."""

import csv
import shutil
import warnings

import pytest
from quantbench import report as report_module
from quantbench.report import render
from report_page import hostile_study
from screenshot import ARGUMENTS, BROWSERS

HOSTILE = "</script><img src=x onerror=alert(1)>\"'`{{ 7 * 7 }}"
DRAWN = "html[data-drawn]"


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
def report(tmp_path_factory, study):
    """A study of two gpus with hostile text in names, prompts, answers, reasons and logs, and with one stage not measured."""
    root = tmp_path_factory.mktemp("report")
    manifest, tables = hostile_study(study, HOSTILE)
    del manifest["study"]["perplexity"]
    tables["perplexity"] = tables["perplexity"].clear()
    runs = tables["runs"].with_columns(log=tables["runs"]["run_id"] + ".log")
    for name in runs["log"]:
        (root / name).write_text(f"loading\n{HOSTILE}\n")
    html, _ = render(manifest, tables | {"runs": runs}, logs=root)
    (root / "report.html").write_text(html)
    return root / "report.html"


@pytest.fixture(scope="module", params=[1400, 390])
def page(browser, report, request):
    """The report, drawn, at one width. In the end an error for anything that the browser complained about or asked for."""
    page, faults = opened(browser, report, request.param)
    yield page
    page.close()
    assert faults == []


def opened(browser, report, width):
    """(the page, drawn; the list of its faults: complaints, dialogs, requests)"""
    # Without smooth scrolling, or a click comes before what it is for.
    page = browser.new_page(viewport={"width": width, "height": 900}, reduced_motion="reduce")
    page.set_default_timeout(60_000)
    faults = []
    page.on("console", lambda said: faults.append(f"console {said.type}: {said.text}"))
    page.on("pageerror", lambda error: faults.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    allowed = (report.as_uri(), "blob:")
    page.on("request", lambda asked: None if asked.url.startswith(allowed) else faults.append(f"request: {asked.url}"))
    page.goto(report.as_uri())
    page.wait_for_selector(DRAWN)
    return page, faults


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


def test_hostile_text_is_shown_as_text(page):
    assert page.locator("h1").inner_text() == HOSTILE
    assert page.locator("img").count() == 0


def test_a_point_tells_its_numbers(page):
    page.locator("#latency [data-chart]").first.scroll_into_view_if_needed()
    page.locator("#latency .mark-symbol path").first.hover(force=True)
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert "ms" in page.locator("#vg-tooltip-element").inner_text()


# --- from a number to its rows, and less of everything ----------------------------------------------------------------


def closed(page):
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog:not([open])", state="attached")


def test_a_number_leads_to_its_rows_runs_and_command(page):
    cell = page.locator('.scroll.first tr[data-scheme="int8-smoothquant"] td[data-at*=throughput] button').first
    # By keyboard: focus, Enter, Escape, and back to where one was.
    cell.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    said = page.locator("dialog").inner_text()
    assert said.split("throughput: ")[1].split("\n")[0].count("scheme int8-smoothquant") == 1
    assert "rows of table throughput: ok" in said and "points/" in said and "The end of its log:" in said
    assert (
        "snakemake results/synthetic/engine/cpu/tiny/int8-smoothquant.json --configfile config/synthetic.yaml" in said
    )
    assert HOSTILE in page.locator("dialog pre").first.inner_text()
    assert page.locator("dialog img").count() == 0
    closed(page)
    assert page.evaluate("document.activeElement.closest('td')?.dataset.at.includes('throughput')")


def test_a_point_of_a_chart_and_a_row_of_a_table_lead_there_too(page):
    page.locator("#latency .mark-symbol path").first.click(force=True)
    page.wait_for_selector("dialog[open]")
    title = page.locator("#trace-title").inner_text()
    assert title.startswith("latency: ") and "batch_size" in title and "scheme bf16" in title
    closed(page)
    page.locator("#accuracy details summary").first.click()
    page.locator("#accuracy details tbody tr", has_text="onerror").first.locator("td").nth(2).click()
    page.wait_for_selector("dialog[open]")
    # 60 questions, one way of reading the answers.
    assert "60 rows of table accuracy: ok 60" in page.locator("dialog").inner_text()
    closed(page)
    page.locator("#accuracy details summary").first.click()


def test_downloads_are_the_tables_rows(page, study, tmp_path):
    page.locator('[data-download="latency"]').scroll_into_view_if_needed()
    with page.expect_download() as started:
        page.locator('[data-download="latency"]').click()
    started.value.save_as(tmp_path / "latency.csv")
    with open(tmp_path / "latency.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(study[1]["latency"]) and rows[0]["elapsed_s"] == str(study[1]["latency"]["elapsed_s"][0])
    assert any(row["scheme"] == HOSTILE for row in rows)


def test_the_filter_leaves_one_gpu_and_one_scheme(page):
    points = "document.querySelectorAll('#throughput .mark-symbol path').length"
    before = page.evaluate(points)
    page.select_option("#filter [name=gpu]", "h200")
    page.select_option("#filter [name=scheme]", HOSTILE)
    page.wait_for_function("document.querySelector('#filter output').textContent")
    page.wait_for_function(f"{points} < {before}")
    assert page.locator(".scroll.first tr[data-scheme]:visible").count() == 1
    assert page.locator("#throughput .group-figure:visible .kicker").all_inner_texts()[0].startswith("h200")
    assert page.locator("#throughput .group-figure:visible").count() == 1
    page.select_option("#filter [name=gpu]", "")
    page.select_option("#filter [name=scheme]", "")
    page.wait_for_function(f"{points} === {before}")


def test_print_leaves_out_what_only_a_screen_can_use(page):
    page.emulate_media(media="print")
    try:
        assert not page.locator("#filter").is_visible() and not page.locator("nav").is_visible()
        assert page.locator("h1").is_visible() and page.locator("#latency svg").first.is_visible()
    finally:
        page.emulate_media(media="screen")


# WCAG 2.1, 1.4.3: 4.5 to 1, of large text (24 px, or bold from 18.66 px) 3 to 1.
CONTRAST = """() => {
  const channel = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4
  const parts = (text) => (text.match(/[\\d.]+/g) || []).map(Number)
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b)
  const behind = (at) => {
    for (; at; at = at.parentElement) {
      const found = parts(getComputedStyle(at).backgroundColor)
      if (found.length === 3 || found[3] > 0) return found
    }
    return [255, 255, 255]
  }
  const texts = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT), low = []
  let seen = 0
  while (texts.nextNode()) {
    const at = texts.currentNode.parentElement
    if (!texts.currentNode.textContent.trim() || !at.checkVisibility() || at.closest("svg, script")) continue
    const style = getComputedStyle(at), size = parseFloat(style.fontSize)
    const [a, b] = [light(parts(style.color)), light(behind(at))].sort((x, y) => y - x)
    const least = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5
    seen += 1
    if ((a + 0.05) / (b + 0.05) < least) low.push(`${at.className}: ${texts.currentNode.textContent.slice(0, 40)}`)
  }
  return [seen, low]
}"""


def test_text_is_dark_enough_to_read_and_controls_have_names(page):
    seen, low = page.evaluate(CONTRAST)
    assert seen > 200 and low == []
    unnamed = page.evaluate(
        """[...document.querySelectorAll("button, select, summary, a, [role=region], [role=img], dialog")].filter(at =>
          !(at.textContent.trim() || at.getAttribute("aria-label") || at.closest("label"))).length"""
    )
    assert unnamed == 0


def test_folded_parts_unfold_with_their_charts(browser, study, report, monkeypatch):
    monkeypatch.setattr(report_module, "MOST_CHARTS", 1)
    folded = report.with_name("folded.html")
    folded.write_text(render(*study)[0])
    page, faults = opened(browser, folded, 1400)
    try:
        # With verdicts, and with the longest of notes, the first table needs no scrolling where names are no attacks.
        assert page.evaluate("(box => box.scrollWidth - box.clientWidth)(document.querySelector('.scroll.first'))") <= 0
        assert page.locator("#latency svg.marks").count() < page.locator("svg.marks").count()
        pack = page.locator("#latency details.packed").first
        assert pack.locator("svg.marks").count() == 0
        page.select_option("#filter [name=gpu]", "h200")
        page.wait_for_selector("#latency details.packed[data-drawn] svg.marks")
        pack.locator(".mark-symbol path").first.click(force=True)
        page.wait_for_selector("dialog[open]")
        assert "gpu h200" in page.locator("#trace-title").inner_text()
        closed(page)
        # Paper, A4 across: nothing is cut.
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 1050, "height": 750})
        assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    finally:
        page.close()
    assert faults == []
