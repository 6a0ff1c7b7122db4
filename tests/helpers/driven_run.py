"""experiments/train.py in a process of its own, driven by a test.

    python tests/driven_run.py RUN DATA_DIR [--stop_at=STEP] [--OPTION=VALUE ...]

Config G, as small as it gets. --stop_at: asks this process to stop during that step.
--shard_all: no leaf is too small to be sharded.
"""

import atexit
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

BATCH = 16
FIELDS = {
    "network.channel_mult": "(1,)",
    "network.dropout": "0.1",
    "training.log_mimg": 5 * BATCH / 1e6,
    "training.snapshot_mimg": 20 * BATCH / 1e6,
    "training.probe_mimg": 60 * BATCH / 1e6,
    "training.checkpoint_mimg": 12 * BATCH / 1e6,
}


# More of a command line, for runs that are evaluated.
LITTLE = [
    "--config.evaluation.num_heldout=20",
    "--config.evaluation.num_sigmas=1",
    "--config.evaluation.batch_size=20",
    "--config.evaluation.num_samples=4",
    "--config.evaluation.num_steps=2",
    "--config.evaluation.sigma_rels=(0.05,0.08,0.1)",
]


def arguments(run, data_dir, steps, *more):
    """The command line of train.py for a run of `steps` steps."""
    fields = FIELDS | {
        "data.data_dir": str(data_dir),
        "training.duration_mimg": steps * BATCH / 1e6,
    }
    return [
        f"--config={ROOT}/configs/config_g.py:digits-tiny",
        *(f"--config.{name}={value}" for name, value in fields.items()),
        f"--run={run}",
        *more,
    ]


def train(arguments):
    """Runs train.py as its command line does."""
    from experiments import cli, train

    sys.argv = ["train.py", *arguments]
    cli.run(train.main)


def stop_at(step):
    """Makes the loop be asked to stop while that step is under way."""
    from edm_jax.train import log

    dispatched = log.TrainingLog.dispatched

    def signalled(self, now, *rest):
        if now == step:
            signal.raise_signal(signal.SIGTERM)
        return dispatched(self, now, *rest)

    log.TrainingLog.dispatched = signalled


def shard_all():
    """Makes leaves of any size worth sharding: here all are small."""
    from edm_jax.train import parallel

    parallel._SMALLEST_SHARDED = 64


def main(run, data_dir, steps, *rest):
    """The command line of this file."""
    rest = list(rest)
    for option in [each for each in rest if each.startswith("--stop_at=")]:
        rest.remove(option)
        stop_at(int(option.partition("=")[2]))
    if "--shard_all" in rest:
        rest.remove("--shard_all")
        shard_all()
    train(arguments(run, data_dir, int(steps), *rest))


# Processes of tests


def one_device():
    """This process's environment, with as many threads as one device needs."""
    return {**os.environ, "NPROC": "4"}


class Driven:
    """`main` in a process with one device, forked from one that has imported it all.

    So it starts in a third of the time; but for that it is as `subprocess.Popen`.
    """

    def __init__(self, *arguments):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["driven_run", "experiments.train"])
        place = Path(tempfile.mkdtemp(prefix="driven-run-"))
        self._printed = place / "out", place / "err"
        call = [str(each) for each in arguments], one_device(), self._printed
        self._process = context.Process(target=_alone, args=call)
        self._process.start()
        self.pid = self._process.pid

    def poll(self):
        """The exit status; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number):
        """Sends it, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def finish(self, timeout=240):
        """Its exit status, standard output and standard error."""
        self._process.join(timeout)
        if is_late := self.poll() is None:
            self._process.kill()
        printed = [path.read_text() for path in self._printed]
        shutil.rmtree(self._printed[0].parent)
        if is_late:
            raise TimeoutError("".join(printed))
        return self.poll(), *printed


def _alone(arguments, environ, outputs):
    os.environ.clear()
    os.environ.update(environ)
    for stream, output in enumerate(outputs, 1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), stream)
    status = 1
    try:
        main(*arguments)
        status = 0
    except SystemExit as leaving:
        status = leaving.code
    except BaseException:  # noqa: BLE001  as Python ends a program
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
