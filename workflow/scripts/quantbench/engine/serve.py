"""`vllm serve`, started in half the time on a CPU, and closed to strangers. Run by server.py as a file:

    python -P serve.py MODEL --port=... --middleware=quantbench.engine.serve.RequireKey

A server is three processes (API, engine core, worker). Spawned, each spends 7 to 9 s importing vLLM; forked, only the
first does: 10 s instead of 26 s on two cores. vLLM 0.32 insists on spawn on CPUs because it wants to hand its workers
other OMP_* variables. With VLLM_CPU_OMP_THREADS_BIND=nobind it hands them none, so nothing that computes is different.
On a GPU nothing is changed.
"""

import gc
import hmac
import os
import sys
from pathlib import Path


class RequireKey:
    """ASGI middleware: every path wants the key. vLLM's own check leaves /collective_rpc to anyone on the machine."""

    def __init__(self, app):
        self.app = app
        self.expected = f"Bearer {os.environ['VLLM_API_KEY']}".encode()

    async def __call__(self, scope, receive, send):
        given = dict(scope.get("headers") or []).get(b"authorization", b"")
        if scope["type"] == "http" and not hmac.compare_digest(given, self.expected):
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        await self.app(scope, receive, send)


def allow_fork():
    """Let VLLM_WORKER_MULTIPROC_METHOD=fork survive vLLM's CPU platform."""
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config.__func__

    def check_and_keep_fork(cls, vllm_config):
        check(cls, vllm_config)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    CpuPlatform.check_and_update_config = classmethod(check_and_keep_fork)


if __name__ == "__main__":
    # Behind everything else: scripts here are named after rules, and must not hide an installed package of that name.
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    # Imports make no garbage worth 2 of their 7 s.
    gc.disable()
    if os.environ.get("VLLM_WORKER_MULTIPROC_METHOD") == "fork":
        allow_fork()
    import vllm.entrypoints.cli.benchmark.main
    import vllm.entrypoints.cli.serve  # noqa: F401
    from vllm.entrypoints.cli.main import main

    gc.enable()
    sys.argv[:1] = ["vllm", "serve"]
    main()
