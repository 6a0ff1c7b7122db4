"""How far fine-tuning went from its base, and what the network forgot of it."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edm_jax import tree
from edm_jax.fields import Settings
from edm_jax.models.unet import Params

if TYPE_CHECKING:
    from edm_jax.evals.evaluation import Subject


@dataclasses.dataclass(frozen=True)
class FineTuning(Settings):
    """Of a run that starts from weights: held-out losses beside the base's, and drift.

    `others_loss` is the held-out loss of the classes that data.classes leaves out, those
    that fine-tuning may forget; None if there are none. `base_loss` and
    `base_others_loss` are the base's. `drift` is `drift` of the best average.
    """

    needs_snapshots: ClassVar[bool] = True

    def evaluate(self, subject: "Subject") -> dict[str, Any]:
        """others_loss, base_loss, base_others_loss and drift."""
        config: Any = subject.config
        losses = {"": subject.heldout.loss}
        if others := _others(config):
            losses["others_"] = subject.heldout_of(others).loss
        found: dict[str, Any] = {"others_loss": None}
        if others:
            found["others_loss"] = losses["others_"](subject.params)
        base = config.base
        if base is None:
            return found
        model = subject.denoiser.model
        found["drift"] = drift(model.weights(subject.params), base())
        found |= _of_base(config, losses, base)
        return found


def drift(weights: Params, base: Params) -> float:
    """RMS of |w'/|w'| - w/|w|| over the output units w of all kernels.

    It is 2 sin(angle / 2) of the turn of a unit; where units are normalized, nothing else
    of a change matters. Units that are zero in either network are left out.
    """
    squares = []
    flat = tree.flatten(base)
    for name, leaf in tree.flatten(weights).items():
        if not name.endswith("/kernel"):
            continue
        units = [
            np.asarray(w, np.float64).reshape(-1, w.shape[-1])
            for w in (leaf, flat[name])
        ]
        lengths = [np.linalg.norm(each, axis=0) for each in units]
        there = (lengths[0] > 0) & (lengths[1] > 0)
        after, before = (
            each[:, there] / length[there]
            for each, length in zip(units, lengths, strict=True)
        )
        squares.append(np.sum(np.square(after - before), axis=0))
    return float(np.sqrt(np.mean(np.concatenate(squares))))


def _others(config: Any) -> tuple[int, ...]:
    """The classes that the run is not trained on."""
    chosen = config.data.classes
    every = range(config.network.num_classes)
    return tuple(c for c in every if c not in chosen) if chosen else ()


def _of_base(
    config: Any,
    losses: dict[str, Callable[[Params], float]],
    base: Callable[[], Params],
) -> dict[str, float]:
    """The base's losses, on the network without an adapter."""
    weights = base()
    if config.is_adapted:  # the adapter that changes nothing
        weights = config.model.init(config.seed)
    return {f"base_{name}loss": loss(weights) for name, loss in losses.items()}
