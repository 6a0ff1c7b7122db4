"""The quantities of a comparison: how each is read from a run and how it is written."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edm_jax import menu
from edm_jax.report.runs import Log, Run


@dataclass(frozen=True)
class Column:
    """One quantity of the results: its name in the CSV, its heading, its format."""

    key: str
    heading: str
    form: int | str  # of format_number
    of: Callable[[Run], float | None]
    measured: bool = True  # False where it follows from the config or the data alone


def _evaluated(*keys: str) -> Callable[[Run], float | None]:
    def evaluated(run: Run) -> float | None:
        return run.evaluation.values.get(keys) if run.evaluation else None

    return evaluated


def _greatest(kind: str, since: float = 0.0) -> Callable[[Run], float | None]:
    def greatest(run: Run) -> float | None:
        return max(
            growth(run.logs["dynamics"], kind, since=since).values(), default=None
        )

    return greatest


COLUMNS = (
    Column("heldout_loss", "held-out loss", 4, _evaluated("best", "loss")),
    Column("sigma_rel", "best σ_rel", ".3f", _evaluated("best", "sigma_rel")),
    Column("raw_loss", "raw weights", 4, _evaluated("raw_loss")),
    Column("untrained_loss", "untrained", 4, _evaluated("untrained_loss")),
    Column(
        "pixel_frechet",
        "pixel Fréchet distance (not FID)",
        3,
        _evaluated("pixel_frechet"),
    ),
    Column(
        "pixel_frechet_floor",
        "its floor",
        3,
        _evaluated("pixel_frechet_floor"),
        measured=False,
    ),
    Column(
        "params",
        "parameters",
        ",.0f",
        lambda run: run.params,
        measured=False,
    ),
    Column("images_per_s", "images/s", 3, _evaluated("images_per_s")),
)
GROWTH_COLUMNS = (
    Column("weight_growth", "weights grow by", ".2f", _greatest("weights")),
    # In its first steps a network finds its activations' level, whatever the config.
    Column(
        "activation_growth",
        "activations grow by, after the first quarter",
        ".2f",
        _greatest("activations", since=0.25),
    ),
)
ALL_COLUMNS = COLUMNS + GROWTH_COLUMNS


def pick(keys: Sequence[str]) -> list[Column]:
    """The columns of these keys; raises ValueError, naming the nearest, for others."""
    known = {column.key: column for column in ALL_COLUMNS}
    for key in keys:
        if key not in known:
            raise ValueError(
                f"There is no column {key!r}; there are {', '.join(known)}."
                + menu.suggest(key, known)
            )
    return [known[key] for key in keys]


def format_number(value: float | None, form: int | str) -> str:
    """Write a number; '—' for None, 'NaN' for NaN.

    ``form`` is a count of significant digits, or a format such as '.3f'.
    """
    if value is None:
        return "—"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{value:g}"
    if isinstance(form, str):
        return f"{value:{form}}"
    exponent = math.floor(math.log10(abs(value))) if value else 0
    if exponent < -5 or exponent > 14:
        return f"{value:.{form - 1}e}"
    return f"{value:,.{max(0, form - 1 - exponent)}f}"


def growth(
    dynamics: Log, kind: str, statistic: str = "mean", since: float = 0.0
) -> dict[str, float]:
    """Divide each group's last magnitude by its first (the paper's Fig. 3).

    ``kind`` is weights or activations, ``statistic`` mean or max over the layers
    of a group such as enc_8x8, ``since`` the fraction of the images at which to
    start. Groups without two finite values, or that start at zero, are left out.
    """
    if len(dynamics) < 2:
        return {}
    first = int(np.argmax(dynamics.nimg >= since * dynamics.nimg[-1]))
    ratios: dict[str, float] = {}
    for name, values in dynamics.values.items():
        if len(name) == 3 and (name[0], name[2]) == (kind, statistic) and values[first]:
            ratio = float(values[-1] / values[first])
            if math.isfinite(ratio):
                ratios[str(name[1])] = ratio
    return ratios
