"""Train one config: python experiments/train.py --config=configs/config_g.py:digits.

The run directory holds all that evaluating and comparing need. Ctrl-C saves and stops;
the same command goes on from there.
"""

import sys
from pathlib import Path

from edm_jax import disk, loop
from edm_jax.run_dir import RunDir
from experiments import cli


def main() -> None:
    """Parse the command line and train."""
    parser = cli.config_parser(__doc__)
    parser.add_argument(
        "--run", type=Path, help="run directory (runs/WORKLOAD-LETTER-seedN)"
    )
    cli.use_compilation_cache()
    options, config = cli.parse_config(parser, None)
    name = f"{config.workload}-{config.letter}-seed{config.seed}"
    run = RunDir(options.run or Path("runs") / name, config)
    print(disk.check(config, run.checkpoints, run.snapshots), file=sys.stderr)
    with cli.progress_bar(cli.RATE) as bar:
        task = bar.add_task(f"config {config.letter.upper()}", total=None, rate=0.0)

        def on_progress(nimg: int, total: int, rate: float) -> None:
            bar.update(task, completed=nimg, total=total, rate=rate)

        try:
            loop.train(config, run, on_progress)
        except loop.Interrupted as stop:
            bar.stop()
            sys.exit(f"train: {stop} The same command goes on from there.")
        except Exception as error:
            run.set_status(state="failed", message=f"{type(error).__name__}: {error}")
            raise
    print(f"Trained {run.path}; next: python experiments/evaluate.py --run={run.path}")


if __name__ == "__main__":
    cli.run(main)
