"""Made-up tables of one gpu and model, filled scheme by scheme, for tests of comparisons and decisions."""

import json

from quantbench.decision import choose, summarize

JITTER = (0.99, 1.0, 1.01)


class Made:
    """Tables of one gpu and model, as lists of dicts, filled scheme by scheme."""

    def __init__(self):
        names = ("kernels", "throughput", "latency", "serving", "accuracy", "perplexity", "checkpoints")
        self.tables = {name: [] for name in names}

    def add(self, table, scheme, rows, status="ok", reason=None, gpu="h200"):
        keys = {"gpu": gpu, "model": "m", "scheme": scheme, "status": status, "reason": reason}
        self.tables[table] += [keys | row for row in rows]
        return self

    def speed(self, scheme, seconds, table="throughput", batch=64, jitter=JITTER, lengths=(128, 32), **more):
        point = {"batch_size": batch, "input_tokens": lengths[0], "output_tokens": lengths[1], "ttft_s": None}
        return self.add(
            table, scheme, [point | {"repeat": i, "elapsed_s": seconds * j} for i, j in enumerate(jitter)], **more
        )

    def answers(self, scheme, correct, task="gsm8k", filter="strict-match"):
        point = {"task": task, "dataset": "d", "shots": 3, "filter": filter}
        return self.add(
            "accuracy", scheme, [point | {"question": i, "correct": bool(c)} for i, c in enumerate(correct)]
        )

    def ran(self, scheme, verdict, computes="w4a16", expected="w4a16"):
        row = {
            "stage": "engine",
            "layer_kind": "qkv_proj",
            "verdict": verdict,
            "computes": computes,
            "expected": expected,
        }
        return self.add("kernels", scheme, [row])

    def size(self, scheme, size):
        self.tables["checkpoints"].append(
            {"model": "m", "scheme": scheme, "bytes": size, "bits_per_weight": 8.0, "status": "ok"}
        )
        return self

    def decide(self):
        (decision,) = choose(summarize(self.tables, "bf16"))
        json.dumps(decision, allow_nan=False)
        return decision


def flipped(correct, lost=0, won=0):
    """The answers with the first `lost` right ones made wrong and the first `won` wrong ones made right."""
    right = [i for i, c in enumerate(correct) if c][:lost]
    wrong = [i for i, c in enumerate(correct) if not c][:won]
    return [not c if i in right or i in wrong else c for i, c in enumerate(correct)]


BASE = [i % 10 != 0 for i in range(400)]  # 360 of 400


def two(gain=2.0, lost=4, won=4):
    made = Made().speed("bf16", 1.0).speed("int8", 1.0 / gain)
    return made.answers("bf16", BASE).answers("int8", flipped(BASE, lost, won))
