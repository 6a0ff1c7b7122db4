"""Reads run directories: checks every field once, and names damaged files.

The fields of a `Run` have their declared types. A missing file, as in a run that died or
is not finished, reads as empty; so does a damaged one, which `Run.damage` names.
"""

import io
import os
import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from edm_jax import files
from edm_jax.report.fields import Fields, few, in_range, one_line, opened
from edm_jax.report.metrics import numbers, read_metrics
from edm_jax.report.runs import Damage, Evaluation, Json, Run, Status
from edm_jax.runs import schema
from edm_jax.runs.directory import FREE

TAIL_LINES = 30
TAIL_BYTES = 32_768  # of a log, whose lines may be long
IMAGE_BYTES, IMAGE_PIXELS, IMAGE_SIDE = 64_000_000, 50_000_000, 16_383


def load_run(path: Path) -> Run:
    """Reads one run directory.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"There is no run directory {path}: check the path.")
    damage: list[Damage] = []
    faults: dict[str, list[str]] = {}

    def fields(name: str, read: Callable[[Path], Json] = files.read_json) -> Fields:
        value = opened(path / name, read, damage, {})
        return Fields(value, faults.setdefault(name, []))

    config, provenance = fields("config.json", _config), fields("provenance.json")
    status, changes = fields("status.json"), fields("changes.json")
    metrics = path / "metrics.jsonl"
    logs, alerts = read_metrics(metrics, damage, faults.setdefault(metrics.name, []))
    *_, parent, name = ["", *Path(os.path.realpath(path)).parts]
    found = Run(
        path=path,
        name=one_line(path.name or name),
        parent=one_line(parent),
        letter=config.text("letter").lower(),
        title=config.text("title") or one_line(path.name),
        workload=config.text("workload"),
        seed=config.count("seed"),
        halflife_rampup=config.number("ema", "halflife_rampup") or 0.0,
        data=provenance.object("data") or None,
        params=provenance.count("params"),
        codes=_codes(provenance),
        command=provenance.texts("command"),
        start_time=provenance.text("start_time"),
        recorded_study=provenance.text("study", "name"),
        recorded_variant=provenance.text("study", "variant"),
        status=_status(status),
        evaluation=_evaluation(path, fields("evaluation.json")),
        files={"config": config.value, "status": status.value}
        | {"provenance": provenance.value},
        logs=logs,
        alerts=alerts,
        samples=opened(path / "samples.png", _image, damage, None),
        changed_fields=_changed(changes),
        log_tail=opened(path / "log.txt", _tail, damage, ""),
        damage=damage,
    )
    damage += [Damage(n, f"is damaged: {few(f)}") for n, f in faults.items() if f]
    return found


def _changed(changes: Fields) -> list[str]:
    """The fields of the config that were changed during training."""
    found = [each.object("changes") for each in changes.objects("changes")]
    return sorted({one_line(name) for each in found for name in each})


def _status(fields: Fields) -> Status:
    return Status(
        state=fields.text("state"),
        stage=fields.text("stage"),
        message=fields.text("message"),
        nimg=fields.count("nimg"),
        total_nimg=fields.count("total_nimg"),
        best_nimg=fields.count("best_nimg"),
        images_per_s=fields.number("images_per_s"),
    )


def _config(path: Path) -> Json:
    """A run's config, upgraded to the current schema."""
    return schema.upgrade(files.read_json(path))


def _codes(provenance: Fields) -> list[str]:
    """Commits of a run's starts, with a hash of uncommitted changes."""
    found: dict[str, None] = {}
    for start in [*provenance.objects("starts"), provenance]:
        commit, changes = start.text("git_commit"), start.text("git_changes")
        if commit:
            found[f"{commit}, changes {changes}" if changes else commit] = None
    return list(found)


def _evaluation(run: Path, fields: Fields) -> Evaluation | None:
    if not fields.value:
        return None
    values = numbers(fields.value, [])
    for keys in ("best", "loss"), ("best", "sigma_rel"), ("raw_loss",):
        fields.number(*keys)
    for key in "untrained_loss", "pixel_frechet", "pixel_frechet_floor", "images_per_s":
        fields.number(key)

    def pairs(key: str, first: str) -> np.ndarray:
        found = [(p.number(first), p.number("loss")) for p in fields.objects(key)]
        each = np.array(found, np.float64).reshape(-1, 2)  # None becomes NaN
        return each[np.isfinite(each).all(axis=1)]

    sweep, averages = pairs("sweep", "sigma_rel"), pairs("traditional", "halflife_mimg")
    try:
        time = (run / "evaluation.json").stat().st_mtime
    except OSError:  # removed since it was read
        time = 0.0
    return Evaluation(
        nimg=fields.count("nimg"),
        values={
            k: float(in_range(np.array(v))) for k, v in values.items() if v is not None
        },
        sweep=sweep[sweep[:, 0].argsort()],
        traditional=[(h, v) for h, v in averages.tolist() if h],
        time=time,
    )


def _image(path: Path) -> bytes:
    """The bytes of a PNG; raises Damaged unless it is one image of a sane size."""
    data = files.read_bytes(path, IMAGE_BYTES)
    # The header holds both sides, so a huge image is refused before decoding.
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    if max(width, height) > IMAGE_SIDE or width * height > IMAGE_PIXELS:
        raise files.Damaged(
            path, f"is damaged: it claims {width:,} × {height:,} pixels"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                moving = getattr(image, "is_animated", False)
                image.load()
    except Exception:  # noqa: BLE001 (Pillow raises errors of every kind)
        raise files.Damaged(path, "is damaged: it is not a whole PNG") from None
    if moving:
        raise files.Damaged(path, "is damaged: it is an animation, not one image")
    return data


def _tail(path: Path) -> str:
    """The last lines of a log; '\ufffd' replaces bytes that are not UTF-8."""
    with files.open_regular(path) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        text = file.read(TAIL_BYTES).decode(errors="replace")
    lines = [line.rstrip() for line in text.splitlines()]
    return "\n".join([line for line in lines if line][-TAIL_LINES:])


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Expands studies to their runs, which hold config.json or status.json.

    A directory with only a log or a lock is a waiting run. A directory that cannot be
    read counts as a run, too.

    Raises:
        FileNotFoundError: a path is not a run and contains none.
    """
    found: dict[str, Path] = {}  # by real path, so that each is listed once
    for path in paths:
        inside = [path] if _is_run(path) else sorted(filter(_is_run, _inside(path)))
        if not inside:
            raise FileNotFoundError(
                f"{path} is not a run and contains none: give a study directory, or run "
                "directories with a config.json."
            )
        for run in inside:
            found.setdefault(os.path.realpath(run), run)
    return list(found.values())


def _inside(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError:  # a file, or nothing
        return []


def _is_run(path: Path) -> bool:
    if not path.is_dir():
        return False
    try:
        names = os.listdir(path)
    except OSError:  # count it, so that it is not overlooked
        return True
    waits = [re.fullmatch(r"log\.txt|(.*\.)?lock", name) for name in names]
    return bool({"config.json", "status.json"} & set(names) or names and all(waits))


def identity(config: Json) -> Json:
    """A config without its seed and the fields on how and where the run executes."""

    def kept(fields: Json, prefix: str) -> Json:
        return {
            key: kept(value, f"{prefix}{key}.") if isinstance(value, dict) else value
            for key, value in fields.items()
            if f"{prefix}{key}" not in FREE | {"seed"}
        }

    return kept(config, "")
