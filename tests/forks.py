"""Python processes with their heavy imports done: importing vLLM or llm-compressor takes longer than most tests of them.

    with Forks(python, ["vllm"], environment) as forks:
        done = forks.run("script.py", "--option=1")         # as subprocess.run([python, "script.py", "--option=1"], ...)

One process of that interpreter imports the modules and then forks for each run: memory, standard streams, variables and
working folder of a run are its own. A variable that an import reads has to be in `environment`.

Run as a file by that interpreter, which knows nothing of this project: the standard library alone.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path


class Forks:
    def __init__(self, python, modules, environment):
        self.python, self.environment = python, dict(environment)
        self.process = subprocess.Popen(
            [python, __file__, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
            start_new_session=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def kill(self):
        """End it and the run it is at. Left to itself, it would take a second to take down what it has imported."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def run(self, *arguments, input="", folder=None, timeout_s=600, **variables):
        """`arguments` as on Python's command line, a script first or `-c` and code; `variables` are set besides."""
        with tempfile.TemporaryDirectory() as streams:
            files = {name: str(Path(streams) / name) for name in ("input", "output", "errors")}
            Path(files["input"]).write_text(input)
            request = files | {"arguments": [str(argument) for argument in arguments]}
            request |= {"environment": self.environment | variables, "folder": str(folder or os.getcwd())}
            print(json.dumps(request), file=self.process.stdin, flush=True)
            if not select.select([self.process.stdout], [], [], timeout_s)[0]:
                self.kill()
                raise subprocess.TimeoutExpired(arguments, timeout_s)
            answer = self.process.stdout.readline()
            assert answer, f"{self.python} {__file__} is gone"
            output, errors = (Path(files[name]).read_text() for name in ("output", "errors"))
        return subprocess.CompletedProcess(arguments, int(answer), output, errors)


# --- in the other interpreter -----------------------------------------------------------------------------------------


def serve(modules):
    """Answer requests with their exit status until there are no more; returns in a fork, with what it has to run."""
    # Some modules talk while they are imported.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in modules:
        importlib.import_module(name)
    # What all have in common is nobody's garbage: a run ends in half the time.
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return become(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
    return None


def become(request):
    """Take on everything that makes a process another one; returns its arguments."""
    flags = {"input": os.O_RDONLY, "output": os.O_WRONLY | os.O_CREAT, "errors": os.O_WRONLY | os.O_CREAT}
    for stream, (name, flag) in enumerate(flags.items()):
        opened = os.open(request[name], flag)
        os.dup2(opened, stream)
        os.close(opened)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    return request["arguments"]


if __name__ == "__main__":
    if arguments := serve(sys.argv[1:]):
        if arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            sys.path[0] = ""
            exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = arguments
            sys.path[0] = str(Path(arguments[0]).resolve().parent)
            runpy.run_path(arguments[0], run_name="__main__")
