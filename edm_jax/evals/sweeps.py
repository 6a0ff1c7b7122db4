"""Quality against EMA length: of all weights, over training time, and of one part.

The paper's Fig. 5a, 5c and 5b, with the held-out loss as the measure of quality.
"""

import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edm_jax import files, tree
from edm_jax.ema import posthoc, snapshots
from edm_jax.ema.posthoc import Reconstruction
from edm_jax.ema.profiles import PowerProfile, decimal
from edm_jax.ema.snapshots import Snapshot
from edm_jax.evals import search
from edm_jax.evals.heldout import HeldOut
from edm_jax.runs import directory

_log = logging.getLogger(__name__)
REBUILD_BYTES = 4 * 2**30  # for averages rebuilt together
WHOLE = "all weights"
_FIT_POINTS = 5  # of a parabola

OnProgress = Callable[[str, int, int], None]  # (what, done, total)


class Curve(NamedTuple):
    """Held-out loss of each sigma_rel, rising, of one group of weights at one time.

    error is that of the reconstruction; the other groups have length `fixed`.
    """

    nimg: int
    group: str
    fixed: float | None
    sigma_rel: list[float]
    loss: list[float]
    error: list[float]


class Optimum(NamedTuple):
    """The best measured length, and the vertex of a parabola through its neighbours.

    fitted_sigma_rel is None where the parabola has no minimum among them: the best is
    then at the edge of the lengths measured, or in noise.
    """

    sigma_rel: float
    loss: float
    fitted_sigma_rel: float | None
    fitted_loss: float | None


