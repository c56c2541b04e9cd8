"""The `vllm` command, with greedy sampling in `vllm bench latency` and `throughput`; nothing else is different.

Both always sample at temperature 1, and have no option for it. On a CPU that is a fifth of a small model's time at
batch 16 and above; quantbench takes the likeliest token, and the same work has to be compared.
"""

import functools
import sys

from vllm import LLM
from vllm.entrypoints.cli.main import main

generate = LLM.generate


@functools.wraps(generate)
def generate_greedily(self, prompts, sampling_params=None, **options):
    for parameters in sampling_params if isinstance(sampling_params, list) else [sampling_params]:
        parameters.temperature = 0.0
    return generate(self, prompts, sampling_params, **options)


if __name__ == "__main__":
    LLM.generate = generate_greedily
    sys.argv[0] = "vllm"
    main()
