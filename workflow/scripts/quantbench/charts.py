"""The report's charts: Altair specifications made of rows that are already summarised. No statistics here.

Every chart takes a list of dicts and returns a Vega-Lite specification (a dict) without `$schema` and `config`: the
page embeds many of them and hands the one CONFIG to all. A row has `scheme`, the columns its chart names, and `text`,
what the tooltip says. A missing interval is null and draws no bar.
"""

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
    xs = sorted({row["x"] for row in rows})
    base = _chart(rows).encode(
        x=alt.X("x:O", title=x_title, sort=xs, axis=alt.Axis(labelAngle=0)),
        color=_colour(rows, look),
    )
    y = alt.Y("value:Q", title=y_title, scale=_scale(rows, log, reference), axis=alt.Axis(format=",.3~r", tickCount=5))
    layers = [] if reference is None else [_reference(reference, "y")]
    layers += [
        base.mark_line(clip=True).encode(y=y),
        base.mark_rule(strokeWidth=2, opacity=0.55).encode(y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_point().encode(y=y, shape=_shape(rows, look), tooltip=_tooltip(of)),
    ]
    return _specification(alt.layer(*layers), PANEL_HEIGHT)


def intervals(rows, look, *, x_title, reference=None, percent=False):
    """Value with its interval, one row per scheme: rows have value, low, high, and may have a `label` for the scheme's name.
    `reference` draws a dashed rule."""
    rows = [{"label": row["scheme"], **row} for row in rows]
    schemes = list(dict.fromkeys(row["label"] for row in rows))
    y = alt.Y("label:N", title=None, sort=schemes, axis=alt.Axis(ticks=False, grid=True, labelPadding=8))
    base = _chart(rows).encode(y=y, color=_colour(rows, look))
    x_axis = alt.Axis(format=".0%" if percent else ",.4~r", tickCount=5)
    x = alt.X("value:Q", title=x_title, scale=_scale(rows, False, reference), axis=x_axis)
    layers = [] if reference is None else [_reference(reference, "x")]
    layers += [
        base.mark_rule(strokeWidth=2.5, opacity=0.6).encode(x=alt.X("low:Q"), x2="high:Q"),
        base.mark_point(size=70).encode(x=x, shape=_shape(rows, look), tooltip=_tooltip()),
    ]
    return _specification(alt.layer(*layers), ROW_HEIGHT * len(schemes) + 10)


def bars(rows, look, *, x_title):
    """One bar per scheme from zero: rows have value and label (written at the bar's end)."""
    schemes = list(dict.fromkeys(row["scheme"] for row in rows))
    most = max(row["value"] for row in rows)
    base = _chart(rows).encode(
        y=alt.Y("scheme:N", title=None, sort=schemes, axis=alt.Axis(ticks=False, grid=False, labelPadding=8)),
        # Room to the right of the longest bar for what is written there.
        x=alt.X("value:Q", title=x_title, scale=alt.Scale(domain=[0, most * 1.5]), axis=alt.Axis(tickCount=4)),
    )
    bar = base.mark_bar(height=14).encode(color=_colour(rows, look), tooltip=_tooltip())
    text = base.mark_text(align="left", dx=5, color=INK, fontSize=11).encode(text="label:N")
    return _specification(alt.layer(bar, text), ROW_HEIGHT * len(schemes) + 10)


def roofline(rows, look, *, x_title):
    """Measured time beside the least possible one: rows have layer, value, low, high, floor (null: not known).

    A tick at the floor, a point at the measurement with its interval, and between them what the kernel leaves unused.
    """
    schemes = list(dict.fromkeys(row["scheme"] for row in rows))
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    base = _chart(rows).encode(
        y=alt.Y(
            "layer:N", title=None, sort=layers, axis=alt.Axis(ticks=False, grid=False), scale=alt.Scale(padding=0.2)
        ),
        yOffset=alt.YOffset("scheme:N", sort=schemes),
        color=_colour(rows, look),
    )
    values = [row[name] for row in rows for name in ("value", "low", "high", "floor") if row[name] is not None]
    scale = alt.Scale(type="log", domain=[min(values) / 1.3, max(values) * 1.3], nice=False)
    x = alt.X("value:Q", title=x_title, scale=scale, axis=alt.Axis(grid=True, format=",.3~r", tickCount=4))
    shown = alt.layer(
        base.mark_rule(opacity=0.4).encode(x=alt.X("floor:Q"), x2="value:Q"),
        base.mark_tick(thickness=2, size=9).encode(x=alt.X("floor:Q")),
        base.mark_rule(strokeWidth=3).encode(x=alt.X("low:Q"), x2="high:Q"),
        base.mark_point(size=44).encode(x=x, shape=_shape(rows, look), tooltip=_tooltip()),
    )
    return _specification(shown, len(layers) * (10 * len(schemes) + 10))


def speedups(rows, look, *, x_title, y_title):
    """Observed speedup with its interval, and a dashed line of the predicted one: rows as `lines` plus predicted or null.

    The rule is at 1, where nothing is gained.
    """
    xs = sorted({row["x"] for row in rows})
    base = _chart(rows).encode(
        x=alt.X("x:O", title=x_title, sort=xs, axis=alt.Axis(labelAngle=0)),
        color=_colour(rows, look),
    )
    values = [row[name] for row in rows for name in ("value", "low", "high", "predicted") if row[name] is not None]
    scale = alt.Scale(type="log", domain=[min([*values, 1]) / 1.15, max([*values, 1]) * 1.15], nice=False)
    y = alt.Y("value:Q", title=y_title, scale=scale, axis=alt.Axis(format=",.3~r", tickCount=5))
    shown = alt.layer(
        _reference(1, "y"),
        base.mark_line(strokeDash=[5, 4], strokeWidth=1.2, opacity=0.75).encode(y=alt.Y("predicted:Q")),
        base.mark_line().encode(y=y),
        base.mark_rule(strokeWidth=2, opacity=0.55).encode(y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_point().encode(y=y, shape=_shape(rows, look), tooltip=_tooltip()),
    )
    return _specification(shown, PANEL_HEIGHT)


def _chart(rows):
    # Five digits are finer than a screen; all seventeen would make the page half as large again.
    short = [{name: float(f"{v:.5g}") if isinstance(v, float) else v for name, v in row.items()} for row in rows]
    return alt.Chart(alt.InlineData(values=short))


def _domain(rows, look):
    present = {row["scheme"] for row in rows}
    return [scheme for scheme in look if scheme in present]


def _colour(rows, look):
    domain = _domain(rows, look)
    return alt.Color("scheme:N", legend=None, scale=alt.Scale(domain=domain, range=[look[s]["colour"] for s in domain]))


def _shape(rows, look):
    domain = _domain(rows, look)
    return alt.Shape("scheme:N", legend=None, scale=alt.Scale(domain=domain, range=[look[s]["shape"] for s in domain]))


def _tooltip(of="scheme"):
    return [alt.Tooltip("scheme:N", title=of), alt.Tooltip("text:N", title="measured")]


def _scale(rows, log, reference):
    """A domain that holds every interval and the reference with some air; it need not start at zero."""
    values = [row[name] for row in rows for name in ("value", "low", "high") if row.get(name) is not None]
    values += [] if reference is None else [reference]
    least, most = min(values), max(values)
    if log and least > 0:
        return alt.Scale(type="log", domain=[least / 1.15, most * 1.15], nice=False)
    air = (most - least) * 0.08 or abs(most) * 0.05 or 0.05
    return alt.Scale(domain=[least - air, most + air], zero=False, nice=False)


def _reference(value, channel):
    encoded = {"x": alt.X("at:Q")} if channel == "x" else {"y": alt.Y("at:Q")}
    return _chart([{"at": value}]).mark_rule(strokeDash=[4, 3], color=QUIET).encode(**encoded)


def _specification(chart, height):
    specification = chart.properties(width="container", height=height).to_dict()
    return {name: value for name, value in specification.items() if name not in ("$schema", "config")}
