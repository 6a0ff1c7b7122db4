"""Reduce on plateau: the only schedule that depends on the run's measurements."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from edm_jax.fields import Fraction, NotNegative, Settings, Share
from edm_jax.models.unet import Params
from edm_jax.optim.links import links
from edm_jax.optim.timing import Part, Run


class PlateauState(NamedTuple):
    """Scalars of a link's state, which checkpoints keep."""

    scale: Any  # of the learning rate
    best: Any  # held-out loss
    since: Any  # images at the best loss, or at the end of the last cooldown


@dataclasses.dataclass(frozen=True)
class Plateau(Settings):
    """1, times `multiplier` whenever the held-out loss has not improved for `patience` images.

    An improvement is a loss below (1 - threshold) best. After a reduction, patience begins
    when the cooldown is over. The loss is measured every training.probe_mimg, so the rate
    can change only then. First value 1, no value below `lowest`.
    `optax.contrib.reduce_on_plateau` is the same in calls rather than images; torch's
    ReduceLROnPlateau fires one measurement later.
    """

    multiplier: Part = 0.5
    patience_mimg: NotNegative = 0.0  # million images; 0: a tenth of the run
    cooldown_mimg: NotNegative = 0.0  # million images
    threshold: Fraction = 1e-4
    lowest: Share = 0.01

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        """Always 1: the reductions are in the state of `link`."""
        del nimg, run
        return jnp.ones(())

    def link(self) -> optax.GradientTransformation:
        """Multiplies updates by the state's scale."""

        def init(params: Params) -> PlateauState:
            del params
            return PlateauState(jnp.ones(()), jnp.full((), jnp.inf), jnp.zeros(()))

        def update(updates: Params, state: Any, params: Params | None = None):
            del params
            return jax.tree.map(lambda u: u * state.scale, updates), state

        return optax.GradientTransformation(init, update)

    def observed(
        self, state: PlateauState, loss: float, nimg: int, run: Run
    ) -> PlateauState:
        """Returns the state, as NumPy scalars, after a held-out loss at `nimg` images."""
        scale, best, since = (float(each) for each in state)
        patience = self.patience_mimg * 1e6 or run.duration_nimg / 10
        if loss < (1 - self.threshold) * best:
            best, since = loss, max(since, float(nimg))
        elif nimg - since >= patience:
            scale = max(scale * self.multiplier, self.lowest)
            since = nimg + self.cooldown_mimg * 1e6
        return PlateauState(*map(np.float32, (scale, best, since)))


def observe(
    schedule: Any, opt_state: Any, loss: float, nimg: int, run: Run
) -> tuple[Any, float]:
    """Updates a plateau's scalars in the optimizer's state after a held-out loss.

    Every process must call this with the same loss. The new scalars are laid out on the
    devices like the old ones.

    Returns:
        The state, and the factor of the rate: unchanged, and 1, without a plateau.
    """
    scale = 1.0
    if not links(opt_state, PlateauState):
        return opt_state, scale

    def replaced(node: Any) -> Any:
        nonlocal scale
        if not isinstance(node, PlateauState):
            return node
        before = PlateauState(*map(_scalar, node))
        after = schedule.observed(before, loss, nimg, run)
        scale = float(after.scale)
        return PlateauState(*map(_like, after, node))

    is_link = lambda node: isinstance(node, PlateauState)
    return jax.tree.map(replaced, opt_state, is_leaf=is_link), scale


def rate_scale(opt_state: Any) -> float:
    """The factor by which a plateau has reduced the rate so far; 1 without one."""
    found = [float(_scalar(link.scale)) for link in links(opt_state, PlateauState)]
    return found[0] if found else 1.0


def without(opt_state: Any) -> Any:
    """The optimizer's state as the same chain without a plateau would have it."""
    return tuple(link for link in opt_state if not isinstance(link, PlateauState))


def _scalar(leaf: Any) -> np.ndarray:
    """Reads a scalar that every device holds a copy of."""
    shards = getattr(leaf, "addressable_shards", None)
    return np.asarray(shards[0].data if shards else leaf).reshape(-1)[0]


def _like(value: np.ndarray, leaf: jax.Array) -> jax.Array:
    return jax.device_put(np.full(leaf.shape, value, leaf.dtype), leaf.sharding)
