"""The `vllm` command, with greedy sampling in `vllm bench latency` and `throughput`; nothing else is different.

Both always sample at temperature 1, and have no option for it. On a CPU that is a fifth of a step of a small model at
batch 16 and above; quantbench takes the likeliest token, and the same work has to be compared.
"""

import sys

import vllm
from vllm.entrypoints.cli.main import main
from vllm.sampling_params import SamplingParams


def greedy(**parameters):
    return SamplingParams(**parameters | {"temperature": 0.0})


if __name__ == "__main__":
    # Only the name that the two commands import when they run; the engine has imported its own by now.
    import vllm.entrypoints.cli.benchmark.main
    import vllm.v1.sample.logits_processor  # noqa: F401

    vllm.SamplingParams = greedy
    sys.argv[0] = "vllm"
    main()
