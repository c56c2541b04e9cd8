"""supervise.py with real processes: whatever way a job ends, nothing it started is left."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from quantbench.supervise import is_snakemake

SCRIPTS = Path(__file__).parents[1] / "workflow" / "scripts"

# The worst a toolkit does: a process in a session of its own, whose parent has ended; deaf to SIGTERM when asked.
DAEMON = """
    def daemon(deaf=False):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                if deaf:
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                Path("daemon.pid").write_text(str(os.getpid()))
                time.sleep(600)
            os._exit(0)
        os.wait()
        while not (Path("daemon.pid").exists() and Path("daemon.pid").read_text()):
            time.sleep(0.01)
"""


@pytest.fixture
def job(tmp_path):
    """job(body): the command of a supervised script in tmp_path whose main has this body."""

    def write(body):
        text = "import os, signal, subprocess, sys, time\nfrom pathlib import Path\n"
        text += "from quantbench.errors import UserError\nfrom quantbench.supervise import supervised\n"
        text += textwrap.dedent(DAEMON)
        text += "def main():\n" + textwrap.indent(textwrap.dedent(body).strip(), "    ") + "\n"
        text += "if __name__ == '__main__':\n    supervised(main)\n"
        (tmp_path / "job.py").write_text(text)
        return [sys.executable, str(tmp_path / "job.py")]

    return write


def start(command, folder, **more):
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS)}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stderr=subprocess.PIPE, **more)


def wait_for(path):
    until = time.monotonic() + 20
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < until, f"{path.name} never came"
        time.sleep(0.02)
    return int(path.read_text())


def assert_nothing_left(folder, within_s=12):
    """No process works in `folder` any more; every process of these tests does."""
    until = time.monotonic() + within_s
    while left := [p for p in psutil.process_iter() if _works_in(p, folder)]:
        assert time.monotonic() < until, f"left: {[process.cmdline() for process in left]}"
        time.sleep(0.05)


def _works_in(process, folder):
    try:
        return process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ("pass", 0, ""),
        ("return 3", 3, ""),
        ("sys.exit(4)", 4, ""),
        ("raise UserError('no such scheme: int5')", 2, "error: no such scheme: int5\n"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 128 + 9, ""),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 128 + 11, None),
    ],
)
def test_exits_with_the_status_of_main(job, tmp_path, body, status, says):
    process = start(job("daemon()\n" + body), tmp_path)
    assert process.wait(20) == status
    if says is not None:
        assert process.stderr.read() == says
    assert_nothing_left(tmp_path, within_s=0)


def test_a_failing_main_shows_its_traceback(job, tmp_path):
    process = start(job("daemon()\nraise ValueError('boom')"), tmp_path)
    assert process.wait(20) == 1
    said = process.stderr.read()
    assert "Traceback" in said and "boom" in said
    assert_nothing_left(tmp_path, within_s=0)


def test_ctrl_c_reaches_the_process_group_and_leaves_nothing(job, tmp_path):
    process = start(job("daemon(deaf=True)\ntime.sleep(600)"), tmp_path, start_new_session=True)
    wait_for(tmp_path / "daemon.pid")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(20) == 128 + signal.SIGINT
    assert_nothing_left(tmp_path, within_s=0)


def test_a_second_signal_ends_the_grace(job, tmp_path):
    process = start(job("daemon(deaf=True)\ntime.sleep(600)"), tmp_path)
    wait_for(tmp_path / "daemon.pid")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 3  # the daemon ignores SIGTERM: without the second signal it lives 5 s
    assert_nothing_left(tmp_path, within_s=0)


def test_kill_minus_nine_of_snakemake_ends_the_job(job, tmp_path):
    # `; true` keeps bash from turning itself into the job, as the longer command lines of Snakemake do.
    shell = " ".join(job("daemon(deaf=True)\ntime.sleep(600)")) + "; true"
    snakemake = tmp_path / "snakemake"
    snakemake.write_text(f"import subprocess\nsubprocess.run(['bash', '-c', {shell!r}])\n")
    process = start([sys.executable, str(snakemake)], tmp_path)
    wait_for(tmp_path / "daemon.pid")
    bash = psutil.Process(process.pid).children()[0]
    assert bash.name() == "bash"
    process.kill()
    process.wait()
    assert bash.is_running()  # nobody told it
    assert_nothing_left(tmp_path)


def test_a_process_that_hangs_ends_with_its_parent(tmp_path):
    # Deaf to SIGTERM, as a Snakemake that waits for its job, and hanging in a lock, as one that waits for good.
    hangs = """
        import os, signal, threading
        from pathlib import Path
        from quantbench.supervise import end_with_parent
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_with_parent()
        Path("hangs.pid").write_text(str(os.getpid()))
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    """
    (tmp_path / "hangs.py").write_text(textwrap.dedent(hangs))
    script = start(["sh", "-c", f"{sys.executable} hangs.py; true"], tmp_path)
    hanging = psutil.Process(wait_for(tmp_path / "hangs.pid"))
    assert hanging.ppid() == script.pid
    script.kill()
    script.wait()
    _, left = psutil.wait_procs([hanging], timeout=20)
    for process in left:
        process.kill()
    assert not left


def test_kill_minus_nine_of_the_supervisor_ends_main(job, tmp_path):
    process = start(job("Path('main.pid').write_text(str(os.getpid()))\ntime.sleep(600)"), tmp_path)
    wait_for(tmp_path / "main.pid")
    process.kill()
    process.wait()
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (["/opt/bin/python", "/opt/bin/snakemake", "--cores", "2"], True),
        (["python", "-m", "snakemake", "--cores", "2"], True),
        (["bash", "-c", "set -euo pipefail; cd /home/me/snakemake; python workflow/scripts/x.py"], False),
        (["bash", "/home/me/snakemake-workflows/job.sh"], False),
        ([], False),
    ],
)
def test_snakemake_is_known_by_a_whole_word(command, answer):
    assert is_snakemake(command) is answer
