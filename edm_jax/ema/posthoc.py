"""Post-hoc EMA: averaged weights of any profile from stored snapshots (App. C, Alg. 3).

NumPy only; `combine` reads each snapshot once, whatever the number of targets.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from edm_jax.ema import snapshots, solver
from edm_jax.ema.combine import FLOAT32, OnProgress, Plan, Source, Tree, combine
from edm_jax.ema.profiles import AnyProfile, PowerProfile, decimal
from edm_jax.ema.snapshots import Params, Snapshot
from edm_jax.ema.solver import Solution
from edm_jax.files import PathLike

MAX_ERROR = 0.1  # of a fit: a target beyond it is refused unless forced [choice]

Target = float | AnyProfile  # a bare number is a power function's σ_rel


class Reconstruction(NamedTuple):
    """Reconstructed weights (nested dict, float32) and how they were made."""

    params: Params
    solution: Solution


def make_plan(
    stored: Sequence[tuple[float, PowerProfile, Source]],
    targets: Sequence[tuple[float, AnyProfile]],
    max_error: float = MAX_ERROR,
) -> Plan:
    """Solves for targets (nimg, profile) from stored averages (nimg, profile, source).

    A target uses what was stored up to its time; sources that nothing uses are left
    out. Raises ValueError for a target whose error would be beyond max_error, saying
    what can be had, and where nothing usable is stored.
    """
    if not max_error > 0:
        raise ValueError(f"max_error = {max_error}, but must be above 0.")
    _check_times(stored, targets)
    solutions: list[Any] = [None] * len(targets)
    coefficients = np.zeros((len(stored), len(targets)))
    for nimg in {nimg for nimg, _ in targets}:
        rows = [i for i, (t, _, _) in enumerate(stored) if t <= nimg]
        columns = [k for k, (t, _) in enumerate(targets) if t == nimg]
        basis = [stored[i][:2] for i in rows]
        roundoff = [stored[i][2].unit_roundoff for i in rows]
        solved = solver.solve(basis, [targets[k] for k in columns], roundoff)
        for k, solution in zip(columns, solved, strict=True):
            if not solution.error <= max_error:
                raise ValueError(_refusal(basis, roundoff, solution, max_error))
            coefficients[rows, k], solutions[k] = solution.coefficients, solution
    used = np.flatnonzero(coefficients.any(axis=1)).tolist()
    sources = [stored[i][2] for i in used]
    kinds = Counter(tuple(source.table.items()) for source in sources)
    usual, _ = kinds.most_common(1)[0]
    for source in sources:
        if tuple(source.table.items()) != usual:
            raise ValueError(
                f"{source.name} holds other weights than the snapshots beside it: give "
                "those of one network."
            )
    plan = Plan(sources, solutions, coefficients[used])
    if not plan.size:
        raise ValueError(f"{sources[0].name} holds no weights at all.")
    return plan


def from_files(
    stored: Iterable[Snapshot],
    targets: Sequence[tuple[float, AnyProfile]],
    max_error: float = MAX_ERROR,
) -> Plan:
    """`make_plan` for snapshots on disk; those of other than power functions are left out.

    Raises ValueError also for snapshots of different configs, or reconstructed ones.
    """
    entries, hashes = [], {}
    for snapshot in stored:
        profile, meta = snapshot.meta.profile, snapshot.meta
        if meta.ancestry is not None:
            raise ValueError(
                f"{snapshot.name} is itself reconstructed, and not what a run stored: "
                "move it away."
            )
        if isinstance(profile, PowerProfile):
            hashes.setdefault(meta.config_hash, snapshot.name)
            entries.append((float(meta.nimg), profile, snapshot))
    if len(hashes) > 1:
        which = ", ".join(f"{h} of {name}" for h, name in sorted(hashes.items()))
        raise ValueError(
            f"The snapshots come from different configs ({which}): give those of one run."
        )
    return make_plan(entries, targets, max_error)


def reconstruct(
    stored: PathLike | Sequence[Snapshot],
    targets: Sequence[Target],
    nimg: float | None = None,
    max_error: float = MAX_ERROR,
    on_progress: OnProgress = lambda *_: None,
) -> dict[Target, Reconstruction]:
    """Averaged weights of every target at nimg (the last snapshot's), in memory.

    stored is a directory or a list of snapshots; targets are σ_rel or profiles. 4 bytes
    per weight and target. Raises ValueError where nothing usable is left, for a damaged
    snapshot, for snapshots of different configs, and for a target whose error would be
    beyond max_error (math.inf takes what can be had).
    """
    if isinstance(stored, (str, os.PathLike)):
        stored = snapshots.list_snapshots(stored)
    nimg = last_nimg(stored) if nimg is None else nimg
    plan = from_files(stored, [(nimg, as_profile(each)) for each in targets], max_error)
    trees = in_memory(plan, on_progress)
    return {
        target: Reconstruction(tree, solution)
        for target, tree, solution in zip(targets, trees, plan.solutions, strict=True)
    }


def reconstruct_trees(
    trees: Sequence[tuple[float, float, Params]],
    targets: Sequence[Target],
    nimg: float | None = None,
    max_error: float = MAX_ERROR,
) -> dict[Target, Reconstruction]:
    """As reconstruct, for averages in memory: (nimg, σ_rel, nested dict of arrays).

    Averages in float64 make float64 weights.
    """
    stored = [
        (
            t,
            PowerProfile(s),
            Tree(f"the average of sigma_rel = {s} at nimg = {t}", tree),
        )
        for t, s, tree in trees
    ]
    nimg = max((t for t, _, _ in trees), default=0) if nimg is None else nimg
    plan = make_plan(stored, [(nimg, as_profile(each)) for each in targets], max_error)
    made = in_memory(plan, dtype=max(s.result_dtype for _, _, s in stored))
    return {
        target: Reconstruction(tree, solution)
        for target, tree, solution in zip(targets, made, plan.solutions, strict=True)
    }


def as_profile(target: Target) -> AnyProfile:
    """A target's profile."""
    return PowerProfile(float(target)) if isinstance(target, (int, float)) else target


def last_nimg(stored: Sequence[Snapshot]) -> int:
    """The time of the last snapshot of a power function; 0 where there is none."""
    powers = [s for s in stored if isinstance(s.meta.profile, PowerProfile)]
    return max((s.meta.nimg for s in powers), default=0)


def in_memory(
    plan: Plan,
    on_progress: OnProgress = lambda *_: None,
    dtype: np.dtype = FLOAT32,
) -> list[Params]:
    """The networks of a plan, nested dicts in the order of its targets."""
    rows = np.empty((len(plan.solutions), plan.size), dtype)

    def store(start: int, values: np.ndarray) -> None:
        rows[:, start : start + values.shape[1]] = values

    chunks = range(-(-plan.size // snapshots.CHUNK))
    for _ in combine(plan, chunks, store, on_progress, dtype):
        pass
    return [snapshots.split(row, plan.sources[0].table) for row in rows]


def _check_times(
    stored: Sequence[tuple[float, PowerProfile, Source]],
    targets: Sequence[tuple[float, AnyProfile]],
) -> None:
    if not stored:
        raise ValueError(
            "There are no snapshots of power-function profiles to reconstruct from: "
            "train with ema.sigma_rels set."
        )
    first, last = min(t for t, _, _ in stored), max(t for t, _, _ in stored)
    for nimg, _ in targets:
        if nimg > last:
            raise ValueError(
                f"nimg = {nimg:.0f} is after the last snapshot, at {last:.0f}, and no "
                f"average of the snapshots reaches it; ask for {last:.0f} or less."
            )
        if nimg < first:
            raise ValueError(
                f"There is no snapshot at or before nimg = {nimg:.0f}: the first is at "
                f"{first:.0f}."
            )


def _refusal(
    basis: Sequence[solver.Stored],
    roundoff: Sequence[float],
    solution: Solution,
    max_error: float,
) -> str:
    """Why a target is refused, and what the snapshots can express instead."""
    nimg, profile = solution.nimg, solution.profile
    times = sorted({t for t, _ in basis})
    said = (
        f"The snapshots cannot express {profile.label} at nimg = {nimg:.0f}: its error "
        f"would be {solution.error:.2g}, and {max_error:g} is allowed."
    )
    if times[-1] < nimg:
        return f"{said} The last snapshot before that time is at {times[-1]:.0f}: ask for that."
    found = solver.expressible_range(basis, (nimg, profile), roundoff, max_error)
    if found is None:
        return f"{said} Of {len(basis)} snapshots nothing else can be made there: store more."
    low, high = (decimal(round(value, 6)) for value in found)
    if profile.kind == "traditional":
        return f"{said} Half-lives from {low} to {high} million images can be had."
    edges = ""
    if profile.kind != "power":
        edges = ", and windows that start and end at snapshots"
    return (
        f"{said} Power functions of sigma_rel from {low} to {high} can be had{edges}."
    )
