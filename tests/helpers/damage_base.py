"""What is there to be damaged: a small study, data of many kinds, foreign snapshots."""

import contextlib
import io
import json
import shutil
import sys
import zipfile
from pathlib import Path
from unittest import mock

import driven_run
import numpy as np
import pickle_writer
import tiny_features
from PIL import Image

ROOT = Path(__file__).parents[2]
DIGITS = f"{ROOT}/configs/config_g.py:digits"
STEPS, STOP = 40, 34
DONE, BEGUN = "study/done-seed0", "study/begun-seed0"
GUIDED = [
    *("--sigma_rel=0.05", "--kinds=lengths", "--strengths=1,2"),
    *("--samples=4", "--steps=2"),
]
# Data as users have them: a folder, a ZIP of the original code, arrays.
PICTURES = "pictures", "original.zip", "arrays.npz"
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
    from experiments import evaluate, init_config, reconstruct, sample, sweep, train

    data, done, begun = base / "data", base / DONE, base / BEGUN
    _command(train.main, *arguments(str(done), str(data)))
    _command(evaluate.main, f"--run={done}")
    _command(reconstruct.main, f"--run={done}", "--sigma_rel=0.07")
    _command(sample.main, f"--run={done}", "--seeds=0-3")
    _command(sweep.main, f"--run={done}", "--sigma_rel=0.05,0.08", "--kinds=lengths")
    _interrupted(done)
    _begin(begun, data)
    _command(sweep.main, f"--run={done}", f"--guide={begun}", *GUIDED)
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
    _write_pictures(base)
    for name in PICTURES:
        out = f"--out={base}/user/{Path(name).stem}.py"
        _command(init_config.main, f"--data={base}/{name}", out, "--letter=a")
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


def _write_pictures(base: Path) -> None:
    """The same images in each form, their statistics, and the network of these."""
    from edm_jax.evals.features import references
    from edm_jax.evals.frechet import gaussian_fit

    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (12, 8, 8, 3), np.uint8), np.arange(12) % 2
    np.savez(base / "arrays.npz", image=pixels, label=labels)
    (base / "pictures").mkdir()
    with zipfile.ZipFile(base / "original.zip", "w") as archive:
        names = [f"00000/img{i:08}.png" for i in range(12)]
        for name, image in zip(names, pixels, strict=True):
            made = io.BytesIO()
            Image.fromarray(image).save(made, "PNG")
            archive.writestr(name, made.getvalue())
            (base / "pictures" / Path(name).name).write_bytes(made.getvalue())
        listed = {"labels": list(zip(names, labels.tolist(), strict=True))}
        archive.writestr("dataset.json", json.dumps(listed))
    lines = [f"{Path(n).name},{k}\n" for n, k in zip(names, labels, strict=True)]
    (base / "pictures" / "labels.csv").write_text("".join(lines))
    features = base / "features"
    features.mkdir()
    tiny_features.write(features)
    fit = gaussian_fit(rng.standard_normal((40, 6)))
    for name in ("statistics.npz", "statistics.pkl"):
        references.write(features / name, {"fd_effnetlite0": fit})


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
