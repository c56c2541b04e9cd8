"""The harness's stopwatch against torch.utils.benchmark: the same bf16 products, the same tensors, the same threads.

    make bench            or, with an engine environment's python: python tests/bench/gemm.py [--rounds N] [--cuda]

Both call torch.mm on one weight over and over (hot cache, eager). They take turns, a few dozen rounds of each, and each
side goes first in every other round: a machine that becomes slower or busier favours neither. Prints a table of medians and of
the ratio with its bootstrap interval over rounds. Asserts nothing about time.
"""

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "workflow" / "scripts"))

from quantbench.engine.settings import engine_environment
from quantbench.store import write_atomically

# m, n, k: one token and a batch through layers of the tiny model and of a 1B model, and a square.
SHAPES = [(1, 2048, 2048), (16, 2048, 2048), (256, 512, 256), (256, 2048, 2048), (1024, 1024, 1024)]
CUDA_SHAPES = [(1, 4096, 4096), (16, 4096, 4096), (256, 4096, 11008), (4096, 4096, 4096), (8192, 8192, 8192)]
TARGET = 0.03


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="turns of either side for each shape")
    parser.add_argument("--cuda", action="store_true", help="on the GPU instead of the CPU")
    parser.add_argument("--json", metavar="FILE", help="write the values as well")
    options = parser.parse_args(argv)
    os.environ.update(engine_environment({"environment": "engine-cuda" if options.cuda else "engine-cpu"}))
    rows = [compare(shape, options) for shape in (CUDA_SHAPES if options.cuda else SHAPES)]
    print("\n".join(report(rows)))
    if options.json:
        write_atomically(options.json, json.dumps(rows, indent=2))


def compare(shape, options):
    """Medians of both sides' rounds, in seconds, and the ratio's interval: {"shape", "ours", "theirs", "ratio"}."""
    import torch
    from quantbench.gemm.timing import Stopwatch
    from quantbench.gemm.weights import make_activations, make_weight
    from quantbench.statistics import median_ci, ratio_of_medians_ci
    from torch.utils.benchmark import Timer

    m, n, k = shape
    device = torch.device("cuda" if options.cuda else "cpu")
    with torch.inference_mode():
        weight = make_weight(n, k, None, torch.bfloat16, device).tensors["weight"].T
        x = make_activations(m, k, torch.bfloat16, device)

        def product(operand):
            return torch.mm(operand, weight)

        stopwatch = Stopwatch(device)
        # Its default is one thread.
        timer = Timer("product(x)", globals={"product": product, "x": x}, num_threads=torch.get_num_threads())
        product(x)
        call_s = stopwatch.elapsed(lambda: product(x))
        once = {"least": 1, "most": 1, "relative_ci": 0.0, "confidence": 0.95}

        def ours():
            rows = stopwatch.rows(lambda count: [product] * count, x, call_s, weight.nbytes, once)
            [row] = [row for row in rows if (row["launch"], row["cache"]) == ("eager", "hot")]
            return row["latency_s"]

        def theirs():
            return timer.timeit(max(1, round(0.002 / call_s))).median

        sides = {"ours": (ours, []), "theirs": (theirs, [])}
        for number in range(options.rounds):
            for name in sorted(sides, reverse=number % 2):
                measure, values = sides[name]
                values.append(measure())
    ours_s, theirs_s = sides["ours"][1], sides["theirs"][1]
    return {
        "shape": shape,
        "ours": median_ci(ours_s),
        "theirs": median_ci(theirs_s),
        "ratio": ratio_of_medians_ci(theirs_s, ours_s),
    }


def report(rows):
    """Lines of the table."""
    yield f"{'m x n x k':>20}  {'quantbench, us':>24}  {'torch.utils.benchmark, us':>26}  {'difference, %':>22}"
    for row in rows:
        ratio, low, high = row["ratio"]
        difference = f"{100 * (ratio - 1):+.1f} [{100 * (low - 1):+.1f}, {100 * (high - 1):+.1f}]"
        apart = "" if abs(ratio - 1) <= TARGET else "  more than 3 % apart"
        shape = " x ".join(map(str, row["shape"]))
        yield f"{shape:>20}  {interval(row['ours']):>24}  {interval(row['theirs']):>26}  {difference:>22}{apart}"
    yield "bf16 torch.mm, hot cache, eager; medians over rounds with 95 % intervals; both sides took turns"


def interval(triple):
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(1e6 * value for value in triple))


if __name__ == "__main__":
    main()
