"""Whatever a job starts ends with the job, however the job ends.

    if __name__ == "__main__":
        supervised(main)

forks: the child runs `main` in a session of its own, the parent stays as its supervisor. An engine or a server starts
processes that start processes, some in sessions of their own; the supervisor is their "subreaper" (prctl(2)), so the
kernel hands it every orphan among them and none gets out of sight.

Snakemake runs a job as `bash -c '...'`. When Snakemake is killed outright nobody tells that bash, so the supervisor
watches its ancestors up to the nearest Snakemake (without one: only its parent) and ends everything when one is gone.
The Snakemakes of a Slurm job, which are such ancestors, watch their own parent: `end_with_parent`.

Linux only. Imports the standard library and psutil, nothing heavier.
"""

import contextlib
import ctypes
import errno
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import psutil

from quantbench import scratch
from quantbench.console import say
from quantbench.errors import UserError

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
WATCH_S = 0.5
GRACE_S = 5.0  # between SIGTERM and SIGKILL; a vLLM server needs 3 s to leave in good order


def supervised(main):
    """Run `main()` in a child, end every process it left behind, and exit with its status.

    Exits with what main returned or passed to sys.exit, 1 after a traceback, 2 for a UserError (shown as one line
    "error: ..."), and 128 + N when signal N ended it or SIGTERM's 143 when an ancestor died.
    """
    scratch.announce()
    ancestors = watched_ancestors()
    ends = {s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ends | {signal.SIGCHLD})
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    sys.stdout.flush()
    sys.stderr.flush()
    supervisor = os.getpid()
    child = os.fork()
    if child == 0:
        os.setsid()
        die_with_parent(supervisor, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        sys.exit(_run(main))
    os._exit(_supervise(child, ancestors, ends))


def _run(main):
    try:
        return main()
    except UserError as error:
        say(f"error: {error}")
        return 2
    except Exception as error:
        traceback.print_exc()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" for {error.filename}" if error.filename else ""
            say(f"error: {error.strerror}{where}: make room and run the same command again")
            return 1
        first_line = (str(error).splitlines() or [""])[0]
        say(f"error: {type(error).__name__}: {first_line}; the whole log: {os.environ.get('QUANTBENCH_LOG', 'above')}")
        return 1


def _supervise(child, ancestors, ends):
    """Wait for the first of: the child's end, a signal, an ancestor's death. Return the exit status."""
    status = None
    while status is None:
        received = signal.sigtimedwait(ends | {signal.SIGCHLD}, WATCH_S)
        status = reap(child)
        if status is None and received and received.si_signo in ends:
            status = 128 + received.si_signo
        elif status is None and not all(alive(process) for process in ancestors):
            _say("the process that started this job is gone: ending the job")
            status = 128 + signal.SIGTERM
    kill_descendants(ends, GRACE_S)
    # Nobody is left to write into it.
    scratch.remove()
    return status


def reap(child):
    """Collect every ended child, adopted ones too. Returns the exit status of `child` if it was among them."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            if ended[0] == child:
                code = os.waitstatus_to_exitcode(ended[1])
                status = code if code >= 0 else 128 - code
    return status


def kill_descendants(ends, grace_s):
    """SIGTERM to every process below this one, SIGKILL after `grace_s` or at a second signal, until none is left."""
    kill_at = time.monotonic() + grace_s
    complain_at = kill_at + 10
    asked = set()
    while True:
        reap(None)
        left = [process for process in psutil.Process().children(recursive=True) if alive(process)]
        if not left:
            return
        for process in left:
            with contextlib.suppress(psutil.Error):
                if time.monotonic() >= kill_at:
                    process.kill()
                elif process not in asked:
                    process.terminate()
        asked.update(left)
        if time.monotonic() >= complain_at:
            _say(f"still waiting for killed processes: {', '.join(str(process.pid) for process in left)}")
            complain_at += 60
        received = signal.sigtimedwait(ends | {signal.SIGCHLD}, 0.05)
        if received and received.si_signo in ends:
            kill_at = 0


def watched_ancestors():
    """The processes from this one's parent up to the nearest Snakemake; the parent alone when there is none."""
    try:
        ancestors = psutil.Process().parents()
    except psutil.Error:
        return []
    for position, process in enumerate(ancestors):
        with contextlib.suppress(psutil.Error):
            if is_snakemake(process.cmdline()):
                return ancestors[: position + 1]
    return ancestors[:1]


def is_snakemake(command):
    """Whether an argument list is Snakemake's: /path/bin/snakemake or python -m snakemake.

    A whole word is asked for, because the `bash -c '...'` of a job may name a folder that has "snakemake" in its name.
    """
    return any(Path(word).name == "snakemake" for word in command if not any(c.isspace() for c in word))


def alive(process):
    """False for a process that ended, is a zombie, or whose number now belongs to another (psutil compares starts)."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def die_with_parent(parent, signal_number):
    """Ask the kernel to send this process a signal when its parent ends; call it in the child, right after the fork."""
    prctl(PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:  # it ended before we could ask
        os.kill(os.getpid(), signal_number)


def end_with_parent():
    """Watch this process's parent from a thread, and end this process at once when the parent is gone.

    For the two Snakemakes of a Slurm job, the batch script's and the one in its step. Slurm asks all of a job's processes
    to end; the script does, while a Snakemake first waits for its job, now and then for good. A Slurm that knows processes by
    their parents (proctrack/linuxproc) and not by a cgroup then sees nothing left to kill.
    """
    parent = os.getppid()

    def watch():
        # Not die_with_parent: the kernel counts the thread that forked, and slurmstepd's may end before slurmstepd.
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end_with_parent", daemon=True).start()


def prctl(option, value):
    if _LIBC.prctl(option, ctypes.c_ulong(int(value)), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


# Loaded here, not in `prctl`: after a fork, dlopen may wait for a lock that another thread held.
_LIBC = ctypes.CDLL(None, use_errno=True)


def _say(message):
    # Snakemake's end may have closed the pipe behind stderr.
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr, flush=True)
