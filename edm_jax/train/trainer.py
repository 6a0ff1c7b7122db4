"""Assembles a run from its config: denoiser, parallel step, initial state."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from edm_jax import diffusion, ema, platform
from edm_jax.models.adapters import Adapted
from edm_jax.models.effective import effective
from edm_jax.models.unet import Params
from edm_jax.optim import chain
from edm_jax.train import bases, parallel
from edm_jax.train import step as train_step
from edm_jax.train.config import RunConfig
from edm_jax.train.step import Batch, TrainState

Profile = ema.PowerProfile | ema.TraditionalProfile


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The parts of one run. `profiles` are the tracked averages by name."""

    config: RunConfig
    denoiser: diffusion.Denoiser
    profiles: dict[str, Profile]
    shapes: TrainState
    step: parallel.JitStep | parallel.PmapStep
    current_averages: Callable[[TrainState], dict[str, Params]]

    @property
    def longest_average(self) -> str:
        """Name of the longest power-function average: the same for every letter."""
        powers = {
            name: profile.sigma_rel
            for name, profile in self.profiles.items()
            if isinstance(profile, ema.PowerProfile)
        }
        return max(powers, key=powers.__getitem__)

    def averages(self, state: TrainState, step: int) -> dict[str, Params]:
        """The tracked averages after `step` steps, as global arrays."""
        if step % self.config.ema.update_every == 0:
            return self.step.global_arrays(state.emas)
        return self.current_averages(self.step.global_arrays(state))

    def initial_state(self, base: bases.Base | None = None) -> TrainState:
        """The state before the first step, on the devices.

        Args:
            base: what it starts from, if that is known; it is found otherwise.
        """
        opt, seed = self.config.optimizer, self.config.seed
        tx = chain.make_optimizer(opt, self.config.training.duration_mimg)
        adapted = self.config.is_adapted
        if base := None if adapted else base or bases.begin(self.config):
            return self.step.build(
                lambda begun: train_step.init_state(
                    begun[0], tx, self.profiles, seed, begun[1]
                ),
                base.initial(seed),
            )
        params = chain.initial(opt, self.denoiser.model.init(seed))
        return self.step.build(
            lambda p: train_step.init_state(p, tx, self.profiles, seed), params
        )


def make_trainer(
    config: RunConfig, devices: list[Any] | None = None, before_nimg: int = 0
) -> Trainer:
    """Assembles a run, after preparing the process for JAX on a CPU (`platform.prepare`).

    Args:
        config: the run's config.
        devices: the devices to use; by default all.
        before_nimg: images on the clock of the averages before the run, `Base.before_nimg`.

    Raises:
        ValueError: the batch does not divide over the devices.
    """
    platform.prepare()
    devices = devices or jax.devices()
    platform.warn_if_idle(devices[0].platform)
    loss, opt, training = config.loss, config.optimizer, config.training
    parts = len(devices) * training.microbatches
    if opt.batch_size % parts:
        raise ValueError(
            f"optimizer.batch_size={opt.batch_size} does not divide evenly over "
            f"{len(devices)} devices x {training.microbatches} training.microbatches; "
            f"choose a multiple of {parts}."
        )
    if config.model.is_unbound:
        config = bases.bound(config)
    denoiser = diffusion.Denoiser(config.model, loss.sigma_data)
    profiles = config.ema.profiles()
    before = before_nimg / opt.batch_size
    weights = {n: _weight(profile, config, before) for n, profile in profiles.items()}
    trained, kernels = denoiser, None
    if training.sharding == "full":
        kernels = effective(config.model)
        trained = dataclasses.replace(denoiser, model=kernels.model)
    drawn = config.data.augment, loss.label_dropout

    def make_step(
        model: Any = trained.model, **over: Any
    ) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]:
        of_model = dataclasses.replace(trained, model=model)
        return train_step.make_train_step(
            diffusion.make_loss(of_model, loss.P_mean, loss.P_std, *drawn),
            chain.make_optimizer(opt, training.duration_mimg),
            weights,
            opt.loss_scale,
            training.microbatches,
            trained=opt.trained,
            change=model.change,
            **({"weights": kernels.weights} if kernels else {}),
            **over,
        )

    def make_adapted_step(adapted: Adapted, **over: Any) -> Callable[..., Any]:
        def step(state: TrainState, batch: Batch, base: Params) -> Any:
            key = jax.random.fold_in(state.key, state.step)
            return make_step(adapted.in_step(base, key), **over)(state, batch)

        return step

    shapes = abstract_state(config)
    form = parallel.FORMS[training.parallel]
    dtypes = kernels.dtypes if kernels else None
    constants = parallel.Constants()
    of_model: Callable[..., Any] = make_step
    if isinstance(model := config.model, Adapted):
        of_model = functools.partial(make_adapted_step, model)
        constants = parallel.Constants((model.network.shapes,), lambda: (model.base(),))
    step = form(
        of_model,
        devices,
        shapes,
        training.sharding,
        training.shards,
        dtypes,
        constants,
    )
    current_averages = jax.jit(train_step.make_current_averages(weights, opt.trained))
    return Trainer(config, denoiser, profiles, shapes, step, current_averages)


def abstract_state(config: RunConfig) -> TrainState:
    """The shapes of a run's state; allocates nothing."""
    params = config.model.shapes
    tx = chain.make_optimizer(config.optimizer, config.training.duration_mimg)
    profiles = config.ema.profiles()
    return jax.eval_shape(
        lambda p: train_step.init_state(p, tx, profiles, seed=0), params
    )


def abstract_batch(config: RunConfig) -> Batch:
    """The shapes of a batch of the whole run."""
    net, count = config.network, config.optimizer.batch_size
    image = (count, net.resolution, net.resolution, net.channels)
    return {
        "image": jax.ShapeDtypeStruct(image, np.float32),
        "label": jax.ShapeDtypeStruct((count,), np.int32),
        "index": jax.ShapeDtypeStruct((count,), np.int32),
    }


def _weight(profile: Profile, config: RunConfig, before: float) -> train_step.EmaWeight:
    every = config.ema.update_every
    if isinstance(profile, ema.PowerProfile):
        return train_step.power_ema_weight(profile.gamma, every, before)
    return train_step.traditional_ema_weight(
        profile.halflife_mimg * 1e6,
        profile.rampup,
        config.optimizer.batch_size,
        every,
        before,
    )
