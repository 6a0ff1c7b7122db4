"""Averaging profiles by age, and what stored averages make of them."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.colors import to_hex

from edm_jax.ema import AnyProfile, Solution
from edm_jax.ema.plan import Predicted
from edm_jax.report.curves import Chart, Line, Panel
from edm_jax.report.drawing import PALETTE, Drawing, draw

_POINTS = 1000  # per curve
_SHOWN = 0.999  # of the weight of the oldest profile
_NAME = 40  # characters of a profile's name


def draw_profiles(
    stored: Sequence[tuple[float, AnyProfile]],
    solutions: Sequence[Solution],
    coefficients: np.ndarray,
) -> Drawing:
    """Draws each target's weights by age, dashed as they are made of the stored ones.

    The second panel has the difference, relative to the target's largest weight.

    Args:
        stored: (nimg, profile) of the stored averages.
        solutions: one per target.
        coefficients: (stored, targets).
    """
    oldest = max(map(_reach, solutions))
    many = len(solutions) >= len(PALETTE)
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(solutions)))
    weights, differences, key = [], [], []
    for k, solution in enumerate(solutions):
        colour = to_hex(shades[k]) if many else k + 1
        age = np.linspace(0, min(oldest, 1.0) * solution.nimg, _POINTS)
        # Left of a jump, as an average at this very time sees it.
        tau = np.maximum(solution.nimg - age, 0)
        unit = solution.nimg / solution.profile.moments(solution.nimg).mass
        wanted = unit * solution.profile.density(tau, solution.nimg)
        made = np.zeros(_POINTS)
        for x, (end, profile) in zip(coefficients[:, k], stored, strict=True):
            if x:
                made += x * solution.nimg * profile.density(tau, end)
        weights.append(Line(age, wanted, colour=colour))
        weights.append(Line(age, made, colour=colour, dash=1))
        scale = np.abs(wanted).max() or 1.0
        differences.append(Line(age, (made - wanted) / scale, colour=colour))
        name = solution.profile.label
        key.append((name if len(name) <= _NAME else f"{name[:_NAME]}…", colour, 0))
    key.append(("as made of the snapshots", "soft", 1))
    panels = [
        Panel("Weight times the images trained", "weight", weights, "linear"),
        Panel("Made − wanted", "relative to the largest", differences, "linear"),
    ]
    return draw("profiles", [Chart("age in images", panels, key=key[:20])])


def draw_plans(
    curves: Sequence[tuple[str, Sequence[Predicted]]], max_error: float
) -> Drawing:
    """Draws the errors of all lengths, of each plan or time by name.

    The first panel has the error of a profile, with the largest accepted dotted; the
    second that of weights which walk at random.
    """
    panels = []
    for title, name, limit in (
        ("Error of the profile: weights that are noise", "error", True),
        ("Error of weights that walk at random", "walk_error", False),
    ):
        lines = [
            Line(
                np.array([each.sigma_rel for each in found]),
                np.array([max(getattr(each, name), 1e-8) for each in found]),
                colour=k % len(PALETTE),
            )
            for k, (_, found) in enumerate(curves, 1)
        ]
        if limit:
            x = np.array([found.sigma_rel for found in curves[0][1]])
            lines.append(Line(x, np.full(len(x), max_error), colour="soft", dash=2))
        panels.append(Panel(title, "relative error", lines, "log"))
    key: list[tuple[str, int | str, int]]
    key = [(name, k % len(PALETTE), 0) for k, (name, _) in enumerate(curves, 1)]
    key.append((f"{max_error:g}, the most accepted", "soft", 2))
    return draw("plans", [Chart("EMA length σ_rel", panels, key=key)])


def _reach(solution: Solution) -> float:
    """The age below which nearly all weight lies, as a fraction of the time."""
    age = np.linspace(0, 1, 4096)
    density = solution.profile.density((1 - age) * solution.nimg, solution.nimg)
    share = np.cumsum(np.abs(density))
    if not share[-1]:  # shorter than the grid's steps
        return 0.01
    return float(
        min(1.0, 1.1 * age[np.searchsorted(share, _SHOWN * share[-1])] + 0.005)
    )
