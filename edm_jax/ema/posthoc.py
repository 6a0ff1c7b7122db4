"""Post-hoc EMA: averaged weights of any profile from stored snapshots (App. C, Alg. 3).

NumPy only; `combine` reads each snapshot once, whatever the number of targets.
"""

import functools
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from edm_jax.ema import snapshots, solver
from edm_jax.ema.combine import FLOAT32, OnProgress, Plan, Source, Tree, combine
from edm_jax.ema.grammar import AnyProfile
from edm_jax.ema.profiles import PowerProfile, decimal
from edm_jax.ema.snapshots import Params, Snapshot
from edm_jax.ema.solver import Solution
from edm_jax.files import PathLike

MAX_ERROR = 0.1  # targets with a larger error are refused unless forced [choice]

Target = float | AnyProfile  # a bare number is a power function's σ_rel


class Reconstruction(NamedTuple):
    """Reconstructed weights (nested dict, float32) and how they were made."""

    params: Params
    solution: Solution


def make_plan(
    stored: Sequence[tuple[float, PowerProfile, Source]],
    targets: Sequence[tuple[float, AnyProfile]],
    max_error: float = MAX_ERROR,
    partial: bool = False,
) -> Plan:
    """Solves for targets from stored averages.

    A target uses averages stored up to its time. Sources that no target uses are left
    out.

    Args:
        stored: (nimg, profile, source) of each average.
        targets: (nimg, profile) of each target.
        max_error: targets with a larger error of fit and rounding are refused.
        partial: leave refused targets out of the plan, if any others remain.

    Raises:
        ValueError: a target is refused (the message gives the range that the averages
            can express), or nothing usable is stored.
    """
    if not max_error > 0:
        raise ValueError(f"max_error = {max_error}: choose a number above 0.")
    if not stored:
        raise ValueError(
            "There are no snapshots of power-function profiles to reconstruct from: "
            "train with ema.sigma_rels set."
        )
    refused = {
        k: said for k, each in enumerate(targets) if (said := _untimely(stored, each))
    }
    solutions: list[Any] = [None] * len(targets)
    coefficients = np.zeros((len(stored), len(targets)))
    for nimg in {targets[k][0] for k in range(len(targets)) if k not in refused}:
        rows = [i for i, (t, _, _) in enumerate(stored) if t <= nimg]
        columns = [
            k for k, (t, _) in enumerate(targets) if t == nimg and k not in refused
        ]
        basis = [stored[i][:2] for i in rows]
        roundoff = [stored[i][2].unit_roundoff for i in rows]
        solved = solver.solve(basis, [targets[k] for k in columns], roundoff)
        advice = functools.cache(functools.partial(_advice, basis, roundoff, max_error))
        for k, solution in zip(columns, solved, strict=True):
            if solution.error <= max_error:
                coefficients[rows, k], solutions[k] = solution.coefficients, solution
                continue
            # All power functions share one range, but each rampup has its own.
            profile = solution.profile
            kind = PowerProfile(0.1) if isinstance(profile, PowerProfile) else profile
            refused[k] = (
                f"The snapshots cannot express {profile.label} at nimg = {nimg:.0f}: its "
                f"error would be {solution.error:.2g}, but at most {max_error:g} is "
                "allowed. "
                f"{advice(nimg, kind)}"
            )
    sentences = [refused[k] for k in sorted(refused)]
    kept = [k for k in range(len(targets)) if k not in refused]
    if sentences and not (partial and kept):
        raise ValueError(sentences[0])
    used = np.flatnonzero(coefficients.any(axis=1)).tolist()
    sources = [stored[i][2] for i in used]
    _check_alike(sources)
    return Plan(
        sources,
        [solutions[k] for k in kept],
        coefficients[used][:, kept],
        sentences,
    )


def from_files(
    stored: Iterable[Snapshot],
    targets: Sequence[tuple[float, AnyProfile]],
    max_error: float = MAX_ERROR,
    partial: bool = False,
) -> Plan:
    """`make_plan` for snapshots on disk; only power functions are used.

    The targets' times are those of the run. The averages of a run that continues the
    clock of its base began earlier; the solutions count from there, as do the times
    within a profile, such as a window's.

    Raises:
        ValueError: as `make_plan`; or the snapshots come from different configs, are
            reconstructions, or hold the same profile at the same time twice.
    """
    entries, hashes, names, before = [], {}, {}, 0
    for snapshot in stored:
        profile, meta = snapshot.meta.profile, snapshot.meta
        if meta.ancestry is not None:
            raise ValueError(
                f"{snapshot.name} is a reconstruction, not a snapshot that a run stored: "
                "move it to another directory."
            )
        if isinstance(profile, PowerProfile):
            other = names.setdefault((meta.nimg, profile), snapshot.name)
            if other != snapshot.name:
                raise ValueError(
                    f"{other} and {snapshot.name} hold the same profile at the same "
                    "time: move one of them to another directory."
                )
            hashes.setdefault(meta.config_hash, snapshot.name)
            before = meta.before_nimg
            entries.append((float(meta.nimg + before), profile, snapshot))
    if len(hashes) > 1:
        which = ", ".join(f"{h} of {name}" for h, name in sorted(hashes.items()))
        raise ValueError(
            f"The snapshots come from different configs ({which}): keep only those of "
            "one run in the directory."
        )
    targets = [(nimg + before, profile) for nimg, profile in targets]
    return make_plan(entries, targets, max_error, partial)


