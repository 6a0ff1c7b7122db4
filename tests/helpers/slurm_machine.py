"""A SLURM cluster of this machine alone, for tests: Debian's slurm-wlm, run by root."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")


def missing() -> str:
    """Why there can be no cluster here, or ''."""
    path = os.environ["PATH"] + ":/usr/sbin"
    absent = [d for d in DAEMONS if not shutil.which(d, path=path)]
    absent += [c for c in ("sbatch", "srun", "sinfo") if not shutil.which(c)]
    if absent:
        return f"no {', '.join(absent)} here (Debian's slurm-wlm and munge)"
    return "" if os.geteuid() == 0 else "SLURM's daemons want root"


@contextlib.contextmanager
def cluster(place: Path) -> Iterator[None]:
    """Starts the daemons, and points SLURM's commands at them."""
    host = socket.gethostname().split(".")[0]
    key, munge_socket = place / "munge.key", place / "munge.socket"
    key.write_bytes(os.urandom(64))
    key.chmod(0o600)
    for name in ("state", "spool"):
        (place / name).mkdir()
    conf = place / "slurm.conf"
    conf.write_text(f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={_free_port()}
SlurmdPort={_free_port()}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge_socket}
CredType=cred/munge
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=1
# A job that is queued again waits for no backoff.
SchedulerParameters=bf_interval=1,sched_interval=1,requeue_delay=0
KillWait=5
ReturnToService=2
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
""")
    conf.chmod(0o644)
    place.chmod(0o755)
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    commands = [
        ["/usr/sbin/munged", "--foreground", "--force", f"--key-file={key}"]
        + [f"--socket={munge_socket}", f"--pid-file={place}/munge.pid"]
        + [f"--log-file={place}/munge.log", f"--seed-file={place}/munge.seed"],
        ["/usr/sbin/slurmctld", "-D", "-i"],
        ["/usr/sbin/slurmd", "-D"],
    ]
    with contextlib.ExitStack() as stack:
        for command in commands:
            log = stack.enter_context(open(place / f"{Path(command[0]).name}.out", "w"))
            daemon = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
            stack.callback(_end, daemon)
            time.sleep(1)
        before = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = str(conf)
        try:
            _wait_for_node()
            yield
        finally:
            subprocess.run(["scancel", "--partition=main"], check=False)
            del os.environ["SLURM_CONF"]
            if before:
                os.environ["SLURM_CONF"] = before


def _end(daemon: subprocess.Popen) -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait_for_node() -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = subprocess.run(
            ["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False
        )
        if found.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    raise TimeoutError(f"no idle node: {found.stdout}{found.stderr}")
