"""One run undisturbed and one killed at random times, forked from what is imported.

    python tests/helpers/killed_run.py DIRECTORY DATA_DIR KILLS STEPS

Of the kills, half come while a snapshot or a checkpoint is being written.

Prints where each kill came: the step of the last line logged before it.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from driven_run import arguments, train

# Before forking: every start then takes a second rather than five.
import experiments.train  # noqa: F401


def logged(run):
    """The step of the last whole line of the log."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else -1


def start(run, data_dir, steps):
    """The process id of training."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    log = os.open(f"{run}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 1
    try:
        train(arguments(run, data_dir, steps))
        status = 0
    except SystemExit as leaving:
        status = leaving.code
    finally:
        os._exit(status)


WRITING = {"snapshot": "snapshots/.*.partial", "checkpoint": "checkpoints/*-tmp"}


def kill_in_write(pid, run, what):
    """Kills the process once it is seen writing; whether it then still was."""
    while not list(run.glob(WRITING[what])):
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            return False
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return bool(list(run.glob(WRITING[what])))


def kill_somewhere(pid, run, rng, steps, kills):
    """Kills the process while it starts, or a little after a given step."""
    if rng.random() < 0.2:
        time.sleep(rng.uniform(0, 3))
    else:
        # On average half of what would bring the last kill to the end.
        goal = logged(run) + rng.uniform(0, steps / kills)
        while logged(run) < goal and os.waitpid(pid, os.WNOHANG) == (0, 0):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.06))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def main():
    directory, data_dir, kills, steps = Path(sys.argv[1]), *sys.argv[2:]
    kills, steps = int(kills), int(steps)
    # Unseeded: other places at every run of the test; a failure prints them.
    rng = random.Random()
    for name in ("undisturbed", "killed"):
        run = directory / name
        for turn in range(kills if name == "killed" else 0):
            pid = start(run, data_dir, steps)
            what = {1: "snapshot", 3: "checkpoint"}.get(turn % 4, "")
            if not what:
                kill_somewhere(pid, run, rng, steps, kills)
            elif not kill_in_write(pid, run, what):
                what = f"after {what}"
            print("killed", what, "at step", logged(run), flush=True)
        _, status = os.waitpid(start(run, data_dir, steps), 0)
        assert status == 0, (name, Path(f"{run}.log").read_text()[-2000:])


if __name__ == "__main__":
    main()
