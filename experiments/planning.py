"""What a launch would do with each run of a study, and opening those that it runs."""

import dataclasses
import functools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import configs
from edm_jax import disk, trainer
from edm_jax.run_dir import RunDir, read_json
from edm_jax.study import RunSpec, claims, slurm
from edm_jax.study.task import Task, is_done

HERE = Path(__file__).resolve().parent
TRAIN, RESUME, DONE, FAILED, HELD = "train", "resume", "done", "failed before", "held"


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run and what a launch does with it; images and bytes are of the whole run."""

    spec: RunSpec
    path: Path
    config: Any
    action: str
    note: str
    nimg: int
    bytes: int

    @property
    def goes(self) -> bool:
        """Whether the launch takes it up."""
        return self.action in (TRAIN, RESUME, HELD)


def plan(
    specs: Sequence[RunSpec],
    directory: Path,
    overrides: Mapping[str, str],
    retry_failed: bool,
    allow: Sequence[str],
) -> list[Plan]:
    """A plan for each run; writes nothing.

    Raises ValueError, with the differences, where a directory holds another config.
    """
    plans, jobs = [], slurm.live_jobs()
    for spec in specs:
        spec = dataclasses.replace(spec, overrides={**overrides, **spec.overrides})
        config = configs.load(spec.config, spec.overrides)
        path = directory / spec.name
        RunDir(path, config, allow, writing=False)
        action, note = _action(path, retry_failed, jobs)
        stored = _bytes(spec.config, _without_seed(spec))
        nimg = trainer.total_steps(config) * config.optimizer.batch_size
        plans.append(Plan(spec, path, config, action, note, nimg, stored))
    return plans


def _without_seed(spec: RunSpec) -> tuple[tuple[str, str], ...]:
    return tuple((k, v) for k, v in spec.overrides.items() if k != "seed")


@functools.cache
def _bytes(reference: str, overrides: tuple[tuple[str, str], ...]) -> int:
    """What a run stores: the same for every seed."""
    wanted = disk.estimate(configs.load(reference, dict(overrides)))
    return wanted.snapshots_total + wanted.checkpoints_total


def _action(path: Path, retry_failed: bool, jobs: set[str]) -> tuple[str, str]:
    status = read_json(path / "status.json")
    if is_done(path):
        return DONE, ""
    if held := claims.holder(path):
        return HELD, f"by {claims.who(held)}"
    if (job := slurm.job_of(path)) in jobs:
        return "queued", f"as SLURM job {job}"
    if status.get("state") == "failed" and not retry_failed:
        return FAILED, str(status.get("message", ""))
    return (RESUME, "") if status.get("nimg") else (TRAIN, "")


def skipped(plans: Sequence[Plan], directory: Path) -> Iterator[str]:
    """A sentence for the runs that are done, and one for each other that stays out."""
    if done := [plan.spec.name for plan in plans if plan.action == DONE]:
        yield f"{directory}: {len(done)} runs are done ({', '.join(done)})."
    for each in plans:
        if not each.goes and each.action != DONE:
            again = "; --retry_failed runs it again" if each.action == FAILED else ""
            note = (
                f": {each.note}" if each.action == FAILED and each.note else each.note
            )
            yield f"{each.path}: {each.action} {note}{again}.".replace(" :", ":")


def open_runs(plans: Sequence[Plan], allow: str, create: bool = True) -> list[Task]:
    """The runs that the launch takes up; creates their directories, as queued."""
    tasks = []
    for each in plans:
        if not each.goes:
            continue
        if create and each.action != HELD:
            fields = [field for field in allow.split(",") if field]
            run = RunDir(each.path, each.config, fields)
            state = run.status["state"]
            run.set_status(state="queued" if state == "failed" else state)
        tasks.append(
            Task(
                each.spec.name,
                str(each.path),
                _commands(each, allow),
                by=f"launcher {os.getpid()}",
                attempts=claims.count(each.path),
            )
        )
    return tasks


def _commands(each: Plan, allow: str) -> list[list[str]]:
    fields = each.spec.overrides.items()
    train = [
        *(f"--config={each.spec.config}", f"--run={each.path}"),
        *(f"--config.{field}={text}" for field, text in fields),
        *([f"--allow={allow}"] if allow else []),
    ]
    return [
        [sys.executable, str(HERE / "train.py"), *train],
        [sys.executable, str(HERE / "evaluate.py"), f"--run={each.path}"],
    ]
