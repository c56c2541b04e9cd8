"""What a person should see at once: to the job's log, and to the console that rules keep open beside it."""

import contextlib
import os
import sys


def say(text):
    """One message on stderr, which rules send to a log, and on the descriptor that QUANTBENCH_CONSOLE names, if any."""
    line = f"{text}\n"
    sys.stderr.write(line)
    sys.stderr.flush()
    if os.environ.get("QUANTBENCH_CONSOLE"):
        with contextlib.suppress(OSError, ValueError):
            os.write(int(os.environ["QUANTBENCH_CONSOLE"]), line.encode())
