"""The report's charts: Altair specifications made of rows that are already summarised. No statistics here.

Every chart takes a list of dicts and returns a Vega-Lite specification (a dict) without `$schema` and `config`: the
page embeds many of them and hands the one CONFIG to all. A row has `scheme`, the columns its chart names, and `text`,
what the tooltip says. A missing interval is null and draws no bar.

Altair takes 10 ms to make a chart, and a large study has a thousand that differ in their rows alone: each kind is made
once, with data by name, and `_filled` with its rows.
"""

import functools

import altair as alt

INK = "#1b2430"
QUIET = "#5b6675"
RULE = "#d7dce3"

# Okabe and Ito (2008) without black, the baseline's, and yellow, invisible on white; then two of Tol's "muted" (2021).
# The shapes repeat with another period, so that a colour that comes again comes with another shape.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933")
SHAPES = ("square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
BASELINE_LOOK = {"colour": INK, "shape": "circle"}

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
CONFIG = {
    "font": FONT,
    "background": None,
    "view": {"stroke": None},
    "axis": {
        "labelColor": QUIET,
        "titleColor": QUIET,
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "domainColor": RULE,
        "tickColor": RULE,
        "gridColor": "#eceff3",
        "labelOverlap": "greedy",
        "labelLimit": 150,
    },
    "axisY": {"titleAngle": 0, "titleAlign": "left", "titleAnchor": "end", "titleX": 0, "titleY": -10, "domain": False},
    "axisX": {"grid": False},
    # Two of the colours are light: the outline keeps their points apart from the paper.
    "point": {"size": 60, "filled": True, "opacity": 1, "stroke": INK, "strokeWidth": 0.7},
    "line": {"strokeWidth": 1.8},
}
PANEL_HEIGHT = 180
ROW_HEIGHT = 22
# Air between the outermost interval and the end of its axis, in pixels.
PADDING = 10


def looks(schemes, baseline):
    """{scheme: {"colour", "shape"}}: the same in every chart, table and legend of a report."""
    others = [scheme for scheme in schemes if scheme != baseline]
    chosen = {
        scheme: {"colour": COLOURS[place % len(COLOURS)], "shape": SHAPES[place % len(SHAPES)]}
        for place, scheme in enumerate(others)
    }
    return {scheme: chosen.get(scheme, BASELINE_LOOK) for scheme in schemes}


def lines(rows, look, *, x_title, y_title, log=False, reference=None, of="scheme"):
    """Value by an ordinal x, one line per scheme: rows have x, value, low, high. `reference` draws a rule there.

    of  what rows call a scheme, if it is something else, for the tooltip
    """
    log = log and min(row[name] for row in rows for name in ("value", "low") if row[name] is not None) > 0
    kind = _lines(_items(look), x_title, y_title, log, reference is not None, _has(rows, "low"), of)
    return _filled(kind, rows, reference)


@functools.cache
def _lines(look, x_title, y_title, log, with_reference, with_intervals, of):
    base = _chart("rows").encode(
        x=alt.X("x:O", title=x_title, axis=alt.Axis(labelAngle=0)),
        color=_colour(look),
    )
    y = alt.Y("value:Q", title=y_title, scale=_scale(log), axis=alt.Axis(format=",.3~r", tickCount=5))
    interval = base.mark_rule(strokeWidth=2, opacity=0.55).encode(y=alt.Y("low:Q"), y2="high:Q")
    layers = [
        *([_reference("y")] if with_reference else []),
        base.mark_line(clip=True).encode(y=y),
        *([interval] if with_intervals else []),
        base.mark_point().encode(y=y, shape=_shape(look), tooltip=_tooltip(of)),
    ]
    return _specification(alt.layer(*layers), PANEL_HEIGHT)


def intervals(rows, look, *, x_title, reference=None, percent=False, log=False):
    """Value with its interval, one row per scheme: rows have value, low, high, and may have a `label` for the scheme's name.
    `reference` draws a dashed rule. On a `log` axis an interval that reaches zero ends where the axis does."""
    rows = [{"label": row["scheme"], **row} for row in rows]
    if log:
        least = min(row[name] for row in rows for name in ("value", "low") if row[name])
        rows = [row | {"low": row["low"] if row["low"] is None else max(row["low"], least)} for row in rows]
    height = ROW_HEIGHT * len({row["label"] for row in rows}) + 10
    kind = _intervals(_items(look), x_title, percent, log, reference is not None, _has(rows, "low"), height)
    return _filled(kind, rows, reference)


@functools.cache
def _intervals(look, x_title, percent, log, with_reference, with_intervals, height):
    y = alt.Y("label:N", title=None, sort=None, axis=alt.Axis(ticks=False, grid=True, labelPadding=8))
    base = _chart("rows").encode(y=y, color=_colour(look))
    x_axis = alt.Axis(format=".0%" if percent else ",.4~r", tickCount=5)
    x = alt.X("value:Q", title=x_title, scale=_scale(log), axis=x_axis)
    layers = [
        *([_reference("x")] if with_reference else []),
        *(
            [base.mark_rule(strokeWidth=2.5, opacity=0.6).encode(x=alt.X("low:Q"), x2="high:Q")]
            if with_intervals
            else []
        ),
        base.mark_point(size=70).encode(x=x, shape=_shape(look), tooltip=_tooltip()),
    ]
    return _specification(alt.layer(*layers), height)


def bars(rows, look, *, x_title):
    """One bar per scheme from zero: rows have value and label (written at the bar's end)."""
    most = max(row["value"] for row in rows)
    base = _chart("rows").encode(
        y=alt.Y("scheme:N", title=None, sort=None, axis=alt.Axis(ticks=False, grid=False, labelPadding=8)),
        # Room to the right of the longest bar for what is written there.
        x=alt.X("value:Q", title=x_title, scale=alt.Scale(domain=[0, most * 1.5]), axis=alt.Axis(tickCount=4)),
    )
    bar = base.mark_bar(height=14).encode(color=_colour(_items(look)), tooltip=_tooltip())
    text = base.mark_text(align="left", dx=5, color=INK, fontSize=11).encode(text="label:N")
    height = ROW_HEIGHT * len({row["scheme"] for row in rows}) + 10
    return _filled(_specification(alt.layer(bar, text), height), rows)


def roofline(rows, look, *, x_title):
    """Measured time beside the least possible one: rows have layer, value, low, high, floor (null: not known).

    A tick at the floor, a point at the measurement with its interval, and between them what the kernel leaves unused.
    """
    schemes, layers = ({row[name] for row in rows} for name in ("scheme", "layer"))
    height = len(layers) * (10 * len(schemes) + 10)
    return _filled(_roofline(_items(look), x_title, _has(rows, "floor"), _has(rows, "low"), height), rows)


@functools.cache
def _roofline(look, x_title, with_floor, with_intervals, height):
    base = _chart("rows").encode(
        y=alt.Y("layer:N", title=None, sort=None, axis=alt.Axis(ticks=False, grid=False), scale=alt.Scale(padding=0.2)),
        yOffset=alt.YOffset("scheme:N", sort=None),
        color=_colour(look),
    )
    x = alt.X("value:Q", title=x_title, scale=_scale(True), axis=alt.Axis(grid=True, format=",.3~r", tickCount=4))
    floor = [
        base.mark_rule(opacity=0.4).encode(x=alt.X("floor:Q"), x2="value:Q"),
        base.mark_tick(thickness=2, size=9).encode(x=alt.X("floor:Q")),
    ]
    shown = [
        *(floor if with_floor else []),
        *([base.mark_rule(strokeWidth=3).encode(x=alt.X("low:Q"), x2="high:Q")] if with_intervals else []),
        base.mark_point(size=44).encode(x=x, shape=_shape(look), tooltip=_tooltip()),
    ]
    return _specification(alt.layer(*shown), height)


def speedups(rows, look, *, x_title, y_title):
    """Observed speedup with its interval, and a dashed line of the predicted one: rows as `lines` plus predicted or null.

    The rule is at 1, where nothing is gained.
    """
    kind = _speedups(_items(look), x_title, y_title, _has(rows, "predicted"), _has(rows, "low"))
    return _filled(kind, rows, reference=1)


@functools.cache
def _speedups(look, x_title, y_title, with_predicted, with_intervals):
    base = _chart("rows").encode(
        x=alt.X("x:O", title=x_title, axis=alt.Axis(labelAngle=0)),
        color=_colour(look),
    )
    y = alt.Y("value:Q", title=y_title, scale=_scale(True), axis=alt.Axis(format=",.3~r", tickCount=5))
    predicted = base.mark_line(strokeDash=[5, 4], strokeWidth=1.2, opacity=0.75).encode(y=alt.Y("predicted:Q"))
    interval = base.mark_rule(strokeWidth=2, opacity=0.55).encode(y=alt.Y("low:Q"), y2="high:Q")
    shown = [
        _reference("y"),
        *([predicted] if with_predicted else []),
        base.mark_line().encode(y=y),
        *([interval] if with_intervals else []),
        base.mark_point().encode(y=y, shape=_shape(look), tooltip=_tooltip()),
    ]
    return _specification(alt.layer(*shown), PANEL_HEIGHT)


def _filled(kind, rows, reference=None):
    """The kind's specification with its rows; `reference` is where its rule stands."""
    datasets = {"rows": [_shortened(row) for row in rows]}
    if reference is not None:
        datasets["reference"] = [_shortened({"at": reference})]
    return {**kind, "datasets": datasets}


def _shortened(row):
    # Five digits are finer than a screen; all seventeen would make the page half as large again.
    return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in row.items()}


