"""What is there to be damaged: a small study, its data, snapshots of the original code."""

import contextlib
import json
import shutil
import sys
from pathlib import Path
from unittest import mock

import driven_run
import numpy as np
import pickle_writer

ROOT = Path(__file__).parents[2]
DIGITS = f"{ROOT}/configs/config_g.py:digits"
STEPS, STOP = 40, 34
DONE, BEGUN = "study/done-seed0", "study/begun-seed0"
STUDY = """
from edm_jax.studies import RunSpec

def runs(workload):
    fields = {fields}
    return [RunSpec(name, {config!r}, fields) for name in ("done", "begun")]
"""


def arguments(run: str, data: str, *more: str) -> list[str]:
    """What train.py is given for the small runs."""
    return driven_run.arguments(run, data, STEPS, *driven_run.LITTLE, *more)


def make(base: Path) -> None:
    """Makes all of it in an empty directory, in this process."""
    from experiments import evaluate, reconstruct, sample, sweep, train

    data, done, begun = base / "data", base / DONE, base / BEGUN
    _command(train.main, *arguments(str(done), str(data)))
    _command(evaluate.main, f"--run={done}")
    _command(reconstruct.main, f"--run={done}", "--sigma_rel=0.07")
    _command(sample.main, f"--run={done}", "--seeds=0-3")
    _command(sweep.main, f"--run={done}", "--sigma_rel=0.05,0.08", "--kinds=lengths")
    _interrupted(done)
    _begin(begun, data)
    for run in (done, begun):
        _accompany(run)
    # A data set that no code describes: its files alone do.
    shutil.copytree(data / "digits", data / "mine")
    mine = data / "mine" / "1.0.0"
    for path in mine.glob("digits-*"):
        path.rename(path.with_name(path.name.replace("digits", "mine")))
    info = mine / "dataset_info.json"
    info.write_text(info.read_text().replace('"name": "digits"', '"name": "mine"'))
    _write_user_files(base / "user", data)
    _write_pickles(base / "pickles")
    with contextlib.chdir(base):
        run = f"--run={base}/pickles"
        _command(reconstruct.main, run, f"--config={DIGITS}", "--sigma_rel=0.07")


def _command(main, *arguments: str) -> None:
    with mock.patch.object(sys, "argv", ["command", *arguments]):
        main()


def _begin(run: Path, data: Path) -> None:
    """A run that was asked to stop during a step."""
    from edm_jax.train import log
    from experiments import train

    with mock.patch.object(log.TrainingLog, "dispatched", log.TrainingLog.dispatched):
        driven_run.stop_at(STOP)
        try:
            _command(train.main, *arguments(str(run), str(data)))
        except SystemExit as stop:
            assert stop.code == train.PREEMPTED


def _interrupted(run: Path) -> None:
    """Leaves a partial output and a journal, as a kill of reconstruct.py does."""
    from edm_jax.ema import snapshots
    from experiments import reconstruct

    stop = mock.patch.object(snapshots.Writer, "finish", side_effect=KeyboardInterrupt)
    try:
        with stop:
            _command(reconstruct.main, f"--run={run}", "--sigma_rel=0.06,0.07")
    except KeyboardInterrupt:
        return
    raise AssertionError("reconstruct.py was not interrupted")


def _accompany(run: Path) -> None:
    """What launchers write beside a run."""
    (run / "log.txt").write_text("Stores 4 snapshots\nTrained.\n" * 20)
    (run / "slurm.json").write_text('{"job": "12_0"}\n')
    change = {"nimg": 320, "changes": {"optimizer.beta1": [0.8, 0.9]}}
    hash_ = "c0ffee" * 3
    history = {"config_hash": hash_[:16], "changes": [change]}
    (run / "changes.json").write_text(json.dumps(history))


def _write_user_files(user: Path, data: Path) -> None:
    user.mkdir()
    shutil.copy(ROOT / "configs" / "config_g.py", user / "my_config.py")
    made = arguments("", str(data))
    fields = dict(each[9:].split("=", 1) for each in made if each[:9] == "--config.")
    config = str(ROOT / "configs" / "config_g.py:digits-tiny")
    (user / "my_study.py").write_text(STUDY.format(fields=fields, config=config))
    (user / "table.csv").write_text("0,0\n320,1\n640,0.5\n")
    (user / "mine.py").write_text("def late(nimg):\n    return nimg**2 + 0 * nimg\n")


def _write_pickles(directory: Path) -> None:
    from edm_jax import original
    from edm_jax.original import mapping

    directory.mkdir()
    rng = np.random.default_rng(0)
    net = original.OriginalNetwork(8, 1, 10, 16, (1, 2), 1, (4,))
    for kimg in (1048, 2097):
        for std in (0.05, 0.10):
            made = {
                slot.name: rng.standard_normal(slot.shape).astype(np.float16)
                for slot in mapping.slots(net)
            }
            name = f"edm2-digits-{kimg:07d}-{std:.3f}.pkl"
            whole = pickle_writer.snapshot(pickle_writer.tree(made))
            (directory / name).write_bytes(whole)
