"""Finds the first layer that is not finite, once a gradient is not."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import diffusion
from edm_jax.models.unet import Params
from edm_jax.train.step import Batch, TrainState
from edm_jax.train.trainer import Trainer

_NOWHERE = float(2**24)  # larger than any place, and exact in float32


class Diagnosis:
    """Names the first bad layer of a step.

    Recomputes the forward pass with the step's own noise and the current weights. If all
    of it is finite, the fault is in the backward pass, which reaches the last layer first.
    """

    def __init__(self, trainer: Trainer, agree: Callable[[float], list[float]]):
        self._trainer, self._agree = trainer, agree
        loss, model = trainer.config.loss, trainer.denoiser.model
        self._model = model
        model = model.network.keeping_activations()
        denoiser = dataclasses.replace(trainer.denoiser, model=model)
        drawn = trainer.config.data.augment, loss.label_dropout
        check = diffusion.make_layer_check(denoiser, loss.P_mean, loss.P_std, *drawn)

        def outputs(params: Params, batch: Batch, key: Any, step: Any) -> Params:
            keys = diffusion.example_keys(key, step, batch["index"])
            return check(params, batch, keys)

        # It runs once: fast compilation saves more than fast execution.
        quick = {"xla_backend_optimization_level": 0}
        on_cpu = jax.default_backend() == "cpu"
        self._outputs = jax.jit(outputs, compiler_options=quick if on_cpu else None)

    @functools.cached_property
    def _order(self) -> list[str]:
        return self._model.network.forward_order()

    def first_bad(
        self, state: TrainState, batch: Batch, step: int, by_leaf: list[int]
    ) -> str:
        """Describes the first bad place in words. All processes must call it.

        Args:
            state: the current state.
            batch: this process's rows.
            step: the number of steps taken before the bad one.
            by_leaf: `nonfinite_by_leaf` from its metrics.
        """
        place = int(min(self._agree(self._forward(state, batch, step))))
        if place < 0:
            return "the batch's images"
        if place < _NOWHERE:
            name, is_output = self._order[place // 2], place % 2
            layer, _, leaf = name.rpartition("/")
            return f"output of {layer}" if is_output else f"{leaf} of {layer}"
        trained = self._trainer.config.optimizer.trained
        names = list(_by_name(trained(self._trainer.shapes.params)))
        bad = {name for name, count in zip(names, by_leaf, strict=True) if count}
        if not bad:
            return "gradient after loss_scale is divided out"
        last = max(bad, key=self._model.forward_order().index)
        return f"gradient of {last.rpartition('/')[0]}"

    def _forward(self, state: TrainState, batch: Batch, step: int) -> float:
        """-1 for the images; 2 i for parameter i, 2 i + 1 for the output of its layer."""
        if not np.isfinite(batch["image"]).all():
            return -1.0
        params, key = self._trainer.step.fetch((state.params, state.key))
        params = self._model.weights(params)
        at = jnp.int32(step)
        # Each device holds as many rows at a time as in the step.
        count = jax.local_device_count() * self._trainer.config.training.microbatches
        size = len(batch["index"])
        rows = np.array_split(np.arange(size), min(count, size))
        parts = [
            self._outputs(params, {k: v[r] for k, v in batch.items()}, key, at)
            for r in rows
        ]
        outputs = _by_name(jax.tree.map(lambda *part: np.stack(part), *parts))
        weights = _by_name(params)
        for place, name in enumerate(self._order):
            layer = name.rpartition("/")[0]
            if not np.isfinite(weights[name]).all():
                return 2.0 * place
            # A layer's output comes after the last of its parameters.
            following = self._order[place + 1 : place + 2]
            ends = not any(each.startswith(f"{layer}/") for each in following)
            output = outputs.get(f"{layer}/output/0", np.zeros(1))
            if ends and not np.isfinite(output).all():
                return 2.0 * place + 1
        return _NOWHERE


def _by_name(tree: Params) -> dict[str, Any]:
    """{'unet/out_conv/kernel': leaf, ...} in the order of the tree's leaves."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