def reconstruct(
    stored: PathLike | Sequence[Snapshot],
    targets: Sequence[Target],
    nimg: float | None = None,
    max_error: float = MAX_ERROR,
    on_progress: OnProgress = lambda *_: None,
) -> dict[Target, Reconstruction]:
    """Reconstructs the averaged weights of every target in memory.

    Needs 4 bytes of memory per weight and target.

    Args:
        stored: a directory, or a list of snapshots.
        targets: σ_rel or profiles.
        nimg: the time of the averages, in the snapshots' unit; by default the last one.
        max_error: targets with a larger error are refused; math.inf refuses none.
        on_progress: called with the bytes read so far and in total.

    Raises:
        ValueError: as `from_files`; Damaged, a ValueError, for a damaged snapshot.
    """
    if isinstance(stored, (str, os.PathLike)):
        stored = snapshots.list_snapshots(stored)
    nimg = last_nimg(stored) if nimg is None else nimg
    plan = from_files(stored, [(nimg, as_profile(each)) for each in targets], max_error)
    made = map(Reconstruction, in_memory(plan, on_progress), plan.solutions)
    return dict(zip(targets, made, strict=True))


def reconstruct_trees(
    trees: Sequence[tuple[float, float, Params]],
    targets: Sequence[Target],
    nimg: float | None = None,
    max_error: float = MAX_ERROR,
) -> dict[Target, Reconstruction]:
    """Like `reconstruct`, for averages in memory: (nimg, σ_rel, nested dict of arrays).

    Averages in float64 give float64 weights.
    """
    named = "the average of sigma_rel = {} at nimg = {}"
    stored = [(t, PowerProfile(s), Tree(named.format(s, t), p)) for t, s, p in trees]
    nimg = max((t for t, _, _ in trees), default=0) if nimg is None else nimg
    plan = make_plan(stored, [(nimg, as_profile(each)) for each in targets], max_error)
    params = in_memory(plan, dtype=max(s.result_dtype for _, _, s in stored))
    made = map(Reconstruction, params, plan.solutions)
    return dict(zip(targets, made, strict=True))


def as_profile(target: Target) -> AnyProfile:
    """A target's profile."""
    return PowerProfile(float(target)) if isinstance(target, (int, float)) else target


def last_nimg(stored: Sequence[Snapshot]) -> int:
    """The time of the last snapshot of a power function; 0 if there is none."""
    powers = [s for s in stored if isinstance(s.meta.profile, PowerProfile)]
    return max((s.meta.nimg for s in powers), default=0)


def in_memory(
    plan: Plan,
    on_progress: OnProgress = lambda *_: None,
    dtype: np.dtype = FLOAT32,
) -> list[Params]:
    """Computes a plan's networks, as nested dicts in the order of its targets."""
    rows = np.empty((len(plan.solutions), plan.size), dtype)

    def store(start: int, values: np.ndarray) -> None:
        rows[:, start : start + values.shape[1]] = values

    chunks = range(-(-plan.size // snapshots.CHUNK))
    for _ in combine(plan, chunks, store, on_progress, dtype):
        pass
    return [snapshots.split(row, plan.sources[0].table) for row in rows]


def _check_alike(sources: Sequence[Source]) -> None:
    """Raises ValueError unless all sources hold the same weights, and at least one."""
    kinds = Counter(tuple(source.table.items()) for source in sources)
    usual, _ = kinds.most_common(1)[0]
    for source in sources:
        if tuple(source.table.items()) != usual:
            raise ValueError(
                f"{source.name} holds weights of other names or shapes than the "
                "snapshots beside it: move it to another directory."
            )
    if not any(math.prod(shape) for _, shape in usual):
        raise ValueError(f"{sources[0].name} holds no weights.")


def _untimely(
    stored: Sequence[tuple[float, PowerProfile, Source]],
    target: tuple[float, AnyProfile],
) -> str:
    """Why a target's time or profile is impossible; '' if it is not."""
    times = [t for t, _, _ in stored]
    first, last = min(times), max(times)
    nimg, profile = target
    if nimg > last:
        return (
            f"{profile.label} at nimg = {nimg:.0f} is after the last snapshot, at "
            f"{last:.0f}: ask for {last:.0f} or less."
        )
    if nimg < first:
        return (
            f"{profile.label} at nimg = {nimg:.0f} is before the first snapshot, at "
            f"{first:.0f}: ask for {first:.0f} or more."
        )
    try:
        profile.edges(nimg)
    except ValueError as error:
        return str(error)
    return ""


def _advice(
    basis: Sequence[solver.Stored],
    roundoff: Sequence[float],
    max_error: float,
    nimg: float,
    profile: AnyProfile,
) -> str:
    """Says which profiles of this kind the snapshots can express."""
    last = max(t for t, _ in basis)
    if last < nimg:
        return (
            f"The last snapshot before that time is at {last:.0f}: ask for that time."
        )
    found = solver.expressible_range(basis, (nimg, profile), roundoff, max_error)
    if found is None:
        return f"{len(basis)} snapshots express no other length there: store more."
    low, high = (decimal(round(value, 6)) for value in found)
    if profile.kind == "traditional":
        return f"They can express half-lives from {low} to {high} million images."
    windows = ", and windows that start and end at snapshots"
    return (
        f"They can express power functions of sigma_rel from {low} to {high}"
        f"{'' if profile.kind == 'power' else windows}."
    )
