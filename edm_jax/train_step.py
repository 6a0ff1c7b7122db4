"""One pure training step, and its two parallel forms: jit over a mesh, and pmap."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from edm_jax import backend, diffusion, optim
from edm_jax.ema import averaging
from edm_jax.networks import Params

Batch = dict[str, Any]
# (step before the update, whether it is due in any case) -> the weight 1 - beta of the
# new parameters, 0 between updates.
EmaWeight = Callable[..., jax.Array]
LossFn = Callable[[Params, Batch, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


class TrainState(NamedTuple):
    """All that a step changes; float32 but for the step and the key."""

    step: jax.Array  # int32; the host computes nimg = step * batch_size
    key: jax.Array  # uint32 (2,), constant: the root of all randomness
    params: Params
    opt_state: Any
    emas: dict[str, Params]  # one average of the parameters for each profile


def power_ema_weight(gamma: float, every: int = 1) -> EmaWeight:
    """1 - beta of the power-function EMA, beta = (1 - delta/nimg)^(gamma+1) (App. C.2).

    delta counts the images since the EMA's last update, so a profile does not depend
    on how often it is updated; between updates the weight is 0, at the first it is 1.
    """

    def weight(step: jax.Array, due: bool = False) -> jax.Array:
        now, since_last = step + 1, step % every + 1
        new = averaging.traced_power_weight(since_last, now, gamma)
        return jnp.where(due | (now % every == 0), new, 0.0)

    return weight


def traditional_ema_weight(
    halflife_nimg: float, rampup: float, batch_size: int, every: int = 1
) -> EmaWeight:
    """1 - beta of an exponential EMA whose half-life is min(halflife, rampup * nimg).

    nimg is counted before the step [choice], so the first update has weight 1.
    """

    def weight(step: jax.Array, due: bool = False) -> jax.Array:
        nimg = step.astype(jnp.float32) * batch_size
        halflife = jnp.minimum(halflife_nimg, rampup * nimg)
        log_beta = -jnp.log(2.0) * (step % every + 1) * batch_size / halflife
        return jnp.where(due | ((step + 1) % every == 0), -jnp.expm1(log_beta), 0.0)

    return weight


def init_state(
    params: Params, tx: optax.GradientTransformation, emas: Mapping[str, Any], seed: int
) -> TrainState:
    """The state before the first step; every average starts at the parameters."""
    averages = {name: jax.tree.map(jnp.array, params) for name in emas}
    key = jax.random.PRNGKey(seed)
    return TrainState(jnp.zeros((), jnp.int32), key, params, tx.init(params), averages)


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    emas: Mapping[str, EmaWeight],
    loss_scale: float = 1.0,
    axis_name: str | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """step(state, batch) -> (state, metrics).

    batch: image (N, H, W, C) float32, label (N,) or (N, classes), index (N,) int32,
    each example's place in the global batch, to which its randomness belongs. loss_fn
    takes (params, batch, keys) and its loss is the mean over the batch. loss_scale
    multiplies the loss before the gradient; `tx` divides it out. axis_name: the mapped
    axis to average over under pmap.
    """

    def step(state: TrainState, batch: Batch):
        keys = diffusion.example_keys(state.key, state.step, batch["index"])

        def scaled_loss(params: Params):
            loss, metrics = loss_fn(params, batch, keys)
            return loss * loss_scale, metrics

        grads, metrics = jax.grad(scaled_loss, has_aux=True)(state.params)
        if axis_name is not None:
            grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # The EMA sees the weights as Adam left them (Alg. 1, 2).
        latest = optim.unprojected(params, opt_state)
        averages = {
            name: averaging.lerp(state.emas[name], latest, weight(state.step))
            for name, weight in emas.items()
        }
        metrics["grad_rms"] = _rms(grads) / loss_scale
        metrics["nonfinite"] = optim.nonfinite_count(opt_state)
        state = TrainState(state.step + 1, state.key, params, opt_state, averages)
        return state, metrics

    return step


def make_current_averages(
    emas: Mapping[str, EmaWeight],
) -> Callable[[TrainState], dict[str, Params]]:
    """state -> its averages, brought up to its step where an update is not yet due.

    So that a snapshot between two updates holds the profile of its own time. The state
    stays as it is; it has taken a step or more.
    """

    def current_averages(state: TrainState) -> dict[str, Params]:
        latest = optim.unprojected(state.params, state.opt_state)
        return {
            name: averaging.lerp(state.emas[name], latest, weight(state.step - 1, True))
            for name, weight in emas.items()
        }

    return current_averages


def _rms(tree: Params) -> jax.Array:
    leaves = jax.tree.leaves(tree)
    return jnp.sqrt(sum(jnp.sum(x**2) for x in leaves) / sum(x.size for x in leaves))


class JitStep:
    """The step under jit: state replicated, batch sharded over a mesh of devices."""

    def __init__(self, make_step: Callable[..., Callable], devices: list[Any]):
        mesh = jax.make_mesh(
            (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
        )
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._sharded = NamedSharding(mesh, PartitionSpec("data"))
        self._step = jax.jit(
            make_step(axis_name=None),
            donate_argnums=0,
            out_shardings=self._replicated,
            compiler_options=backend.compiler_options(),
        )

    def place(self, state: TrainState) -> TrainState:
        """Puts a host state on the devices."""
        return jax.device_put(state, self._replicated)

    def __call__(self, state: TrainState, batch: Batch):
        batch = {
            name: jax.make_array_from_process_local_data(self._sharded, x)
            for name, x in batch.items()
        }
        return self._step(state, batch)

    def fetch(self, tree: Any) -> Any:
        """One copy of a replicated result, still on its device."""
        return tree


class PmapStep:
    """The step under pmap: the state stacked once for each device, gradients pmean'd."""

    def __init__(self, make_step: Callable[..., Callable], devices: list[Any]):
        self._devices = devices
        self._step = jax.pmap(
            make_step(axis_name="data"),
            axis_name="data",
            devices=devices,
            donate_argnums=0,
        )

    def place(self, state: TrainState) -> TrainState:
        """Puts a host state on the devices."""
        count = len(self._devices)
        stacked = jax.tree.map(lambda x: jnp.stack([x] * count), state)
        # The same axis name as the step's: another one would compile the step twice.
        return jax.pmap(lambda x: x, axis_name="data", devices=self._devices)(stacked)

    def __call__(self, state: TrainState, batch: Batch):
        count = len(self._devices)
        return self._step(
            state,
            {n: x.reshape(count, -1, *x.shape[1:]) for n, x in batch.items()},
        )

    def fetch(self, tree: Any) -> Any:
        """One copy of a replicated result, still on its device."""
        # x[0] would gather from every device.
        return jax.tree.map(lambda x: x.addressable_data(0).reshape(x.shape[1:]), tree)


PARALLEL = {"jit": JitStep, "pmap": PmapStep}
