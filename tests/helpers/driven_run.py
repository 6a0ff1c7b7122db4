"""experiments/train.py in a process of its own, driven by a test.

    python tests/driven_run.py RUN DATA_DIR [--stop_at=STEP] [--OPTION=VALUE ...]

Config G, as small as it gets. --stop_at: asks this process to stop during that step.
"""

import signal
import sys
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


def arguments(run, data_dir, steps, *more):
    """What train.py is given for a run of so many steps."""
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


if __name__ == "__main__":
    run, data_dir, steps, *rest = sys.argv[1:]
    for option in [each for each in rest if each.startswith("--stop_at=")]:
        rest.remove(option)
        stop_at(int(option.partition("=")[2]))
    train(arguments(run, data_dir, int(steps), *rest))
