"""What a launch would do with each run of a study, and opening those that it runs."""

import dataclasses
import functools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import configs
from edm_jax import files
from edm_jax.cost import disk
from edm_jax.runs import claims
from edm_jax.runs.directory import RunDir, read_json, read_status, update_status
from edm_jax.studies import RunSpec, slurm
from edm_jax.studies.task import Task, is_done
from edm_jax.train.config import RunConfig
from experiments import auto_rate, cli

HERE = Path(__file__).resolve().parent
TRAIN, RESUME, DONE, FAILED, HELD = "train", "resume", "done", "failed before", "held"


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run and what a launch does with it; images and bytes are of the whole run.

    searches: the run is yet to find its learning rate; `config` has the workload's.
    """

    study: str
    spec: RunSpec
    path: Path
    config: RunConfig
    action: str
    note: str
    nimg: int
    bytes: int
    searches: bool = False

    @property
    def goes(self) -> bool:
        """Whether the launch takes it up."""
        return self.action in (TRAIN, RESUME, HELD)


def plan(
    study: str,
    specs: Sequence[RunSpec],
    directory: Path,
    overrides: Mapping[str, str],
    retry_failed: bool,
    allow: str,
) -> list[Plan]:
    """A plan for each run; writes nothing.

    Raises ValueError, with the differences, where a directory holds another config, and
    where an override is of a field that the study sets.
    """
    paths = [directory / spec.name for spec in specs]
    jobs = slurm.live_jobs() if any(map(slurm.job_of, paths)) else set()
    plans = []
    for spec, path in zip(specs, paths, strict=True):
        if both := sorted(overrides.keys() & spec.overrides.keys()):
            how = "--seeds sets that" if both == ["seed"] else "the study sets that"
            raise ValueError(f"--config.{both[0]} cannot be said of all runs: {how}.")
        spec = dataclasses.replace(spec, overrides={**overrides, **spec.overrides})
        fields, is_auto = auto_rate.without(spec.overrides)
        config = configs.load(spec.config, fields)
        allowed = cli.allowed_fields(allow, config)
        known = auto_rate.recorded(config, path, allowed) if is_auto else config
        config = known or config
        run = RunDir(path, config, allowed, writing=False)
        nimg = config.total_steps * config.optimizer.batch_size
        # What failed before any step, under another config, is no reason to stop.
        action, note = _action(path, nimg, retry_failed or run.is_taken_over, jobs)
        sizes = tuple((f, text) for f, text in fields.items() if f != "seed")
        about = action, note, nimg, _bytes(spec.config, sizes)
        plans.append(Plan(study, spec, path, config, *about, searches=known is None))
    return plans


@functools.cache
def _bytes(reference: str, overrides: tuple[tuple[str, str], ...]) -> int:
    """What a run stores at its peak: the same for every seed."""
    return disk.estimate(configs.load(reference, dict(overrides))).total


def _action(
    path: Path, nimg: int, retry_failed: bool, jobs: set[str]
) -> tuple[str, str]:
    status = read_status(path)
    if is_done(path, nimg):
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
            between = ": " if each.action == FAILED else " "
            said = between.join(part for part in (each.action, each.note) if part)
            yield f"{each.path}: {said}{again}."


def unreadable(plans: Sequence[Plan]) -> Iterator[str]:
    """A sentence for each status, claim and SLURM job of a run that cannot be read."""
    for each in plans:
        found = {
            each.path / "status.json": "The run resumes from its last checkpoint.",
            claims.last_file(each.path): "Until it expires, the run counts as held.",
            each.path / slurm.JOB: "The run counts as never submitted.",
        }
        for path, meaning in found.items():
            try:
                if path is not None:
                    read_json(path)
            except (OSError, ValueError) as error:
                yield f"{files.printable(str(error))} {meaning}"


def open_runs(plans: Sequence[Plan], allow: str, create: bool = True) -> list[Task]:
    """The runs that the launch takes up; creates their directories, as queued."""
    tasks = []
    for each in plans:
        if not each.goes:
            continue
        if create and each.action != HELD and each.searches:
            # With a config.json it would have a rate.
            each.path.mkdir(parents=True, exist_ok=True)
            update_status(each.path, state="queued", stage="train")
        elif create and each.action != HELD:
            fields = cli.allowed_fields(allow, each.config)
            run = RunDir(each.path, each.config, fields)
            state = run.status["state"]
            run.set_status(state="queued" if state == "failed" else state)
        tasks.append(
            Task(
                each.spec.name,
                str(each.path),
                _commands(each, allow),
                by=f"launcher {os.getpid()}",
                # Whoever holds it now may yet fail.
                attempts=claims.count(each.path) - (each.action == HELD),
                nimg=each.nimg,
            )
        )
    return tasks


def _commands(each: Plan, allow: str) -> list[list[str]]:
    fields = each.spec.overrides.items()
    train = [
        *(f"--config={each.spec.config}", f"--run={each.path}"),
        *(f"--config.{field}={text}" for field, text in fields),
        *([f"--allow={allow}"] if allow else []),
        *(f"--study={each.study}", f"--variant={each.spec.variant}"),
    ]
    return [
        [sys.executable, str(HERE / "train.py"), *train],
        [sys.executable, str(HERE / "evaluate.py"), f"--run={each.path}"],
    ]
