"""A vLLM server for as long as a block lasts.

It listens on 127.0.0.1 at a fresh port, wants a random key that is only ever in its environment, and is offline.
"""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from quantbench.engine.settings import engine_environment
from quantbench.engine_failure import classify_failure, last_lines
from quantbench.supervise import die_with_parent

SERVED_NAME = "model"
START_LIMIT_S = 1800
STOP_LIMIT_S = 10
RPC_LIMIT_S = 120

# Prefix caching off: a repeated prompt would measure the cache. The extension tells which kernels run.
FIXED_ARGS = {
    "enable_prefix_caching": False,
    "worker_extension_cls": "quantbench.engine.kernels.KernelReporter",
    "middleware": "quantbench.engine.serve.RequireKey",
    "served_model_name": SERVED_NAME,
    "disable_uvicorn_access_log": True,
}


class EngineFailed(Exception):
    """The engine cannot do this, and says so: `status` is a point's status, `reason` vLLM's own words."""

    def __init__(self, status, reason):
        super().__init__(f"{status}: {reason}")
        self.status, self.reason = status, reason


class ServerDied(Exception):
    """The server ended when it should not have; the message has the last lines of its log."""


@contextlib.contextmanager
def start_server(checkpoint, engine_args, log, gpu_entry):
    """Start a server and yield a Server that need not be ready yet: what is imported meanwhile costs no time.

    checkpoint   folder of the weights
    engine_args  {name as in vLLM's EngineArgs: value}
    log          file that gets all of the server's output
    gpu_entry    the device's entry in config/gpus.yaml
    """
    port, api_key = free_port(), secrets.token_urlsafe(32)
    arguments = command_line(engine_args | FIXED_ARGS | {"host": "127.0.0.1", "port": port})
    launcher = str(Path(__file__).with_name("serve.py"))
    parent = os.getpid()
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as output:
        process = subprocess.Popen(
            # -P: the launcher's folder stays off the import path.
            [sys.executable, "-P", launcher, str(checkpoint), *arguments],
            env=server_environment(gpu_entry, api_key),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: die_with_parent(parent, signal.SIGTERM),
        )
    try:
        yield Server(process, f"http://127.0.0.1:{port}", api_key, log)
    finally:
        stop(process)


class Server:
    """A running server: url, headers that open it, start_s once it is ready."""

    def __init__(self, process, url, api_key, log):
        self.process, self.url, self.log = process, url, Path(log)
        self.headers = {"Authorization": f"Bearer {api_key}"}
        self.started, self.start_s = time.monotonic(), None

    def wait_until_ready(self, limit_s=START_LIMIT_S):
        """Return when /health answers. Raises EngineFailed (also when the time is up) or ServerDied."""
        while not self.healthy():
            if self.process.poll() is not None:
                text = self.log.read_text(errors="replace")
                if failure := classify_failure(text):
                    raise EngineFailed(*failure)
                raise ServerDied(self.obituary())
            if time.monotonic() - self.started > limit_s:
                raise EngineFailed("timeout", f"the server was not ready after {limit_s:.0f} s")
            time.sleep(0.1)
        self.start_s = time.monotonic() - self.started

    def healthy(self):
        try:
            self._ask("/health", timeout_s=5)
        except (OSError, urllib.error.URLError):
            return False
        return True

    def alive(self):
        return self.process.poll() is None

    def recovers(self, limit_s=30):
        """Whether it is, or soon becomes, healthy again; an engine that died takes its server along after a moment."""
        until = time.monotonic() + limit_s
        while self.alive() and time.monotonic() < until:
            if self.healthy():
                return True
            time.sleep(0.5)
        return False

    def kernels(self):
        """What report_kernels says of the model in the first worker (see engine/kernels.py)."""
        return json.loads(self._ask("/collective_rpc", {"method": "report_kernels"}, RPC_LIMIT_S))["results"][0]

    def obituary(self):
        text = self.log.read_text(errors="replace")
        ended = f"the server ended (status {self.process.poll()}); last lines of {self.log}:"
        return f"{ended}\n{last_lines(text, 40)}"

    def _ask(self, path, body=None, timeout_s=None):
        data = None if body is None else json.dumps(body).encode()
        headers = self.headers | {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers)
        # No proxy that the environment names comes between us and this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=timeout_s) as answer:
            return answer.read()


def command_line(arguments):
    """["--dtype=bfloat16", "--no-enable-prefix-caching", ...]; None is left out, dicts and lists become JSON."""
    words = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words.append(f"--{flag}={json.dumps(value) if isinstance(value, dict | list) else value}")
    return words


def server_environment(gpu_entry, api_key):
    """The server's environment: the job's own, what an engine on this device needs, and the key."""
    added = engine_environment(gpu_entry) | {
        "VLLM_API_KEY": api_key,
        "VLLM_SERVER_DEV_MODE": "1",  # /collective_rpc
        # 0, which an engine in our own process wants, would put a server's worker into its engine core.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    }
    if added.get("VLLM_CPU_OMP_THREADS_BIND") == "nobind":
        added["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"  # see serve.py
    return dict(os.environ) | added


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stop(process):
    """End the server and every process below it."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        family = []
    process.terminate()
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in psutil.wait_procs(family, timeout=1)[1]:
        with contextlib.suppress(psutil.Error):
            child.kill()