def optimum(curve: Curve) -> Optimum:
    """Finds the best length of a curve; raises ValueError where it has no points."""
    x, y = np.array(curve.sigma_rel), np.array(curve.loss)
    if not len(x):
        raise ValueError(f"No length was measured at nimg = {curve.nimg}.")
    best = int(np.nanargmin(y))
    start = min(max(best - _FIT_POINTS // 2, 0), max(len(x) - _FIT_POINTS, 0))
    near = slice(start, start + _FIT_POINTS)
    found = Optimum(float(x[best]), float(y[best]), None, None)
    if len(x) < 3 or not np.isfinite(y[near]).all():
        return found
    fit = np.polynomial.Polynomial.fit(x[near], y[near], 2)
    curvature = fit.deriv(2)(x[best])
    vertex = float(np.real(fit.deriv().roots()[0])) if curvature > 0 else math.nan
    if not x[near][0] < vertex < x[near][-1]:
        return found
    return found._replace(fitted_sigma_rel=vertex, fitted_loss=float(fit(vertex)))


def usable(directory: files.PathLike, last: int | None = None) -> list[Snapshot]:
    """The snapshots of a directory; warns of those that are damaged.

    Args:
        directory: where they are.
        last: the time of the last that counts, such as `RunDir.best_nimg`.

    Raises:
        FileNotFoundError: there is no such directory.
        files.Damaged: all of them are damaged.
    """
    found, damaged = snapshots.scan(directory)
    if damaged and not found:
        raise damaged[0]
    for each in files.few(damaged, "damaged snapshots"):
        _log.warning("Left out: %s", each)
    return [each for each in found if last is None or each.meta.nimg <= last]


def reconstruct(
    stored: list[Snapshot],
    targets: Sequence[posthoc.Target],
    nimg: float | None = None,
    max_error: float = math.inf,
) -> dict[posthoc.Target, Reconstruction]:
    """`posthoc.reconstruct`, without the snapshots that are found damaged meanwhile.

    Warns of them, and removes them from `stored`.
    """
    while True:
        try:
            return posthoc.reconstruct(stored, targets, nimg, max_error)
        except files.Damaged as error:
            sound = [s for s in stored if s.name != os.fspath(error.path)]
            if len(sound) in (0, len(stored)):
                raise
            _log.warning("Left out: %s", error)
            stored[:] = sound


def rebuilt(
    stored: list[Snapshot],
    sigma_rels: Sequence[float],
    nimg: int | None = None,
    max_error: float = math.inf,
) -> Iterator[tuple[float, Reconstruction]]:
    """Yields each length with its average, as many per pass over the snapshots as fit
    into memory."""
    size = max((snapshot.size for snapshot in stored), default=1)
    together = max(1, REBUILD_BYTES // (4 * size))
    for start in range(0, len(sigma_rels), together):
        part = sigma_rels[start : start + together]
        made = reconstruct(stored, part, nimg, max_error)
        yield from ((sigma_rel, made[sigma_rel]) for sigma_rel in part)


def keep_expressible(
    stored: Sequence[Snapshot], sigma_rels: Sequence[float]
) -> list[float]:
    """The lengths that the snapshots express, or else those stored at the end.

    A single snapshot expresses its own length alone, however near others are. Warns of the
    lengths that are left out.
    """
    found = errors(stored, sigma_rels, posthoc.last_nimg(stored))
    good = [s for s in sigma_rels if found[s] <= posthoc.MAX_ERROR]
    metas = [snapshot.meta for snapshot in stored]
    powers = [(m.nimg, m.profile) for m in metas if isinstance(m.profile, PowerProfile)]
    if not good or len(powers) < 2:
        last = posthoc.last_nimg(stored)
        good = [profile.sigma_rel for nimg, profile in powers if nimg == last]
    warn_left_out(sigma_rels, good)
    return good


def warn_left_out(asked: Sequence[float], kept: Sequence[float]) -> None:
    """Warns of the lengths that were asked for and are not kept, if any."""
    if left := [decimal(s) for s in asked if s not in kept]:
        _log.warning(
            "Left out sigma_rel = %s: the snapshots cannot express %s.",
            ", ".join(left),
            "them" if len(left) > 1 else "it",
        )


def errors(
    stored: Sequence[Snapshot], sigma_rels: Sequence[float], nimg: int
) -> dict[float, float]:
    """The error of each length at nimg, fit and rounding together."""
    targets = [(nimg, PowerProfile(s)) for s in sigma_rels]
    plan = posthoc.from_files(stored, targets, math.inf)
    return {s: each.error for s, each in zip(sigma_rels, plan.solutions, strict=True)}


def checksums(stored: Sequence[Snapshot]) -> dict[str, str]:
    """Checksums that tell one run's snapshots from another's, by file."""
    return {snapshot.path.name: snapshot.checksum for snapshot in stored}


class Memory:
    """A file of the points measured before; it forgets those of other snapshots.

    Args:
        path: the file.
        made_of: what the points depend on besides their keys, as JSON holds it.
    """

    def __init__(self, path: Path, made_of: dict[str, Any]):
        self._path, self._made_of = path, made_of
        try:
            known = directory.read_json(path)
        except (OSError, ValueError):  # damaged: its points are measured again
            known = {}
        points = known.get("points") if known.get("snapshots") == made_of else None
        points = points if isinstance(points, dict) else {}
        # Numbers, or lists of them by row.
        self.points: dict[str, Any] = {
            key: value
            for key, value in points.items()
            if isinstance(value, (float, list))
        }

    def remember(self, key: str, value: float | list[float]) -> None:
        """Adds a point, and writes the file."""
        self.points[key] = value
        known = {"snapshots": self._made_of, "points": self.points}
        directory.write_json(self._path, known)


class Sweeps:
    """Measures curves of one run, and remembers every point in a file.

    An interrupted sweep resumes from there, and another one measures only what is new.
    """

    def __init__(
        self,
        heldout: HeldOut,
        stored: Sequence[Snapshot],
        memory: Path,
        on_progress: OnProgress = lambda *_: None,
    ):
        self._heldout, self._stored = heldout, list(stored)
        self._report = on_progress
        self._memory = Memory(memory, checksums(stored))

    def lengths(
        self,
        sigma_rels: Sequence[float],
        nimg: int | None = None,
        max_error: float = posthoc.MAX_ERROR,
    ) -> Curve:
        """Loss against the length of all weights (Fig. 5a), as far as the snapshots
        express it."""
        nimg = posthoc.last_nimg(self._stored) if nimg is None else nimg
        found = errors(self._stored, sigma_rels, nimg)
        wanted = [s for s in sigma_rels if found[s] <= max_error]
        what = f"lengths at {nimg} images"
        return self._curve(nimg, WHOLE, None, wanted, found, what)

    def over_time(self, sigma_rels: Sequence[float], times: int) -> list[Curve]:
        """Loss against length at `times` times of the training (Fig. 5c)."""
        last = posthoc.last_nimg(self._stored)
        seen = sorted({snapshot.meta.nimg for snapshot in self._stored})
        wanted = [last * (i + 1) / times for i in range(times)]
        nearest = {min(seen, key=lambda t: abs(t - each)) for each in wanted}
        curves = (self.lengths(sigma_rels, nimg) for nimg in sorted(nearest))
        return [curve for curve in curves if curve.sigma_rel]

    def by_group(
        self, groups: dict[str, list[str]], sigma_rels: Sequence[float], fixed: float
    ) -> list[Curve]:
        """Loss against the length of one group, all else at `fixed` (Fig. 5b)."""
        nimg = posthoc.last_nimg(self._stored)
        found = errors(self._stored, [*sigma_rels, fixed], nimg)
        if found[fixed] > posthoc.MAX_ERROR:
            raise ValueError(
                f"The snapshots cannot express sigma_rel = {fixed} for the other parts: "
                f"its error would be {found[fixed]:.2g}. Choose another with --fixed."
            )
        wanted = [s for s in sigma_rels if found[s] <= posthoc.MAX_ERROR]
        missing = [
            (group, s)
            for group in groups
            for s in wanted
            if self._key(nimg, group, fixed, s) not in self._memory.points
        ]
        if missing:
            lengths = sorted({s for _, s in missing})
            [(_, base)] = rebuilt(self._stored, [fixed], nimg)
            whole, done = snapshots.flatten(base.params), 0
            for s, made in rebuilt(self._stored, lengths, nimg):
                other = snapshots.flatten(made.params)
                for group in [group for group, each in missing if each == s]:
                    mixed = whole | {name: other[name] for name in groups[group]}
                    loss = self._heldout.loss(tree.unflatten(mixed))
                    self._memory.remember(self._key(nimg, group, fixed, s), loss)
                    done += 1
                    self._report("groups of weights", done, len(missing))
        return [self._curve(nimg, group, fixed, wanted, found, "") for group in groups]

    def search(self, family: search.Family) -> search.Found:
        """The best average of a family at the end, by a search in a bracket."""
        nimg = posthoc.last_nimg(self._stored)

        def measure(value: float) -> np.ndarray:
            key = json.dumps([nimg, family.words(value)])
            if not isinstance(self._memory.points.get(key), list):
                profile = family.profile(value)
                made = reconstruct(self._stored, [profile], nimg, posthoc.MAX_ERROR)
                losses = self._heldout.losses(made[profile].params)
                self._memory.remember(key, losses.tolist())
            seen.add(key)
            self._report(f"search of {family}", len(seen), search.MOST)
            return np.array(self._memory.points[key])

        seen: set[str] = set()
        return search.minimum(measure, family.low, family.high)

    def _curve(
        self,
        nimg: int,
        group: str,
        fixed: float | None,
        wanted: Sequence[float],
        found: dict[float, float],
        what: str,
    ) -> Curve:
        keys = {s: self._key(nimg, group, fixed, s) for s in wanted}
        missing = [s for s in wanted if keys[s] not in self._memory.points]
        for done, (s, made) in enumerate(rebuilt(self._stored, missing, nimg), 1):
            self._memory.remember(keys[s], self._heldout.loss(made.params))
            self._report(what, done, len(missing))
        losses = [self._memory.points[keys[s]] for s in wanted]
        return Curve(
            nimg, group, fixed, list(wanted), losses, [found[s] for s in wanted]
        )

    @staticmethod
    def _key(nimg: int, group: str, fixed: float | None, sigma_rel: float) -> str:
        return json.dumps([nimg, group, fixed, sigma_rel])


def levels(abstract_params: Any) -> dict[str, list[str]]:
    """Names of the weights by part of the network: {enc, dec} x resolution, and the rest.

    The u(sigma) head, which only training uses, is left out.
    """
    groups: dict[str, list[str]] = {}
    for name in snapshots.flatten(abstract_params):
        match = re.match(r"unet/((?:enc|dec)_\d+x\d+|[^/]+)", name)
        if match:
            groups.setdefault(match[1], []).append(name)
    return groups


def tensors(abstract_params: Any, pattern: str) -> dict[str, list[str]]:
    """Each weight tensor whose name the regular expression finds, by itself.

    Raises ValueError for a pattern that is not valid, or finds nothing.
    """
    try:
        found = [n for n in snapshots.flatten(abstract_params) if re.search(pattern, n)]
    except re.error as error:
        raise ValueError(
            f"{pattern!r} is not a regular expression: {error}."
        ) from error
    if not found:
        example = next(iter(snapshots.flatten(abstract_params)))
        raise ValueError(
            f"No tensor's name matches {pattern!r}; such a name is {example}."
        )
    return {name: [name] for name in found}
