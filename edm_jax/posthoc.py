"""Post-hoc EMA: averaged weights of any length from stored snapshots (App. C, Alg. 3).

NumPy only; each snapshot is read once, whatever the number of targets.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import ml_dtypes
import numpy as np

from edm_jax import snapshots
from edm_jax.ema import PowerProfile, Solution, solve
from edm_jax.snapshots import Params, SnapshotRef


class Reconstruction(NamedTuple):
    """Reconstructed weights (nested dict, float32) and how they were made."""

    params: Params
    solution: Solution


@dataclass(frozen=True)
class _Source:
    """One stored average: what it is, and how to get its arrays."""

    name: str
    nimg: int
    sigma_rel: float
    roundoff: float
    load: Callable[[], dict[str, np.ndarray]]


def reconstruct(
    stored: str | os.PathLike[str] | Sequence[SnapshotRef],
    targets: Sequence[float],
    nimg: int | None = None,
) -> dict[float, Reconstruction]:
    """Averaged weights of every σ_rel in targets at nimg, from a run's snapshots.

    stored is a directory or a list of snapshots; those of traditional profiles and those
    later than nimg (default: the last snapshot's) are left out. Each file is read once.
    Sums are float64: 8 bytes per weight and target. Raises ValueError where nothing
    usable is left, for a damaged snapshot, or for snapshots of different configs.
    """
    if isinstance(stored, (str, os.PathLike)):
        stored = snapshots.list_snapshots(stored)
    sources, hashes = [], set()
    for ref in stored:
        profile = ref.meta.profile
        if not isinstance(profile, PowerProfile):
            continue
        hashes.add(ref.meta.config_hash)
        sources.append(
            _Source(
                name=str(ref.path),
                nimg=ref.meta.nimg,
                sigma_rel=profile.sigma_rel,
                roundoff=_unit_roundoff(snapshots.DTYPES[ref.meta.dtype]),
                load=lambda path=ref.path: snapshots.flatten(snapshots.read(path)[0]),
            )
        )
    if len(hashes) > 1:
        raise ValueError(
            f"The snapshots come from different configs ({', '.join(sorted(hashes))}): "
            "give those of one run."
        )
    return _reconstruct(sources, targets, nimg)


def reconstruct_trees(
    trees: Sequence[tuple[int, float, Params]],
    targets: Sequence[float],
    nimg: int | None = None,
) -> dict[float, Reconstruction]:
    """As reconstruct, for averages in memory: (nimg, σ_rel, nested dict of arrays)."""
    sources = []
    for tree_nimg, sigma_rel, params in trees:
        flat = snapshots.flatten(params)
        sources.append(
            _Source(
                name=f"the average of sigma_rel = {sigma_rel} at nimg = {tree_nimg}",
                nimg=tree_nimg,
                sigma_rel=sigma_rel,
                roundoff=max(_unit_roundoff(leaf.dtype) for leaf in flat.values()),
                load=lambda flat=flat: flat,
            )
        )
    return _reconstruct(sources, targets, nimg)


def _reconstruct(
    sources: list[_Source], targets: Sequence[float], nimg: int | None
) -> dict[float, Reconstruction]:
    if not sources:
        raise ValueError(
            "There are no snapshots of power-function profiles to reconstruct from: "
            "train with ema.sigma_rels set."
        )
    last = max(source.nimg for source in sources)
    nimg = last if nimg is None else nimg
    if nimg > last:
        raise ValueError(
            f"nimg = {nimg} is after the last snapshot, at {last}, and no average of "
            f"the snapshots reaches it; ask for {last} or less."
        )
    used = [source for source in sources if source.nimg <= nimg]
    if not used:
        first = min(source.nimg for source in sources)
        raise ValueError(
            f"There is no snapshot at or before nimg = {nimg}: the first is at {first}."
        )
    solutions = solve(
        [(source.nimg, PowerProfile(source.sigma_rel).gamma) for source in used],
        [(nimg, PowerProfile(sigma_rel).gamma) for sigma_rel in targets],
        [source.roundoff for source in used],
    )
    coefficients = np.stack([solution.coefficients for solution in solutions], axis=1)
    sums = _combine(used, coefficients)
    return {
        sigma_rel: Reconstruction(snapshots.unflatten(flat), solution)
        for sigma_rel, flat, solution in zip(targets, sums, solutions, strict=True)
    }


def _combine(
    sources: list[_Source], coefficients: np.ndarray
) -> list[dict[str, np.ndarray]]:
    """Σ_i coefficients[i, k]·source_i for every k, reading each source at most once."""
    sums: list[dict[str, np.ndarray]] = []
    first = None
    for source, row in zip(sources, coefficients, strict=True):
        if not row.any():
            continue
        flat = source.load()
        shapes = {name: leaf.shape for name, leaf in flat.items()}
        if first is None:
            first = shapes
            sums = [{n: np.zeros(s) for n, s in shapes.items()} for _ in row]
        elif shapes != first:
            raise ValueError(
                f"{source.name} holds other weights than the snapshots before it: give "
                "the snapshots of one network."
            )
        for name, leaf in flat.items():
            wide = np.asarray(leaf, np.float64)
            if not np.isfinite(wide).all():
                raise ValueError(
                    f"{source.name} holds weights that are not finite ({name}): leave "
                    "it and later ones out."
                )
            for total, coefficient in zip(sums, row, strict=True):
                total[name] += coefficient * wide
    for total in sums:
        for name in total:  # leaf by leaf: the float64 sums fill the memory
            total[name] = total[name].astype(np.float32)
    return sums


def _unit_roundoff(dtype: np.dtype) -> float:
    # ml_dtypes' finfo also knows NumPy's own formats.
    return float(ml_dtypes.finfo(dtype).eps) / 2
