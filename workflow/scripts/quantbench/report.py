"""One self-contained HTML page of a study: text, tables and charts, and no request to anywhere.

Everything that came from a config, a model, a log or a generated answer is text to escape: Jinja escapes it in HTML,
`embedded_json` in the charts' specifications, and the page's policy runs only the two scripts whose digests it names.
"""

import base64
import functools
import hashlib
import json
from pathlib import Path

import jinja2
import vl_convert
from markupsafe import Markup

from quantbench import (
    charts,
    evidence,
    forced,
    report_data,
    sections_cost,
    sections_decision,
    sections_energy,
    sections_expected,
    sections_hardware,
    sections_kernels,
    sections_memory,
    sections_model,
    sections_price,
    sections_published,
    sections_quality,
    sections_sensitivity,
    sections_serving,
    sections_speed,
)
from quantbench.first_screen import first_screen
from quantbench.sections import Context
from quantbench.study import ROOT

HERE = Path(__file__).parent
PUBLISHED = ROOT / "config" / "published"
DATASHEETS = ROOT / "config" / "gpus.yaml"

# A browser draws so many charts in a few seconds. Of a study with more, a section shows its first SHOWN groups; the others
# are packed, and unfold at a click or where the filter asks for them.
MOST_CHARTS = 150
SHOWN = 1
# A report has to fit a mail: raw tables are embedded in the room that the rest of the page leaves.
MOST_BYTES = 4_900_000
RAW_DATA = "<!-- raw data -->"

# What a legend's swatch draws, in a box from -7 to 7: the shapes of charts.SHAPES.
SHAPE_PATHS = {
    "circle": "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0Z",
    "square": "M-4.5,-4.5h9v9h-9Z",
    "triangle-up": "M0,-5.5L5.5,4.5H-5.5Z",
    "triangle-down": "M0,5.5L5.5,-4.5H-5.5Z",
    "triangle-right": "M5.5,0L-4.5,5.5V-5.5Z",
    "diamond": "M0,-6L4.5,0L0,6L-4.5,0Z",
    "cross": "M-5.5,-2h3.5v-3.5h4v3.5h3.5v4h-3.5v3.5h-4v-3.5h-3.5Z",
}


def render(manifest, tables, published=PUBLISHED, datasheets=DATASHEETS, logs=Path()):
    """(HTML text, summary dict) of a study. `manifest` as the workflow writes it, `tables` polars frames by name.

    `published` is the folder of other people's figures, shown as such where they are of one of the study's devices;
    `datasheets` has the device that FP4 is projected to; the runs' logs are read below `logs`, where they are there.
    """
    context = Context(manifest, tables)
    screen, summary = first_screen(context)
    sections = [
        sections_speed.latency(context),
        sections_speed.throughput(context),
        sections_serving.serving(context),
        *([sections_serving.search(context)] if context.study.get("serving", {}).get("search") else []),
        *([drawn] if (drawn := sections_energy.energy(context)) else []),
        *([decided] if (decided := sections_decision.decision(context)) else []),
        *([paid] if (paid := sections_cost.costs(context)) else []),
        sections_quality.accuracy(context),
        sections_quality.perplexity(context),
        *([sections_quality.fidelity(context)] if context.study.get("fidelity") else []),
        sections_quality.size(context),
        *([expected] if (expected := sections_expected.expectations(context)) else []),
        *([price] if (price := sections_price.price(context)) else []),
        *([sections_sensitivity.sensitivity(context)] if context.study.get("sensitivity") else []),
        sections_memory.memory(context),
        sections_kernels.kernels(context),
    ]
    page = {
        **screen,
        "sections": sections,
        "model": sections_model.whole_model(context, datasheets),
        "published": sections_published.published_figures(context, published),
        "hardware": sections_hardware.hardware(context),
        "support": sections_hardware.support(context),
        "kernels": evidence.kernels_that_ran(manifest, tables),
        "forced": forced.sentences(context),
        "missing": evidence.missing(manifest, tables),
        "provenance": evidence.provenance(manifest, tables),
    }
    page["filters"] = _filters(context)
    page["many"] = sum(len(group["panels"]) for section in sections for group in section["groups"]) > MOST_CHARTS
    environment = _environment()
    html = _html(environment, page, _fold(sections, page["model"], page["many"]))
    data = report_data.embedded(manifest, tables, MOST_BYTES - len(html.encode()), logs)
    # Nobody else's text can hold the mark: it would be escaped.
    return html.replace(RAW_DATA, environment.get_template("raw_data.html.j2").render(data=data)), summary


def _filters(context):
    """[(name, values)]: by what the page can be narrowed down, where there is a choice."""
    choices = (("gpu", context.study["gpus"]), ("model", context.models), ("scheme", context.study["schemes"]))
    return [(name, values) for name, values in choices if len(values) > 1]


def _fold(sections, model, many):
    """Say of each group whether it is packed, and number its charts; returns the kinds of chart, which the charts share.

    A panel's `chart` becomes [kind, datasets], where the kind is a place in that list.
    """
    kinds, number = {}, 0
    for groups in [*(section["groups"] for section in sections), model["groups"] if model else []]:
        for place, group in enumerate(groups):
            group["packed"] = many and place >= SHOWN
            for panel in group.setdefault("panels", []):
                number += 1
                kind = {name: value for name, value in panel["chart"].items() if name != "datasets"}
                place_of_kind = kinds.setdefault(json.dumps(kind), len(kinds))
                panel["id"], panel["chart"] = f"chart-{number}", [place_of_kind, panel["chart"].get("datasets", {})]
    return [json.loads(kind) for kind in kinds]


def _environment():
    loader = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["packed"] = lambda text: report_data.packed(str(text))
    # In single quotes, or each of the many quotes of JSON would be five characters.
    environment.filters["attribute"] = lambda value: Markup(embedded_json(value).replace("'", "\\u0027"))
    environment.filters["embedded"] = lambda value: Markup(embedded_json(value))
    return environment


def _html(environment, page, kinds):
    bundle, script = _bundle(), (HERE / "report.js").read_text()
    return environment.get_template("report.html.j2").render(
        page=page,
        shapes=SHAPE_PATHS,
        css=Markup((HERE / "report.css").read_text()),
        bundle=Markup(bundle),
        script=Markup(script),
        charts={"config": charts.CONFIG, "kinds": kinds},
        raw_data=Markup(RAW_DATA),
        policy=_policy(bundle, script),
    )


@functools.cache
def _bundle():
    """Vega, Vega-Lite and Vega-Embed as one script, about 0.9 MB. Raises ValueError if it would end its own element."""
    bundle = vl_convert.javascript_bundle()
    if "</script" in bundle.lower() or "<!--" in bundle:
        raise ValueError("the chart library's script cannot be embedded in a page as it is")
    return bundle


def _policy(*scripts):
    """Content security policy: nothing is fetched, only the page's own scripts run.

    Vega makes functions of its chart expressions, hence unsafe-eval; its tooltip brings its own style element.
    """
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-eval' {allowed}"


def embedded_json(value):
    """JSON that may stand inside a script element: nothing in it can end the element, open a comment or end a line."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in ("<", ">", "&"):
        text = text.replace(character, f"\\u{ord(character):04x}")
    # json.dumps has escaped everything outside ASCII, and with it the line ends U+2028 and U+2029.
    return text
