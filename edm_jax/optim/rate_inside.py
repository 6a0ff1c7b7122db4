"""Rules that apply the learning rate themselves, rather than being multiplied by it."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from edm_jax.fields import Fraction, NotNegative, Positive, Settings
from edm_jax.models.unet import Params
from edm_jax.optim import leaves, optax_calls, penalties
from edm_jax.optim.timing import Inside

_MOVED = (
    "recovers its averages from the weights, which forced weight normalization moves"
)


@dataclasses.dataclass(frozen=True)
class _RateInside(Settings):
    # Why the rule does not work with forced weight normalization; '' if it does.
    unforced: ClassVar[str] = ""

    def rule(self) -> optax.GradientTransformation:
        """The updates of rate 1, to be subtracted."""
        return optax.chain(self.whole(1.0), optax.scale(-1.0))

    def whole(self, rate: float | jax.Array) -> optax.GradientTransformation:
        """The rule with this learning rate, whose updates are added to the weights."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ScheduleFree(_RateInside):
    """y = (1 - beta1) z + beta1 x: schedule-free AdamW (arXiv 2405.15682, Alg. 1).

    z takes Adam's steps (without a first moment) with gradients at y, and x is the average
    of z, weighted by the square of the largest rate so far. The weights are y; the tracked
    averages are those of x. Meant for a constant rate after a warm-up.
    """

    unforced: ClassVar[str] = _MOVED
    beta1: Inside = 0.9
    beta2: Fraction = 0.999
    eps: NotNegative = 1e-8
    weight_decay: NotNegative = 0.0

    def whole(self, rate: float | jax.Array) -> optax.GradientTransformation:
        base = optax.chain(
            optax.scale_by_rms(
                self.beta2, self.eps, eps_in_sqrt=False, bias_correction=True
            ),
            *penalties.decay(self.weight_decay),
            optax.scale(-rate),  # pyright: ignore[reportArgumentType]
        )
        return contrib.schedule_free(base, rate, self.beta1)  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass(frozen=True)
class Prodigy(_RateInside):
    """AdamW that finds its own rate d, times alpha_ref (arXiv 2306.06101, Alg. 4).

    Set alpha_ref=1: like the schedule, it multiplies the rate that was found. The estimate
    of d omits the rate from its denominator, as its authors advise for warm-ups.
    """

    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: NotNegative = 1e-8
    initial: Positive = 1e-6  # d before the first step
    growth: Positive = 1.0  # factor of the estimate
    weight_decay: NotNegative = 0.0  # applies to every parameter

    def whole(self, rate: float | jax.Array) -> optax.GradientTransformation:
        return contrib.prodigy(
            rate,  # pyright: ignore[reportArgumentType]
            (self.beta1, self.beta2),
            eps=self.eps,
            estim_lr0=self.initial,
            estim_lr_coef=self.growth,
            # Otherwise d is 0 / 0 if a warm-up starts at a rate of 0.
            safeguard_warmup=True,
            weight_decay=self.weight_decay,
        )


@dataclasses.dataclass(frozen=True)
class OptaxOptimizer(_RateInside):
    """An optimizer from Optax or optax.contrib by name, with its own arguments.

    Such as call='adabelief(b1=0.9, eps=1e-16)'. The learning rate is the config's. Frozen
    features do not change, whatever the arguments are.
    """

    call: str = "adabelief()"

    @property
    def unforced(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Why the rule does not work with forced weight normalization."""
        return _MOVED if "schedule_free" in self.call else ""

    def faults(self) -> Iterator[str]:
        """Refuses an invalid call, or a rule that needs more than gradients."""
        try:
            _, settings = self._parsed()
            if "learning_rate" in settings:
                raise ValueError("set the rate with optimizer.alpha_ref instead")
            jax.eval_shape(self._one_update, jnp.ones(()))
        except (TypeError, ValueError, NotImplementedError) as error:
            said = " ".join(str(error).split())[:200]
            yield f"call={self.call!r} does not make an optimizer: {said}"

    def whole(self, rate: float | jax.Array) -> optax.GradientTransformation:
        function, settings = self._parsed()
        return optax.chain(
            function(learning_rate=rate, **settings),
            optax.masked(optax.set_to_zero(), _frozen),
        )

    def _one_update(self, rate: jax.Array) -> Any:
        params = {"layer": {"kernel": jnp.ones((2, 2))}}
        tx = self.whole(rate)
        return tx.update(params, tx.init(params), params)

    def _parsed(self) -> tuple[Callable[..., Any], dict[str, Any]]:
        known = {
            name: function
            for name, function in optax_calls.functions(optax, contrib).items()
            if "learning_rate" in optax_calls.arguments(function)
            and not name.startswith("scale_by_")
        }
        return optax_calls.parse(self.call, known)


def _frozen(params: Params) -> Params:
    return leaves.of_kinds(params, {"frozen"})
