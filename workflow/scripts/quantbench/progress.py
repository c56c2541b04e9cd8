"""One line per measured point: stage, points done of all, time left."""

import json
import time
from pathlib import Path

from quantbench.console import say


class Progress:
    """Counts the points of a job, and of the whole study where its manifest and the store are given.

    label     what is being measured, e.g. "measure_engine cpu tiny/gptq-int4"
    total     points this job has to measure
    manifest  path of the study's manifest.json, or None
    """

    def __init__(self, label, total, manifest=None, store=None):
        self.label, self.total, self.done = label, total, 0
        self.started = time.monotonic()
        self.study_total = self.study_done = 0
        if manifest and store and Path(manifest).exists():
            keys = {point["key"] for point in json.loads(Path(manifest).read_text())["points"]}
            self.study_total = len(keys)
            self.study_done = sum(store.has_point(key) for key in keys)

    def say(self, text):
        say(f"[{self.label}] {text}")

    def begin(self):
        """The engine is ready: time left is judged from here."""
        self.started = time.monotonic()

    def step(self, count=1):
        """`count` more points are in the store."""
        self.done += count
        self.study_done += count
        each_s = (time.monotonic() - self.started) / self.done
        text = f"{self.done} of {self.total} points, about {each_s * (self.total - self.done):.0f} s left"
        if self.study_total:
            text += f"; study: {min(self.study_done, self.study_total)} of {self.study_total} points"
        self.say(text)
