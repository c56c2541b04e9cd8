"""`vllm serve`, started in half the time on a CPU: `python -m quantbench.engine.serve MODEL --port=...`.

A server is three processes (API, engine core, worker). Spawned, each spends 7 to 9 s importing vLLM; forked, only the
first does: 12 s instead of 26 s on two cores. vLLM 0.32 insists on spawn on CPUs because it wants to hand its workers
other OMP_* variables. With VLLM_CPU_OMP_THREADS_BIND=nobind it hands them none, so nothing that computes is different.
On a GPU nothing is changed.
"""

import os
import sys


def allow_fork():
    """Let VLLM_WORKER_MULTIPROC_METHOD=fork survive vLLM's CPU platform. Has no effect elsewhere."""
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config.__func__

    def check_and_keep_fork(cls, vllm_config):
        check(cls, vllm_config)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    CpuPlatform.check_and_update_config = classmethod(check_and_keep_fork)


if __name__ == "__main__":
    if os.environ.get("VLLM_WORKER_MULTIPROC_METHOD") == "fork":
        allow_fork()
    from vllm.entrypoints.cli.main import main

    sys.argv[:1] = ["vllm", "serve"]
    main()
