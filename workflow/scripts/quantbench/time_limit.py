"""End a process that hangs: what waits inside an engine cannot be interrupted from Python, only ended with its process."""

import contextlib
import faulthandler
import os
import threading

# A study's `limits`, where a job has none.
LIMITS = {"start_s": 1800, "point_s": 14400}
# An engine that hangs without letting go of the interpreter is ended by a thread that needs none, and leaves no row.
GRACE_S = 60


@contextlib.contextmanager
def time_limit(seconds, expired):
    """Where the block takes longer, call `expired()` in another thread and end this process with the status it returns.

    What the process has started is not ended here: supervise.py does that.
    """

    def end():
        status = 1
        try:
            status = expired()
        finally:
            os._exit(status)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    with contextlib.suppress(ValueError, OSError):  # standard error is no file
        faulthandler.dump_traceback_later(seconds + GRACE_S, exit=True)
    try:
        yield
    finally:
        timer.cancel()
        faulthandler.cancel_dump_traceback_later()
