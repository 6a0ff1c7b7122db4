"""A network as functions of its parameters: the front door of this room.

model = build(config.network, uncertainty=True)
params = model.init(seed=0)
"""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from edm_jax.models import layers, ops
from edm_jax.models.inits import draw_all
from edm_jax.models.unet import Network, Params, UNetSpec


@dataclasses.dataclass(frozen=True)
class Model:
    """A U-Net and its u(sigma) head; its parameters are a nested dict of arrays."""

    spec: UNetSpec

    def init(self, seed: int) -> Params:
        """Draws the float32 parameters as NumPy arrays: `inits.draw_all`."""
        return draw_all(self._undrawn, seed)

    def apply(
        self, params: Params, *inputs: Any, statistics: bool = False
    ) -> tuple[jax.Array, jax.Array, Params]:
        """Computes F (N, H, W, C), u (N,), and the mean square of every layer's outputs.

        Args:
            params: parameters such as `init` draws.
            inputs: x (N, H, W, C), c_noise (N,), label (N, classes); in training also
                dropout_keys (N,) and augment_label (N, augment_labels).
            statistics: whether to compute the mean squares.
        """
        mutable = ["mean_squares"] if statistics else []
        network = Network(self.spec)
        (f, u), sown = network.apply({"params": params}, *inputs, mutable=mutable)
        return f, u, sown.get("mean_squares", {})

    @property
    def network(self) -> "Model":
        """The network whose parameters `weights` returns: this one."""
        return self

    @property
    def is_unbound(self) -> bool:
        """Whether it needs weights that are not known: only with an adapter."""
        return False

    def weights(self, params: Params) -> Params:
        """The network's parameters: `params` as they are, without an adapter."""
        return params

    def change(self, updates: Params, before: Params) -> tuple[Params, Params]:
        """The change of the network's parameters, and those before it."""
        return updates, before

    @property
    def shapes(self) -> Params:
        """The shapes of the parameters; allocates nothing."""
        return nn.meta.unbox(self._undrawn)

    def inputs(self, batch: int = 1) -> tuple[Any, ...]:
        """Shapes of (x, c_noise, label) for a batch."""
        spec, side = self.spec, self.spec.resolution
        shapes = (batch, side, side, spec.channels), (batch,), (batch, spec.num_classes)
        return tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)

    def forward_order(self) -> list[str]:
        """Names of the parameters, such as 'unet/out_conv/kernel', in the order in which
        a forward pass uses them; allocates nothing."""
        names: list[str] = []

        def note(tree: Params, path: str = "") -> None:
            for key, value in tree.items():
                if isinstance(value, dict):
                    note(value, f"{path}{key}/")
                else:
                    names.append(path + key)

        def trace(*inputs: Any) -> None:
            # Inside the trace, because JAX sorts the keys of a traced function's result.
            note(Network(self.spec).init(jax.random.key(0), *inputs)["params"])

        jax.eval_shape(trace, *self.inputs())
        return names

    def keeping_activations(self) -> "Model":
        """The same network without rematerialization, which hides the layers' outputs."""
        return Model(dataclasses.replace(self.spec, remat=False))

    @functools.cached_property  # because each evaluation is a trace
    def _undrawn(self) -> Params:
        init = functools.partial(Network(self.spec).init, jax.random.key(0))
        return jax.eval_shape(init, *self.inputs())["params"]


def build(
    network: ops.NetworkConfig,
    uncertainty: bool,
    remat: bool = False,
    augment_labels: int = 0,
) -> Model:
    """Builds the network of a config.

    Args:
        network: its `network` fields.
        uncertainty: whether it has the u(sigma) head.
        remat: recompute activations in the backward pass instead of storing them.
        augment_labels: the number of values that describe an image's augmentation.
    """
    try:
        return _built(network, uncertainty, remat, augment_labels)
    except TypeError:  # an entry of the user's own holds what cannot be hashed
        return _built.__wrapped__(network, uncertainty, remat, augment_labels)


@functools.lru_cache(
    maxsize=32
)  # equal configs share a model, and the trace of its shapes
def _built(*fields: Any) -> Model:
    return Model(ops.resolve_network(*fields))


def count_params(params: Params) -> int:
    """The number of trainable parameters in a nested dict of arrays or shapes."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    trained = [x for path, x in leaves if path[-1].key not in layers.FROZEN_LEAVES]
    return sum(math.prod(x.shape) for x in trained)
