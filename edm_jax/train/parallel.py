"""The step on many devices: jit over a mesh, its state replicated or sharded, and pmap.

A checkpoint is the same for either form and any number of devices: global arrays, of
which each process writes and reads its part.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from edm_jax import platform
from edm_jax.train.step import Batch, Gradient, TrainState

# Smaller leaves are replicated: gathering them would cost more.
_SMALLEST_SHARDED = 2**12


# Of a batch: over all devices.
ROWS = PartitionSpec(("copies", "shards"))


def make_mesh(devices: list[Any], shards: int = 0) -> Mesh:
    """Devices as (copies, shards): a batch goes over both, a sharded state over the last.

    The devices of one copy are neighbours, such as those of a host, so that only gradients
    cross between copies.

    Args:
        devices: In any order.
        shards: How many share a copy of the state; 0: all.

    Raises:
        ValueError: They do not divide the devices evenly.
    """
    if len(devices) % (shards or len(devices)):
        raise ValueError(
            f"training.shards={shards} does not divide {len(devices)} devices evenly; "
            "choose a divisor, such as the devices of a host, or 0 for all."
        )
    # Device order by process, so that each process feeds neighbouring rows.
    ordered = sorted(devices, key=lambda d: (d.process_index, d.id))
    grid = np.array(ordered).reshape(-1, shards or len(devices))
    return Mesh(grid, ("copies", "shards"), axis_types=(AxisType.Auto,) * 2)


class Constants(NamedTuple):
    """Arguments of the step that it does not change, besides state and batch."""

    shapes: tuple[Any, ...] = ()
    load: Callable[[], tuple[Any, ...]] = tuple  # their values, once they are needed


_NO_CONSTANTS = Constants()


class JitStep:
    """The step under jit: batch sharded over a mesh, state replicated or sharded (ZeRO).

    Args:
        make_step: `train_step.make_train_step` without `over_devices`.
        devices: the devices to use.
        abstract: the shapes of the state.
        sharding: what is sharded, as `training.sharding`: 'none', 'state' (moments and
            averages) or 'full' (parameters, too).
        shards: the devices that share one copy of it, as `training.shards`.
        dtypes: the dtypes in which sharded parameters are gathered for each step.
        constants: further arguments of the step.
    """

    def __init__(
        self,
        make_step: Callable[..., Callable],
        devices: list[Any],
        abstract: TrainState,
        sharding: str = "none",
        shards: int = 0,
        dtypes: Any = None,
        constants: Constants = _NO_CONSTANTS,
    ):
        self._constants = constants
        mesh = make_mesh(devices, shards)
        self._whole = NamedSharding(mesh, PartitionSpec())
        self._rows = NamedSharding(mesh, ROWS)
        spread = jax.tree.map(lambda x: _sharding(mesh, x), abstract)
        whole = jax.tree.map(lambda _: self._whole, abstract)
        self._state = spread._replace(step=self._whole, key=self._whole)
        if sharding != "full":
            self._state = self._state._replace(params=whole.params)
        if sharding == "none":
            self._state = spread = whole
        self._step = jax.jit(
            make_step(
                over_devices=_mean_over_mesh(
                    mesh, spread.params, dtypes if sharding == "full" else None
                )
            ),
            donate_argnums=0,
            out_shardings=(self._state, self._whole),
            compiler_options=platform.compiler_options(devices[0].platform),
        )
        self._gather = jax.jit(lambda tree: tree, out_shardings=self._whole)

    def abstract(self, state: TrainState) -> TrainState:
        """Shapes of a state as `place` lays it out, for restoring straight into it."""
        return jax.tree.map(_struct, state, self._state)

    def place(self, state: TrainState) -> TrainState:
        """Puts a state of NumPy or global arrays on the devices."""
        return jax.tree.map(_put, state, self._state)

    def build(self, make_state: Callable[[Any], TrainState], params: Any):
        """Makes the state from the host's parameters, each leaf with its sharding."""
        return jax.jit(make_state, out_shardings=self._state)(params)

    def global_arrays(self, tree: Any) -> Any:
        """A part of the state as global arrays."""
        return tree

    def lower(self, state: TrainState, batch: Batch) -> Any:
        """Lowers the step for shapes only; allocates nothing."""
        shapes = {name: _struct(x, self._rows) for name, x in batch.items()}
        constants = jax.tree.map(
            lambda x: _struct(x, self._whole), self._constants.shapes
        )
        return self._step.lower(self.abstract(state), shapes, *constants)

    def __call__(self, state: TrainState, batch: Batch):
        """Takes a step. `batch` holds this process's rows as NumPy arrays."""
        batch = {
            name: jax.make_array_from_process_local_data(self._rows, x)
            for name, x in batch.items()
        }
        return self._step(state, batch, *self._loaded)

    @functools.cached_property
    def _loaded(self) -> tuple[Any, ...]:
        return jax.tree.map(lambda x: _put(x, self._whole), self._constants.load())

    def fetch(self, tree: Any) -> Any:
        """One whole copy, on a device of this process; all processes must call it."""
        if not all(x.is_fully_replicated for x in jax.tree.leaves(tree)):
            tree = self._gather(tree)
        return jax.tree.map(lambda x: x.addressable_data(0), tree)