def _has(rows, name):
    """Whether there is anything of that name to draw: of nulls alone Vega complains."""
    return any(row[name] is not None for row in rows)


def _items(look):
    """The schemes' looks as something that a cache may know again."""
    return tuple((scheme, one["colour"], one["shape"]) for scheme, one in look.items())


def _chart(name):
    return alt.Chart(alt.NamedData(name=name))


def _colour(look):
    names, colours, _ = zip(*look, strict=True)
    return alt.Color("scheme:N", legend=None, scale=alt.Scale(domain=list(names), range=list(colours)))


def _shape(look):
    names, _, shapes = zip(*look, strict=True)
    return alt.Shape("scheme:N", legend=None, scale=alt.Scale(domain=list(names), range=list(shapes)))


def _tooltip(of="scheme"):
    return [alt.Tooltip("scheme:N", title=of), alt.Tooltip("text:N", title="measured")]


def _scale(log):
    """Holds every interval and the reference with some air; it need not start at zero."""
    if log:
        return alt.Scale(type="log", nice=False, padding=PADDING)
    return alt.Scale(zero=False, nice=False, padding=PADDING)


def _reference(channel):
    encoded = {"x": alt.X("at:Q")} if channel == "x" else {"y": alt.Y("at:Q")}
    return _chart("reference").mark_rule(strokeDash=[4, 3], color=QUIET).encode(**encoded)


def _specification(chart, height):
    specification = chart.properties(width="container", height=height).to_dict()
    return {name: value for name, value in specification.items() if name not in ("$schema", "config", "datasets")}
