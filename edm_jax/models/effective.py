"""A network that takes effective kernels: normalized once, and sent in half precision."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from edm_jax.models import layers
from edm_jax.models.build import Model
from edm_jax.models.unet import Params


class Effective(NamedTuple):
    """model.apply(weights(params)) equals the original model.apply(params).

    If parameters are sharded, `weights` is computed on the shards in float32, and devices
    exchange only the result, in the dtype in which it is used.
    """

    model: Model
    weights: Callable[[Params], Params]  # kernels normalized and scaled; float32
    dtypes: Params  # the dtypes in which they are used


def effective(model: Model) -> Effective:
    """Makes a network whose layers take effective kernels; allocates nothing."""
    used: dict[tuple[str, ...], tuple[Any, bool]] = {}

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(layer := context.module, layers.Layer):
            used[layer.path] = args[0].dtype, layer.normalized
        return call(*args, **kwargs)

    plain_model = model.keeping_activations()
    with nn.intercept_methods(note):
        shapes = plain_model.shapes

    def weights(params: Params) -> Params:
        return _map_layers(
            lambda path, leaves: layers.effective_kernel(
                leaves["kernel"], leaves.get("gain", 1.0), used[path][1]
            ),
            params,
        )

    dtypes = _map_layers(
        lambda path, leaves: used[path][0], jax.tree.map(lambda x: x.dtype, shapes)
    )
    ops = model.spec.ops
    as_they_are = {
        name: functools.partial(getattr(ops, name), normalized=False)
        for name in ("layer", "last_layer", "label_layer")
    }
    ops = dataclasses.replace(ops, gain=False, **as_they_are)
    return Effective(Model(dataclasses.replace(model.spec, ops=ops)), weights, dtypes)


def _map_layers(
    function: Callable[[tuple[str, ...], Params], Any], tree: Params, *path: str
) -> Params:
    """The tree with function(path, leaves) for each layer's kernel."""
    return {
        name: _map_layers(function, each, *path, name)
        if isinstance(each, dict)
        else function(path, tree)
        if name == "kernel"
        else each
        for name, each in tree.items()
    }