class PmapStep:
    """The step under pmap: the state stacked, once per device, and gradients averaged."""

    def __init__(
        self,
        make_step: Callable[..., Callable],
        devices: list[Any],
        abstract: TrainState,
        sharding: str = "none",
        shards: int = 0,
        dtypes: Any = None,
        constants: Constants = _NO_CONSTANTS,
    ):
        del abstract, shards, dtypes
        self._constants = constants
        if sharding != "none":
            raise ValueError(f"sharding={sharding!r} does not work with pmap: use jit.")
        self._devices = list(make_mesh(devices).devices.flat)
        here = jax.process_index()
        self._here = [d for d in self._devices if d.process_index == here]
        self._whole = NamedSharding(make_mesh(devices), PartitionSpec())
        self._step = jax.pmap(
            make_step(over_devices=_mean_over_pmap),
            axis_name="data",
            devices=self._devices,
            donate_argnums=0,
        )

    def abstract(self, state: TrainState) -> TrainState:
        """Shapes of a state of global arrays, for restoring."""
        return jax.tree.map(lambda x: _struct(x, self._whole), state)

    def place(self, state: Any) -> Any:
        """Puts a state of NumPy or global arrays on the devices."""

        def stack(x: Any) -> np.ndarray:
            x = x.addressable_data(0) if isinstance(x, jax.Array) else x
            return np.stack([np.asarray(x)] * len(self._here))

        stacked = jax.tree.map(stack, state)
        # With another axis name than the step's, the step would compile twice.
        return jax.pmap(lambda x: x, axis_name="data", devices=self._devices)(stacked)

    def build(self, make_state: Callable[[Any], TrainState], params: Any):
        """Makes the state from the host's parameters."""
        return self.place(jax.jit(make_state)(params))

    def global_arrays(self, tree: Any) -> Any:
        """A part of the state as global arrays."""

        def unstack(x: jax.Array) -> jax.Array:
            shape = x.shape[1:]
            each = [shard.data.reshape(shape) for shard in x.addressable_shards]
            return jax.make_array_from_single_device_arrays(shape, self._whole, each)

        return jax.tree.map(unstack, tree)

    def lower(self, state: TrainState, batch: Batch) -> Any:
        """Lowers the step for shapes only; allocates nothing."""
        count = len(self._devices)

        def stacked(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((count, *x.shape), x.dtype)

        def split(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(
                (count, -(-x.shape[0] // count), *x.shape[1:]), x.dtype
            )

        rows = {name: split(x) for name, x in batch.items()}
        state, constants = jax.tree.map(stacked, (state, self._constants.shapes))
        return self._step.lower(state, rows, *constants)

    def __call__(self, state: TrainState, batch: Batch):
        """Takes a step. `batch` holds this process's rows as NumPy arrays."""
        count = len(self._here)
        return self._step(
            state,
            {n: x.reshape(count, -1, *x.shape[1:]) for n, x in batch.items()},
            *self._loaded,
        )

    @functools.cached_property
    def _loaded(self) -> tuple[Any, ...]:
        return tuple(map(self.place, self._constants.load()))

    def fetch(self, tree: Any) -> Any:
        """One whole copy, on a device of this process."""
        # x[0] would gather from every device.
        return jax.tree.map(lambda x: x.addressable_data(0).reshape(x.shape[1:]), tree)


def _mean_over_pmap(gradient: Gradient, kept: Any) -> Gradient:
    del kept
    return lambda *inputs: jax.lax.pmean(gradient(*inputs), "data")


def _mean_over_mesh(
    mesh: Mesh, spread: Any, dtypes: Any = None
) -> Callable[..., Gradient]:
    """Averages, once and in float32, the gradients that each device computes on its rows.

    Without shard_map the compiler would place the collectives: once per micro-batch, and
    in the dtype of the activations.

    Args:
        mesh: the devices.
        spread: the sharding of the mean; of a sharded leaf, each device gets its part.
        dtypes: given if the weights are sharded in the same way; the dtypes in which they
            are gathered before the first micro-batch.
    """
    if mesh.size == 1:
        return lambda gradient, kept: gradient
    specs = jax.tree.map(lambda sharding: sharding.spec, spread)
    everywhere = mesh.axis_names

    def mean(x: jax.Array, spec: PartitionSpec) -> jax.Array:
        if "shards" not in spec:
            return jax.lax.pmean(x, everywhere)
        axis = spec.index("shards")
        total = jax.lax.psum_scatter(x, "shards", scatter_dimension=axis, tiled=True)
        if mesh.shape["copies"] > 1:
            total = jax.lax.psum(total, "copies")
        return total / mesh.size

    def gathered(x: jax.Array, spec: PartitionSpec, dtype: Any) -> jax.Array:
        x = x.astype(dtype)
        if "shards" not in spec:
            return x
        return jax.lax.all_gather(x, "shards", axis=spec.index("shards"), tiled=True)

    def over_devices(gradient: Gradient, kept: Callable[[Any], Any]) -> Gradient:
        mean_specs = kept(specs)

        def of_device(weights: Any, *rows: Any) -> Any:
            if dtypes is not None:
                weights = jax.tree.map(gathered, weights, specs, dtypes)
            grads, metrics = gradient(weights, *rows)
            grads = jax.tree.map(mean, grads, mean_specs)
            return grads, jax.lax.pmean(metrics, everywhere)

        whole = PartitionSpec()
        return jax.shard_map(
            of_device,
            mesh=mesh,
            in_specs=(whole if dtypes is None else specs, ROWS, ROWS),
            out_specs=(mean_specs, whole),
            check_vma=False,  # otherwise JAX would sum the gradients before this mean
        )

    return over_devices


FORMS = {"jit": JitStep, "pmap": PmapStep}


def spread_over(shards: int, tree: Any) -> Any:
    """The number of parts of each leaf of a sharded state: 1, or `shards`."""
    return jax.tree.map(
        lambda leaf: 1 if _sharded_axis(shards, leaf) is None else shards, tree
    )


def _sharded_axis(shards: int, leaf: Any) -> int | None:
    """The longest axis that divides evenly; None for a replicated leaf."""
    axes = [i for i, size in enumerate(leaf.shape) if size % shards == 0]
    if leaf.size < _SMALLEST_SHARDED or not axes:
        return None
    return max(axes, key=lambda i: leaf.shape[i])


def _sharding(mesh: Mesh, leaf: Any) -> NamedSharding:
    axis = _sharded_axis(mesh.shape["shards"], leaf)
    spec = () if axis is None else (*[None] * axis, "shards")
    return NamedSharding(mesh, PartitionSpec(*spec))


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array) and x.sharding == sharding:
        return x  # already there, from a checkpoint
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda i: host[i])


def _struct(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
