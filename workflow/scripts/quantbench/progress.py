"""One line per measured point: stage, points done of all, time left; for the job, and for the whole study."""

import json
import time
from pathlib import Path

from quantbench.console import say
from quantbench.plan import estimate


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
            self._look_at_study(json.loads(Path(manifest).read_text())["points"], store)
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

    def _look_at_study(self, points, store):
        """Points of the study, those missing, and what they would take, judged by those of it that are measured."""
        unique = {point["key"]: point for point in points}
        known = {key: record for key in unique if (record := store.read_point(key))}
        missing = [point for key, point in unique.items() if key not in known]
        self.study_total, self.study_missing = len(unique), len(missing)
        runs = {run_id: run for run_id in {r["run_id"] for r in known.values()} if (run := store.read_run(run_id))}
        self.study_left_s = sum(seconds for seconds, _ in estimate(missing, known, runs).values())
