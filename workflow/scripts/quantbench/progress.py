"""One line per measured point: stage, points done of all, time left; for the job, and for the whole study."""

import json
import time
from pathlib import Path

from quantbench.console import say
from quantbench.estimate import estimate_study, store_lacks


class Progress:
    """Counts the points of a job, and of the whole study where its manifest and the store are given.

    label     what is being measured, e.g. "engine cpu tiny/gptq-int4"
    total     points this job has to measure
    manifest  path of the study's manifest.json, or None
    """

    def __init__(self, label, total, manifest=None, store=None):
        self.label, self.total, self.done = label, total, 0
        self.study_total = self.study_missing = self.study_left_s = 0
        if manifest and store and Path(manifest).exists():
            self._look_at_study(json.loads(Path(manifest).read_text()), store)
        self.begin()

    def say(self, text):
        say(f"[{self.label}] {text}")

    def begin(self):
        """The engine is ready: time left is judged from here."""
        self.started = time.monotonic()

    def step(self, count=1):
        """`count` more points are in the store."""
        self.done += count
        each_s = (time.monotonic() - self.started) / self.done
        text = f"{self.done} of {self.total} points, about {each_s * (self.total - self.done):.0f} s left"
        if self.study_total:
            # Another job may have measured shared points meanwhile.
            missing = max(self.study_missing - self.done, 0)
            text += f"; study: {self.study_total - missing} of {self.study_total} points"
            if self.study_left_s:
                left_s = self.study_left_s * missing / self.study_missing
                text += f", about {left_s / 60:.0f} min of measuring left"
        self.say(text)

    def _look_at_study(self, manifest, store):
        """Points of the study, those missing, and what their jobs would take, judged by what is measured."""
        keys, lacking = {point["key"] for point in manifest["points"]}, store_lacks(manifest, store)
        self.study_total, self.study_missing = len(keys), len(keys & lacking)
        # Not from other studies: a device that is waiting must not read a whole store.
        estimates = estimate_study(manifest, store, lacking, elsewhere=False)
        self.study_left_s = sum(estimate.seconds for estimate in estimates.values())
