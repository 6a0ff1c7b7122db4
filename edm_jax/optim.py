"""The optimizer chain, and forced weight normalization as its last link (App. B.5)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from edm_jax import layers, schedules
from edm_jax.networks import Params


class GuardState(NamedTuple):
    """Running count of elements that were not finite, and the guarded state."""

    total: jax.Array
    inner: Any


def guard_nonfinite(
    inner: optax.GradientTransformation, skip: bool
) -> optax.GradientTransformation:
    """`inner`, given 0 for elements that are not finite, which are counted.

    skip: where there are any, the update is 0 and the state of `inner` is kept. Wraps
    Adam alone: the learning rate behind it counts images, not updates. The state has
    the same layout either way, so that a run can go on with the other.
    """

    def init(params: Params) -> GuardState:
        return GuardState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(updates: Params, state: Any, params: Params = None):
        bad = jnp.sum(nonfinite_by_leaf(updates))
        updates = jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, 0), updates)
        updates, new = inner.update(updates, state.inner, params)
        if skip:
            updates = jax.tree.map(lambda u: jnp.where(bad == 0, u, 0), updates)
            new = jax.tree.map(
                lambda after, before: jnp.where(bad == 0, after, before),
                new,
                state.inner,
            )
        return updates, GuardState(state.total + bad, new)

    return optax.GradientTransformation(init, update)


def nonfinite_by_leaf(tree: Params) -> jax.Array:
    """(leaves,) int32: how many elements of each are not finite."""
    bad = [jnp.sum(~jnp.isfinite(x), dtype=jnp.int32) for x in jax.tree.leaves(tree)]
    return jnp.stack(bad)


class ForcedWeightNormState(NamedTuple):
    """What each kernel's output units were divided by: (1, ..., out); 1 elsewhere."""

    scale: Params


def forced_weight_norm() -> optax.GradientTransformation:
    """Puts every kernel back to RMS 1 per output unit after the update (Eq. 66).

    The last link of a chain: rewrites the update u of weights w to normalize(w + u) - w.
    Alg. 1 normalizes before each gradient instead; with the initial weights projected
    once (`project`) both take the same gradients at the same weights. Averages are of
    the weights as Adam left them, before the projection: `unprojected` has them. Gains
    and frozen Fourier features are left alone.
    """

    def init(params: Params) -> ForcedWeightNormState:
        return ForcedWeightNormState(_scales(params, jnp.ones_like))

    def update(updates: Params, state: Any, params: Params = None):
        del state
        if params is None:
            raise ValueError("forced_weight_norm rewrites weights: give it the params.")
        adam = optax.apply_updates(params, updates)
        scale = _scales(adam, lambda magnitude: magnitude)
        updates = jax.tree.map(lambda w, s, p: w / s - p, adam, scale, params)
        return updates, ForcedWeightNormState(scale)

    return optax.GradientTransformation(init, update)


def project(params: Params) -> Params:
    """Every kernel scaled to RMS 1 per output unit (Eq. 66); the rest as it is."""
    return jax.tree.map(
        jnp.divide, params, _scales(params, lambda magnitude: magnitude)
    )


def unprojected(params: Params, opt_state: Any) -> Params:
    """The weights as Adam left them, before a `forced_weight_norm` link; for the EMA."""
    for link in _links(opt_state, ForcedWeightNormState):
        params = jax.tree.map(jnp.multiply, params, link.scale)
    return params


def nonfinite_count(opt_state: Any) -> jax.Array:
    """Gradient elements that were not finite so far."""
    totals = [link.total for link in _links(opt_state, GuardState)]
    return sum(totals, jnp.zeros((), jnp.int32))


def _links(opt_state: Any, kind: type) -> list[Any]:
    def is_link(node: Any) -> bool:
        return isinstance(node, kind)

    return list(filter(is_link, jax.tree.leaves(opt_state, is_leaf=is_link)))


def _scales(params: Params, of_magnitude: Callable[[jax.Array], jax.Array]) -> Params:
    def scale(path: tuple[Any, ...], w: jax.Array) -> jax.Array:
        is_kernel = path[-1].key == "kernel"
        return of_magnitude(layers.unit_magnitude(w)) if is_kernel else jnp.ones(())

    return jax.tree_util.tree_map_with_path(scale, params)


def learning_rate(opt: Any) -> Callable[..., jax.Array]:
    """Learning rate by images seen, of a config's `optimizer` fields."""
    rampup_nimg, end_nimg = opt.rampup_mimg * 1e6, opt.decay_end_mimg * 1e6
    if opt.decay == "cosine":
        return schedules.cosine(opt.alpha_ref, end_nimg, rampup_nimg)
    if opt.decay == "linear":
        return schedules.linear(opt.alpha_ref, end_nimg, rampup_nimg)
    t_ref_nimg = opt.t_ref * opt.batch_size
    return schedules.inverse_sqrt(opt.alpha_ref, t_ref_nimg, rampup_nimg)


def make_optimizer(opt: Any) -> optax.GradientTransformation:
    """The chain of a config's `optimizer` fields: Adam, rate in images, projection.

    `opt.nonfinite`: 'zero' zeroes gradient elements that are not finite, as the paper's
    code does; 'skip' and 'stop' leave out the whole update.
    """
    schedule = learning_rate(opt)
    adam = optax.scale_by_adam(b1=opt.beta1, b2=opt.beta2, eps=opt.eps)
    links = [
        optax.scale(1 / opt.loss_scale),
        # A run that stops there keeps what it had before.
        guard_nonfinite(adam, skip=opt.nonfinite != "zero"),
        optax.scale_by_learning_rate(schedules.per_step(schedule, opt.batch_size)),
    ]
    if opt.forced_weight_norm:
        links.append(forced_weight_norm())
    return optax.chain(*links)
