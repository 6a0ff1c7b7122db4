"""The quantities in a comparison: how to read each from a run, and how to write it.

To add one, add an entry to COLUMNS, or put a `Column(...)` into your own file and use
`compare.py --columns=FILE.py:NAME`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edm_jax import files, menu
from edm_jax.report.runs import Log, Run


@dataclass(frozen=True)
class Column:
    """One quantity of the results.

    Attributes:
        key: its name in results.csv.
        heading: its name in tables.
        form: the form for format_number.
        about: one line of description.
        read: returns a run's value, or None; by default the number with this key in
            evaluation.json.
        measured: False if it follows from the config or the data alone.
        shown: whether tables show it by default.
        loss: whether it is a held-out loss, which starts at `untrained_loss`.
    """

    key: str
    heading: str
    form: int | str
    about: str = ""
    read: Callable[[Run], float | None] | None = None
    measured: bool = True
    shown: bool = True
    loss: bool = False

    def of(self, run: Run) -> float | None:
        """A run's value; None if it has none."""
        return self.read(run) if self.read else _evaluated(self.key)(run)


def _evaluated(*keys: str) -> Callable[[Run], float | None]:
    return lambda run: run.evaluation.values.get(keys) if run.evaluation else None


def _greatest(kind: str, since: float = 0.0) -> Callable[[Run], float | None]:
    def greatest(run: Run) -> float | None:
        found = growth(run.logs["dynamics"], kind, since=since)
        return max(found.values(), default=None)

    return greatest


def _mean_rate(run: Run) -> float | None:
    _, rates = run.logs["train"].curve("effective_lr", "all")
    return float(np.mean(rates)) if len(rates) else None


# fmt: off
_ENTRIES = (
    Column("heldout_loss", "held-out loss", 4,
           "λ-weighted loss per element on held-out data, at the best σ_rel of the sweep",
           _evaluated("best", "loss"), loss=True),
    Column("sigma_rel", "best σ_rel", ".3f", "the EMA length with the lowest loss",
           _evaluated("best", "sigma_rel")),
    Column("raw_loss", "raw weights", 4, "held-out loss of the last weights, unaveraged",
           loss=True),
    Column("untrained_loss", "untrained", 4, "held-out loss of the weights at the start"),
    Column("pixel_frechet", "pixel Fréchet distance (not FID)", 3,
           "Fréchet distance of pixels, not of features"),
    Column("pixel_frechet_floor", "its floor", 3,
           "that distance between the training and the held-out split", measured=False),
    Column("fd_effnetlite0", "FD-EffNetLite0 (not FID)", 4,
           "Fréchet distance to the training images in EfficientNet-Lite0's features",
           shown=False),
    Column("precision_effnetlite0", "precision, EffNetLite0", 3,
           "share of the samples within the manifold of the training images",
           shown=False),
    Column("recall_effnetlite0", "recall, EffNetLite0", 3,
           "share of the training images within the manifold of the samples",
           shown=False),
    Column("coverage_effnetlite0", "coverage, EffNetLite0", 3,
           "share of the training images that have a sample near them", shown=False),
    Column("fid", "FID", 4, "Fréchet distance in FID's Inception", shown=False),
    Column("fd_dinov2", "FD-DINOv2", 4, "Fréchet distance in DINOv2 ViT-L/14's features",
           shown=False),
    Column("params", "parameters", ",.0f", "numbers in the network's weights",
           lambda run: run.params, measured=False),
    Column("images_per_s", "images/s", 3,
           "median during training; other processes may have slowed it"),
    Column("input_wait", "waits for input", ".1%",
           "share of the time in which training waited for a batch: more workers "
           "(data.num_workers) help, or smaller pictures"),
    Column("logged_loss", "logged held-out loss", 4,
           "held-out loss of the averaged weights that training logged last",
           lambda run: run.logged_loss, shown=False, loss=True),
    Column("decay_cosine", "average for a cosine decay", 4,
           "held-out loss of the average that stands for one, at constant rate",
           shown=False, loss=True),
    Column("decay_linear", "average for a linear decay", 4,
           "held-out loss of the average that stands for one, at constant rate",
           shown=False, loss=True),
    Column("decay_wsd", "average for a decay of the last fifth", 4,
           "held-out loss of the average that stands for one, at constant rate",
           shown=False, loss=True),
    Column("others_loss", "other classes", 4,
           "held-out loss of the classes that fine-tuning leaves out", shown=False,
           loss=True),
    Column("base_loss", "base", 4, "held-out loss of the weights it started from",
           shown=False),
    Column("base_others_loss", "base, other classes", 4,
           "held-out loss of the base of the classes that fine-tuning leaves out",
           shown=False),
    Column("drift", "drift", 3,
           "RMS turn of the weights' units from the base's, 2 sin(angle / 2)",
           shown=False),
    Column("effective_rate", "effective rate", 2,
           "mean of |dw| / |w| over the steps and all kernels", _mean_rate, shown=False),
    Column("weight_growth", "weights grow by", ".2f",
           "mean magnitude at the end over that at the start, where largest",
           _greatest("weights")),
    # In the first steps activations settle at a level, whatever the config.
    Column("activation_growth", "activations grow by, after the first quarter", ".2f",
           "mean magnitude at the end over that at a quarter, where largest",
           _greatest("activations", since=0.25)),
)
# fmt: on
COLUMNS = {column.key: column for column in _ENTRIES}
GROWTH = ("weight_growth", "activation_growth")


def pick(keys: Sequence[str], option: str = "--columns") -> list[Column]:
    """The columns with these keys, or FILE.py:NAME; raises as `menu.entry` does."""
    found = []
    for key in keys:
        column = menu.entry(COLUMNS, option, key)
        if not isinstance(column, Column):
            raise ValueError(  # noqa: TRY004  of what a user typed
                f"{option}: {key} is not a report.Column(...)."
            )
        if key not in COLUMNS:
            column = dataclasses.replace(column, read=_blamed(column.of, key))
        found.append(column)
    return found


def _blamed(of: Callable[[Run], float | None], name: str):
    """Wraps a user's function so that its errors name its file."""

    def value(run: Run) -> float | None:
        with files.blamed_on(name):
            found = of(run)
            return None if found is None else float(found)

    return value


def format_number(value: float | None, form: int | str) -> str:
    """Write a number; '—' for None, 'NaN' for NaN.

    Args:
        value: the number.
        form: a count of significant digits, or a format such as '.3f'.
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

    Groups without two finite values, or that start at zero, are left out.

    Args:
        dynamics: the log of magnitudes.
        kind: weights or activations.
        statistic: mean or max, over the layers of a group such as enc_8x8.
        since: the fraction of the images at which to start.
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
