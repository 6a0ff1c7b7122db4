"""Which examples of a split are used: data.classes, data.max_size and data.sampling."""

import concurrent.futures
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edm_jax.data.order import Strata, Uniform, epoch_order

if TYPE_CHECKING:
    from edm_jax.data.config import DataConfig
    from edm_jax.data.readers import Rows

_SUBSET_SEED = 0xDA7A  # of the order whose first max_size rows are used
# Rows that one thread decodes at a time, where a whole split is read.
PART = 64


class Selection(NamedTuple):
    """What is used of a split's rows."""

    chosen: np.ndarray | None = None  # (n,); None: all of them
    strata: Strata | None = None  # how often each of them; None: once per epoch


def open_rows(
    data: "DataConfig",
    split: str,
    num_classes: int | None,
    training: bool = False,
    selected: Selection | None = None,
) -> tuple["Rows", Selection]:
    """Opens a split, and chooses from it what the config says.

    `data.classes` holds for every split; `data.max_size` and `data.sampling` for training
    only, so that runs on subsets are compared on the same held-out examples.

    Args:
        data: the config's data section.
        split: the split's name, or a slice of it.
        num_classes: of the network, which never depends on what is chosen.
        training: whether the examples are to be trained on.
        selected: what was chosen before, by another process.

    Raises:
        ValueError: the data do not suit, or nothing is left of them.
    """
    weighted = training and not isinstance(data.sampling, Uniform)
    needs_labels = bool(data.classes) or weighted
    # Without classes, the reader would read no labels.
    read_as = (num_classes or None) if needs_labels else num_classes
    try:
        rows = data.reader.open(data, split, read_as)
    except ValueError as error:
        if read_as == num_classes:
            raise
        field = "data.sampling" if weighted else "data.classes"
        why = str(error).partition(";")[0]
        raise ValueError(f"{field} needs the classes of examples: {why}.") from error
    if not needs_labels and not (training and data.max_size):
        return rows, Selection()
    selected = selected or _select(rows, data, split, num_classes, training)
    assert selected.chosen is not None
    return Chosen(rows, selected.chosen, num_classes != 0), selected


def _select(
    rows: "Rows",
    data: "DataConfig",
    split: str,
    num_classes: int | None,
    training: bool,
) -> Selection:
    weighted = training and not isinstance(data.sampling, Uniform)
    labels = _labels(rows, data, num_classes) if data.classes or weighted else None
    chosen = np.arange(len(rows))
    if labels is not None:
        wanted = data.classes or np.arange(labels.max(initial=0) + 1)
        chosen = np.flatnonzero(np.isin(labels, wanted))
        lacking = sorted(set(data.classes) - set(labels[chosen].tolist()))
        if lacking and (training or not len(chosen)):
            raise ValueError(
                f"data.classes={data.classes}: data set {data.name!r}, split {split!r}, "
                f"has no examples of class {lacking[0]}."
            )
    if training and data.max_size:
        if data.max_size > len(chosen):
            raise ValueError(
                f"data.max_size={data.max_size}, but there are only {len(chosen):,} "
                f"examples to train on in data set {data.name!r}; 0 takes all of them."
            )
        order = epoch_order(_SUBSET_SEED, 0, len(rows))
        chosen = np.sort(order[np.isin(order, chosen)][: data.max_size])
    strata = None
    if weighted:
        assert labels is not None
        labels = labels[chosen]
        counts = np.bincount(labels, minlength=num_classes or 0)
        strata = Strata(labels, data.sampling.weights(counts))
    return Selection(chosen, strata)


class Chosen:
    """Some rows of a split."""

    def __init__(self, rows: "Rows", chosen: np.ndarray, is_labelled: bool):
        self._rows, self._chosen, self._is_labelled = rows, chosen, is_labelled
        self.shape, self.image_bytes = rows.shape, rows.image_bytes
        self.draws = rows.draws

    def __len__(self) -> int:
        return len(self._chosen)

    def __getattr__(self, name: str) -> Any:
        # What not every reader's rows have: is_sorted, skipped, classes.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["_rows"], name)

    def place(self, row: int) -> str:
        """Where a row is, for messages."""
        place = getattr(self._rows, "place", str)
        return place(int(self._chosen[row]))

    @property
    def labels(self) -> np.ndarray:
        """Of all rows (n,), where the reader knows them."""
        return self._rows.labels[self._chosen]  # type: ignore[attr-defined]

    def read(
        self, rows: np.ndarray, keys: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images (n, H, W, C) and int32 labels (n,) of `rows` (n,)."""
        image, label = self._rows.read(self._chosen[rows], keys)
        return image, label if self._is_labelled else np.zeros_like(label)


def _labels(rows: "Rows", data: "DataConfig", num_classes: int | None) -> np.ndarray:
    """Of all rows (N,); -1 where the example is bad and data.on_bad=skip.

    Raises:
        ValueError: an example is bad, and data.on_bad=stop.
    """
    found = getattr(rows, "labels", None)
    if found is None:
        return _read_labels(rows, data.on_bad)
    labels = np.array(found, np.int64)
    bad = (labels < 0) | (labels >= (num_classes or np.inf))
    for first in np.flatnonzero(bad)[:1] if data.on_bad == "stop" else ():
        rows.read(np.array([first]))  # says what is wrong with it
    labels[bad] = -1
    return labels


def _read_labels(rows: "Rows", on_bad: str) -> np.ndarray:
    def read(part: np.ndarray) -> np.ndarray:
        try:
            return rows.read(part)[1].astype(np.int64)
        except ValueError:
            if on_bad == "stop":
                raise
            if len(part) == 1:
                return np.array([-1])
            return np.concatenate([read(part[i : i + 1]) for i in range(len(part))])

    parts = np.split(np.arange(len(rows)), range(PART, len(rows), PART))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        return np.concatenate([*threads.map(read, parts)])
