"""What the report's chart sections share: the study, its tables, its schemes' looks, and how a section is made.

A section is {"id", "title", "intro", "missing", "notices", "legend", "groups"}; a group (one gpu, model and load) has a
`heading` that says what its charts show, a `kicker` that says of what, `panels` [{"title", "description", "chart"}],
`notes`, and `numbers`, the same values as a table. `missing` is the sentence for a stage with nothing to show, and then
`groups` is empty.
"""

import functools

import polars as pl

from quantbench import charts, decision, display, kernel_analysis, verdict
from quantbench.dummy import QUALITY, is_dummy

NOT_ASKED = "The study's config has no section “{stage}”."
DUMMY = "Not measured: dummy weights."
NOTHING_OK = "Asked for, but no point was measured: see what is missing, and why, below."


class Context:
    """One study's sections: `study` is the resolved config, `look` its schemes in order with colour and shape."""

    def __init__(self, manifest, tables):
        self.manifest, self.study, self.tables = manifest, manifest["study"], tables
        self.baseline = self.study["baseline"]
        self.confidence = self.study.get("repeats", {}).get("confidence", 0.95)
        self.look = charts.looks(self.study["schemes"], self.baseline)
        self.models = [model["name"] for model in self.study["models"]]
        margins = verdict.MARGINS | self.study.get("margins", {})
        self.summary = decision.summarize(tables, self.baseline, self.confidence, margins=margins)
        self.decisions = decision.choose(self.summary)
        self.promises = self._promises()

    @functools.cached_property
    def gemm_cells(self):
        """The timed matrix products (kernel_analysis.cells): several sections read them."""
        gemm = self.tables.get("gemm")
        if gemm is None or gemm.is_empty():
            return []
        return kernel_analysis.cells(gemm, self.baseline, confidence=self.confidence)

    def _promises(self):
        """{scheme: what it does instead of what it promises}, with the gpu where the study has several."""
        broken = {}
        for entry in self.summary:
            words = decision.broken_promise(entry)
            if words:
                gpus = broken.setdefault(entry["scheme"], {}).setdefault(words, [])
                gpus += [entry["gpu"]] if entry["gpu"] not in gpus else []
        several = len(self.study["gpus"]) > 1
        return {
            scheme: "; ".join(
                f"{f'on {display.listed(gpus)} ' if several else ''}{words}" for words, gpus in said.items()
            )
            for scheme, said in broken.items()
        }

    def loses(self, gpu, model, scheme):
        """Whether the scheme's accuracy is worse than the baseline's, on any task."""
        mine = (e for e in self.summary if (e["gpu"], e["model"], e["scheme"]) == (gpu, model, scheme))
        found = [found.get("words", "") for entry in mine for found in entry["accuracy"] if found["decides"]]
        return any(words.startswith("worse") for words in found)

    def section(self, stage, title, intro, groups, asked=None, notices=()):
        asked = asked or stage
        missing = None
        if not groups:
            missing = NOTHING_OK if self.study.get(asked) else NOT_ASKED.format(stage=asked)
            missing = DUMMY if asked in QUALITY and all(map(is_dummy, self.study["models"])) else missing
        present = {row[0].removesuffix(display.EMULATED) for group in groups for row in group["numbers"]["rows"]}
        return {
            "id": stage,
            "title": title,
            "intro": intro.format(ci=f"{100 * self.confidence:g}", baseline=self.baseline),
            "missing": missing,
            "notices": list(notices) if groups else [],
            "legend": [
                {"scheme": scheme, "promise": self.promises.get(scheme), **look}
                for scheme, look in self.look.items()
                if scheme in present
            ],
            "groups": groups,
        }

    def ok(self, table):
        """The measured rows of a table, as a frame; None for a table that is not there."""
        frame = self.tables.get(table)
        return None if frame is None else frame.filter(pl.col("status") == "ok")

    def grouped(self, table, keys):
        """[(values of keys, frame)] of a table's measured rows, in the study's order of gpus and models."""
        frame = self.ok(table)
        if frame is None:
            return []
        # Request rates, which is how users come, before fixed concurrency.
        loads = ["rate", "concurrency", "all_at_once"]
        orders = {"gpu": self.study["gpus"], "model": self.models, "load": loads}

        def place(group):
            # What does not apply comes last: fixed lengths before a workload's.
            return [
                (v is None, orders[k].index(v) if v in orders.get(k, ()) else v or 0)
                for k, v in zip(keys, group[0], strict=True)
            ]

        return sorted(parts(frame, keys), key=place)

    def in_order(self, rows):
        places = {scheme: place for place, scheme in enumerate(self.look)}
        return sorted(rows, key=lambda row: places.get(row["scheme"], len(places)))


def panel(title, chart, rows, x_title=None):
    """A chart with its text alternative: every value that it shows, in words."""
    said = []
    for row in rows:
        where = "" if x_title is None else f" at {x_title} {row['x']:g}"
        said.append(f"{row.get('label') or row['scheme']}{where}: {row['text']}")
    return {"title": title, "description": f"{title}. {'; '.join(said)}.", "chart": chart}


def parts(frame, keys):
    """[(values of keys, frame)] in order of appearance."""
    return list(frame.partition_by(keys, as_dict=True, maintain_order=True).items())


def point(scheme, x, estimate, shown):
    """A chart's row of an estimate (value, low, high); `shown` writes a value as a person reads it."""
    value, low, high = estimate
    text = display.with_interval(estimate, shown)
    return {"scheme": scheme, "x": x, "value": value, "low": low, "high": high, "text": text}


def rescaled(rows, size):
    """The same rows in another unit, `size` of the old one: what a chart draws; texts stay."""
    names = ("value", "low", "high", "floor")
    return [{**row, **{n: row[n] / size for n in names if row.get(n) is not None}} for row in rows]
