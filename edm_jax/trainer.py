"""From a resolved config to what trains it: denoiser, parallel step, first state."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from edm_jax import diffusion, ema, networks, optim, resolve, train_step
from edm_jax.train_step import TrainState

Profile = ema.PowerProfile | ema.TraditionalProfile


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The parts of one run. `profiles` are the tracked averages by name."""

    config: Any
    denoiser: diffusion.Denoiser
    profiles: dict[str, Profile]
    step: train_step.JitStep | train_step.PmapStep
    current_averages: Callable[[TrainState], dict[str, networks.Params]]

    @property
    def longest_average(self) -> str:
        """Name of the longest power-function average: the same for every letter."""
        powers = {
            name: profile.sigma_rel
            for name, profile in self.profiles.items()
            if isinstance(profile, ema.PowerProfile)
        }
        return max(powers, key=powers.__getitem__)

    def averages(self, state: TrainState, step: int) -> dict[str, networks.Params]:
        """The tracked averages as they are after `step` steps, still on the devices."""
        if step % self.config.ema.update_every == 0:
            return self.step.fetch(state.emas)
        return self.current_averages(self.step.fetch(state))

    def initial_state(self) -> TrainState:
        """The state before the first step, on the devices."""
        opt = self.config.optimizer
        params = networks.init_params(self.denoiser.spec, self.config.seed)
        params = jax.tree.map(jnp.asarray, params)
        if opt.forced_weight_norm:
            params = optim.project(params)
        tx = optim.make_optimizer(opt)
        seed = self.config.seed
        return self.step.place(train_step.init_state(params, tx, self.profiles, seed))


def make_trainer(config: Any, devices: list[Any] | None = None) -> Trainer:
    """Assembles a run; `devices` default to all. Raises ValueError where it can't."""
    devices = devices or jax.devices()
    batch_size = config.optimizer.batch_size
    if batch_size % len(devices):
        raise ValueError(
            f"optimizer.batch_size={batch_size} does not divide over {len(devices)} "
            "devices; choose a multiple."
        )
    loss, opt = config.loss, config.optimizer
    denoiser = diffusion.Denoiser(resolve.resolve_network(config), loss.sigma_data)
    profiles = tracked_profiles(config.ema)
    weights = {name: _weight(profile, config) for name, profile in profiles.items()}
    make_step = functools.partial(
        train_step.make_train_step,
        diffusion.make_loss(denoiser, loss.P_mean, loss.P_std),
        optim.make_optimizer(opt),
        weights,
        opt.loss_scale,
    )
    step = train_step.PARALLEL[config.training.parallel](make_step, devices)
    current_averages = jax.jit(train_step.make_current_averages(weights))
    return Trainer(config, denoiser, profiles, step, current_averages)


def total_steps(config: Any) -> int:
    """Steps in all: the first whole number that reaches training.duration_mimg."""
    return math.ceil(
        round(config.training.duration_mimg * 1e6) / config.optimizer.batch_size
    )


def tracked_profiles(ema_config: Any) -> dict[str, Profile]:
    """The averages that a run tracks, by name."""
    rampup = ema_config.halflife_rampup
    power = {f"power_{s:g}": ema.PowerProfile(s) for s in ema_config.sigma_rels}
    traditional = {
        f"traditional_{h:g}": ema.TraditionalProfile(h, rampup)
        for h in ema_config.halflives_mimg
    }
    return power | traditional


def _weight(profile: Profile, config: Any) -> train_step.EmaWeight:
    every = config.ema.update_every
    if isinstance(profile, ema.PowerProfile):
        return train_step.power_ema_weight(profile.gamma, every)
    return train_step.traditional_ema_weight(
        profile.halflife_mimg * 1e6, profile.rampup, config.optimizer.batch_size, every
    )
