"""A real Slurm on one machine: five nodes, four GPU types that are /dev/null, all as whoever calls, below one folder.

    apt-get install slurm-wlm munge                                   # Debian or Ubuntu; root or not afterwards, no systemd
    apt-get install slurmdbd slurm-wlm-mysql-plugin mariadb-server-core mariadb-client-core           # for --accounting

    eval "$(python tests/slurm/cluster.py up [--accounting] DIR)"     # sbatch, squeue, ... of this shell are now the cluster's
    sinfo
    python tests/slurm/cluster.py stop DIR slurmctld                  # or any name of `daemons`, such as a node's
    python tests/slurm/cluster.py start DIR slurmctld
    python tests/slurm/cluster.py down DIR

Ports and sockets are the folder's own, so clusters live side by side. Logs are in DIR/log, ended jobs in DIR/jobs.txt.
"""

import argparse
import os
import pwd
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

# Names of programs and of the Debian packages that bring them.
PROGRAMS = {"slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "munged": "munge"}
ACCOUNTING_PROGRAMS = {
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server-core",
    "mariadb-install-db": "mariadb-server-core",
}
# Of another package than slurmdbd, which doesn't start without it.
ACCOUNTING_PLUGIN = "accounting_storage_mysql.so", "slurm-wlm-mysql-plugin"
# Daemons are in sbin, which is not in everybody's PATH.
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/usr/bin"])
CLIENTS = ("sacct", "sacctmgr", "salloc", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun", "sreport")
GPUS = ("h200", "h100", "a100", "l40s")
LONGEST_SOCKET = 107
GPUS_PER_NODE = 2
NODES = {f"{name}n1": name for name in (*GPUS, "cpu")}
WITHIN_S = 60


def missing_packages(accounting=False):
    """Debian packages whose programs are not here."""
    programs = PROGRAMS | (ACCOUNTING_PROGRAMS if accounting else {})
    missing = {package for program, package in programs.items() if not shutil.which(program, path=SEARCH)}
    plugin, package = ACCOUNTING_PLUGIN
    if accounting and not any(Path("/usr/lib").glob(f"*/slurm*/{plugin}")):
        missing.add(package)
    return sorted(missing)


def slurm_conf(folder, ports, user, accounting):
    """Each setting with its reason."""
    storage = "accounting_storage/none"
    if accounting:
        # TRES: typed GPUs in the records. Slurm refuses to count GPUs without a database.
        storage = f"""accounting_storage/slurmdbd
AccountingStorageTRES=gres/gpu,{",".join(f"gres/gpu:{name}" for name in GPUS)}
JobAcctGatherType=jobacct_gather/linux
AccountingStorageHost=localhost
AccountingStoragePort={ports["slurmdbd"]}
# Not a password: where munge listens, which AuthInfo does not tell the database's side.
AccountingStoragePass={folder}/munge.socket"""
    nodes = "\n".join(
        f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[node]} CPUs=16 RealMemory=64000 State=UNKNOWN"
        + (f" Feature={name} Gres=gpu:{name}:{GPUS_PER_NODE}" if name in GPUS else "")
        for node, name in NODES.items()
    )
    partitions = "\n".join(f"PartitionName={name} Nodes={node} PriorityTier=1" for node, name in NODES.items())
    # Where a job goes that names no partition.
    partitions = partitions.replace("PartitionName=cpu", "PartitionName=cpu Default=YES")
    return f"""ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports["slurmctld"]}
# `start` writes the process ids that it starts; a node would write its own only after it registered.
SlurmctldPidFile={folder}/state/slurmctld.pid
SlurmdPidFile={folder}/state/%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
# As oneself, so that no account has to be made.
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A requeued job starts again when its old credential has run out: 10 s, not 2 minutes.
AuthInfo=socket={folder}/munge.socket,cred_expire=10
# No cgroups, no MPI, no switch: a container has none of them.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
# Jobs share nodes by cores, memory and GPUs, as on most clusters; a node may claim 16 cores on a machine of two.
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
AccountingStorageType={storage}
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs.txt
# Seconds for which squeue and scontrol still know an ended job; tests read there where and when it ran.
MinJobAge=1800
# A dead node is noticed, and a job that ignores SIGTERM killed, within a test's patience.
SlurmctldTimeout=30
SlurmdTimeout=30
KillWait=5
ReturnToService=2
# Partition `urgent` takes GPUs from the others, whose jobs run again.
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# Schedule within a second.
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
# Sites tell types by partitions, by GPUs' types in one partition, or by nodes' features: here are all three.
{nodes}
{partitions}
PartitionName=gpu Nodes={",".join(node for node, name in NODES.items() if name in GPUS)} PriorityTier=1
PartitionName=urgent Nodes={",".join(NODES)} PriorityTier=10
"""


def gres_conf(folder):
    """Files that are devices: with a bare count a node is invalid, with plain files CUDA_VISIBLE_DEVICES stays empty."""
    lines = [
        f"NodeName={node} Name=gpu Type={name} File={folder}/gpus/{name}/nvidia[0-{GPUS_PER_NODE - 1}]"
        for node, name in NODES.items()
        if name in GPUS
    ]
    return "\n".join(["AutoDetect=off", *lines, ""])


CGROUP_CONF = """CgroupAutomount=no
ConstrainCores=no
ConstrainDevices=no
ConstrainRAMSpace=no
ConstrainSwapSpace=no
"""


def slurmdbd_conf(folder, ports, user):
    return f"""AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdPort={ports["slurmdbd"]}
SlurmUser={user}
PidFile={folder}/state/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={user}
StorageLoc=slurm
"""


def free_ports(names):
    """{name: a port nobody listens on}, below those the system gives to outgoing connections."""
    ports = {}
    while len(ports) < len(names):
        port = random.randrange(10000, 30000)
        with socket.socket() as probe:
            if port not in ports.values() and probe.connect_ex(("127.0.0.1", port)) != 0:
                ports[names[len(ports)]] = port
    return ports


def daemons(folder):
    """{name: command} in starting order. In the foreground, so that each is the process we started and logs where we say."""
    munge = f"munged --foreground --force --key-file={folder}/munge.key --socket={folder}/munge.socket"
    munge += f" --pid-file={folder}/state/munged.pid --seed-file={folder}/state/munge.seed"
    commands = {"munged": munge}
    if (folder / "slurmdbd.conf").exists():
        commands["mariadbd"] = (
            f"mariadbd --no-defaults --datadir={folder}/mariadb --socket={folder}/mariadb.socket --skip-networking"
            # Refuses to be root unless told.
            f" --user={user_name()} --pid-file={folder}/state/mariadbd.pid"
        )
        commands["slurmdbd"] = "slurmdbd -D"
    commands["slurmctld"] = f"slurmctld -D -f {folder}/slurm.conf"
    return commands | {node: f"slurmd -D -f {folder}/slurm.conf -N {node}" for node in NODES}


def user_name():
    return pwd.getpwuid(os.getuid()).pw_name


def environment(folder):
    """Where the daemons and the clients' wrappers find this cluster's files."""
    own = {"SLURM_CONF": f"{folder}/slurm.conf", "MYSQL_UNIX_PORT": f"{folder}/mariadb.socket"}
    return {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")} | {"PATH": SEARCH} | own


def write_files(folder, accounting):
    for name in ("bin", "log", "state", *(f"spool/{node}" for node in NODES), *(f"gpus/{name}" for name in GPUS)):
        (folder / name).mkdir(parents=True)
    names = ["slurmctld", "slurmdbd", *NODES]
    ports = free_ports(names)
    (folder / "slurm.conf").write_text(slurm_conf(folder, ports, user_name(), accounting))
    (folder / "gres.conf").write_text(gres_conf(folder))
    (folder / "cgroup.conf").write_text(CGROUP_CONF)
    secrets = {"munge.key": os.urandom(128)}
    if accounting:
        secrets["slurmdbd.conf"] = slurmdbd_conf(folder, ports, user_name()).encode()
    for name, content in secrets.items():
        (folder / name).touch(mode=0o600)
        (folder / name).write_bytes(content)
    for name in GPUS:
        for i in range(GPUS_PER_NODE):
            (folder / "gpus" / name / f"nvidia{i}").symlink_to("/dev/null")
    for name in CLIENTS:
        # Snakemake's executor drops SLURM_CONF inside jobs, so it cannot come from the environment.
        script = f'#!/bin/sh\nSLURM_CONF={shlex.quote(str(folder))}/slurm.conf exec {shutil.which(name, path="/usr/bin")} "$@"\n'
        (folder / "bin" / name).write_text(script)
        (folder / "bin" / name).chmod(0o755)


def up(folder, accounting=False):
    """Start everything in a new folder; every node is idle when this returns."""
    if missing := missing_packages(accounting):
        raise SystemExit(f"needs the Debian packages {' '.join(missing)}")
    write_files(folder, accounting)
    if accounting:
        install = ["mariadb-install-db", "--no-defaults", f"--datadir={folder}/mariadb", f"--user={user_name()}"]
        install += [
            "--auth-root-authentication-method=socket",
            f"--auth-root-socket-user={user_name()}",
            "--skip-test-db",
        ]
        with open(folder / "log" / "mariadb-install-db.log", "w") as log:
            subprocess.run(install, env=environment(folder), stdout=log, stderr=log, check=True)
    for name in daemons(folder):
        start(folder, name)
    wait_until(lambda: states(folder) == dict.fromkeys(NODES, "idle"), f"nodes idle; see {folder}/log")


def start(folder, name):
    """One daemon of `daemons`; returns when it answers, a node when its process runs."""
    with open(folder / "log" / f"{name}.log", "a") as log:
        started = subprocess.Popen(
            daemons(folder)[name].split(),
            env=environment(folder),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    (folder / f"{name}.pid").write_text(str(started.pid))
    answers = {
        "munged": lambda: (folder / "munge.socket").exists(),
        "mariadbd": lambda: (folder / "mariadb.socket").exists(),
        "slurmdbd": lambda: client(folder, "sacctmgr", "-n", "list", "cluster").returncode == 0,
        "slurmctld": lambda: client(folder, "scontrol", "ping").returncode == 0,
    }
    ready = answers.get(name, lambda: True)
    wait_until(lambda: started.poll() is not None or ready(), f"{name} started; see {folder}/log/{name}.log")
    if started.poll() is not None:
        raise SystemExit(f"{name} ended at once; see {folder}/log/{name}.log")


def stop(folder, name, sent=signal.SIGTERM):
    """End a daemon and wait for it; no error where it does not run. Jobs of a stopped node go on, as with a real one."""
    if pid := running(folder, name):
        os.kill(pid, sent)
        wait_until(lambda: not running(folder, name), f"{name} stopped")


def running(folder, name):
    """The daemon's process id, or None."""
    try:
        pid = int((folder / f"{name}.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (OSError, ValueError):
        return None
    # Ids are given out again; one that ended but whose parent has not asked has no command line.
    return pid if Path(daemons(folder)[name].split()[0]).name in command else None


def down(folder):
    """End jobs, then daemons in reverse; the folder stays, with its logs."""
    if running(folder, "slurmctld"):
        client(folder, "scancel", "--user", user_name())
        wait_until(lambda: not client(folder, "squeue", "-h").stdout.strip(), "jobs ended", fail=False)
    for name in reversed(daemons(folder)):
        stop(folder, name)


def client(folder, *command):
    return subprocess.run([folder / "bin" / command[0], *command[1:]], capture_output=True, text=True)


def states(folder):
    """{node: state}, as `sinfo` says."""
    return dict(line.split() for line in client(folder, "sinfo", "-h", "-N", "-o", "%N %T").stdout.splitlines())


def wait_until(condition, what, fail=True):
    until = time.monotonic() + WITHIN_S
    while not condition():
        if time.monotonic() > until:
            if fail:
                raise SystemExit(f"{what}: not within {WITHIN_S} s")
            return
        time.sleep(0.05)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["up", "down", "start", "stop"])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("daemon", nargs="?", help="for start and stop: munged, slurmctld, h100n1, ...")
    parser.add_argument("--accounting", action="store_true", help="up: with slurmdbd and MariaDB")
    parser.add_argument("--kill", action="store_true", help="stop: kill -9")
    args = parser.parse_args(argv)
    # Daemons work in their own folder.
    folder = args.folder.resolve()
    # <folder>/spool/<node>/<node>_<job>.<step>, as long as they get.
    if len(f"{folder}/spool/h200n1/h200n1_1000.4294967291") > LONGEST_SOCKET:
        sys.exit(
            f"{folder}: choose a shorter folder: Slurm's sockets below it would have longer paths than Linux allows"
        )
    if args.command in ("start", "stop") and args.daemon not in daemons(folder):
        parser.error(f"{args.command} DIR takes one of {', '.join(daemons(folder))}")
    if args.command == "up":
        up(folder, args.accounting)
        print(f"export PATH={shlex.quote(str(folder))}/bin:$PATH")
    elif args.command == "down":
        down(folder)
    elif args.command == "start":
        start(folder, args.daemon)
    else:
        stop(folder, args.daemon, signal.SIGKILL if args.kill else signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
