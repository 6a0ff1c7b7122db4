"""One pure training step: gradient, update, averages and metrics."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from edm_jax import diffusion, platform
from edm_jax.ema import averaging
from edm_jax.evals import dynamics
from edm_jax.models.unet import Params
from edm_jax.optim import chain, nonfinite
from edm_jax.optim.groups import ALL, Trained

Batch = dict[str, Any]
# (step before the update, whether to update in any case) -> the weight 1 - beta of the
# new parameters; 0 between updates.
EmaWeight = Callable[..., jax.Array]
LossFn = Callable[[Params, Batch, jax.Array], tuple[jax.Array, dict[str, Any]]]
# (params, batch, keys) -> (gradients, metrics): means over the rows.
Gradient = Callable[[Params, Batch, jax.Array], tuple[Params, dict[str, Any]]]


class TrainState(NamedTuple):
    """Everything that a step changes; float32 except for the step and the key."""

    step: jax.Array  # int32; the host computes nimg = step * batch_size
    key: jax.Array  # uint32 (2,), constant: the root of all randomness
    params: Params
    opt_state: Any
    emas: dict[str, Params]  # one average of the parameters for each profile


def power_ema_weight(gamma: float, every: int = 1, before: float = 0.0) -> EmaWeight:
    """1 - beta of the power-function EMA, `averaging.traced_power_weight`, in steps.

    The profile does not depend on the number of steps between updates. `before` is what
    its clock had counted before the first step, of an average that is continued.
    """

    def weight(since: jax.Array, step: jax.Array) -> jax.Array:
        now = step + 1 + before if before else step + 1
        return averaging.traced_power_weight(since, now, gamma)

    return _when_due(weight, every)


def traditional_ema_weight(
    halflife_nimg: float,
    rampup: float,
    batch_size: int,
    every: int = 1,
    before: float = 0.0,
) -> EmaWeight:
    """1 - beta of an exponential EMA, `averaging.traced_traditional_weight`.

    `before` is as of `power_ema_weight`, in steps.
    """

    def weight(since: jax.Array, step: jax.Array) -> jax.Array:
        nimg = (step.astype(jnp.float32) + before) * batch_size
        return averaging.traced_traditional_weight(
            since * batch_size, nimg, halflife_nimg, rampup
        )

    return _when_due(weight, every)


def _when_due(weight: Callable[[Any, Any], jax.Array], every: int) -> EmaWeight:
    """weight(steps since the last update, step), or 0 between updates."""

    def due_weight(step: jax.Array, due: bool = False) -> jax.Array:
        new = weight(step % every + 1, step)
        return jnp.where(due | ((step + 1) % every == 0), new, 0.0)

    return due_weight


def init_state(
    params: Params,
    tx: optax.GradientTransformation,
    emas: Mapping[str, Any],
    seed: int,
    continued: Mapping[str, Params] | None = None,
) -> TrainState:
    """The state before the first step.

    Every average starts at the parameters, unless those to continue are given.
    """
    averages = {name: jax.tree.map(jnp.array, params) for name in emas}
    averages = dict(continued or averages)
    key = jax.random.PRNGKey(seed)
    return TrainState(jnp.zeros((), jnp.int32), key, params, tx.init(params), averages)


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    emas: Mapping[str, EmaWeight],
    loss_scale: float = 1.0,
    microbatches: int = 1,
    weights: Callable[[Params], Params] = lambda params: params,
    over_devices: Callable[..., Gradient] = lambda gradient, kept: gradient,
    trained: Trained = ALL,
    change: Callable[[Params, Params], tuple[Params, Params]] = lambda *both: both,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]:
    """step(state, batch) -> (state, metrics).

    batch: image (N, H, W, C) float32, label (N,) or (N, classes), index (N,) int32,
    each example's place in the global batch, to which its randomness belongs. loss_fn
    takes (params, batch, keys); its loss and metrics are means over the batch.
    loss_scale multiplies the loss before the gradient; `tx` divides it out.
    microbatches: parts of the batch that are computed one after the other. weights: turns
    the parameters into what loss_fn takes, once a step. over_devices: turns the gradient
    function of one device's rows into that of all rows, with a single mean over devices
    for all micro-batches together; its second argument keeps, of a tree of parameters,
    what the gradient has. trained: the parameters that `tx` changes; nothing is
    differentiated by the others. change: turns updates and parameters into those of
    the network's weights, whose relative size is the effective learning rate.
    """

    def scaled_loss(params: Params, batch: Batch, keys: jax.Array):
        loss, metrics = loss_fn(params, batch, keys)
        return loss * loss_scale, metrics

    def gradient(params: Params, batch: Batch, keys: jax.Array):
        def loss_of(part: Params, *rows: Any):
            return scaled_loss(trained.merged(part, params), *rows)

        def of_part(*rows: Any):
            part = trained.with_layers(params)
            grads, metrics = jax.grad(loss_of, has_aux=True)(part, *rows)
            return jax.tree.map(jnp.float32, grads), metrics

        return _mean_over_parts(of_part, microbatches, batch, keys)

    mean_gradient = over_devices(gradient, trained.with_layers)

    def step(state: TrainState, batch: Batch):
        def used_of(part: Params) -> tuple[Params, Params]:
            used = weights(trained.merged(part, state.params))
            return trained.with_layers(used), used

        keys = diffusion.example_keys(state.key, state.step, batch["index"])
        before = trained(state.params)
        _, pull_back, used = jax.vjp(used_of, before, has_aux=True)
        grads, metrics = mean_gradient(used, batch, keys)
        (grads,) = pull_back(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        part = optax.apply_updates(before, updates)
        params = trained.merged(part, state.params)
        # The EMA sees the weights as Adam left them (Alg. 1, 2).
        latest = trained.merged(chain.averaged(part, opt_state), params)
        averages = {
            name: averaging.lerp(state.emas[name], latest, weight(state.step))
            for name, weight in emas.items()
        }
        metrics |= {
            "grad_rms": _rms(grads) / loss_scale,
            "effective_lr": dynamics.effective_learning_rates(*change(updates, before)),
            "nonfinite": nonfinite.nonfinite_count(opt_state),
            "nonfinite_by_leaf": nonfinite.nonfinite_by_leaf(grads),
        }
        state = TrainState(state.step + 1, state.key, params, opt_state, averages)
        return state, metrics

    return step


def _mean_over_parts(function: Callable[..., Any], parts: int, *rows: Any) -> Any:
    """Mean of function(part) over equal parts of the rows, one after the other."""
    if parts == 1:
        return function(*rows)

    # Part i is every `parts`-th row: each device then keeps its own rows.
    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)

    split_rows = jax.tree.map(split, rows)
    shapes = jax.eval_shape(function, *jax.tree.map(lambda x: x[0], split_rows))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(*part)), None

    total, _ = jax.lax.scan(add, zeros, split_rows)
    return jax.tree.map(lambda x: x / parts, total)


def make_current_averages(
    emas: Mapping[str, EmaWeight], trained: Trained = ALL
) -> Callable[[TrainState], dict[str, Params]]:
    """Returns a function from a state to its averages, updated even if not yet due.

    A snapshot between two updates thus has the profile of its own time. The state is not
    changed; it must have taken at least one step.
    """

    def current_averages(state: TrainState) -> dict[str, Params]:
        part = chain.averaged(trained(state.params), state.opt_state)
        latest = trained.merged(part, state.params)
        return {
            name: averaging.lerp(state.emas[name], latest, weight(state.step - 1, True))
            for name, weight in emas.items()
        }

    return current_averages


def _rms(tree: Params) -> jax.Array:
    leaves = jax.tree.leaves(tree)
    return jnp.sqrt(
        sum(platform.total(jnp.square(x)) for x in leaves) / sum(x.size for x in leaves)
    )
