"""Update rules: from gradients to updates, before the learning rate.

In the formulas g is the gradient, w the weights, and m and v the moments, elementwise. A
penalty's weight decay works with any rule; rules with their own `weight_decay` decay
weights only, not gains, biases, norms and embeddings.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import optax

from edm_jax.fields import Count, Fraction, NotNegative, Positive, Settings
from edm_jax.optim import penalties
from edm_jax.optim.muon import Muon
from edm_jax.optim.rate_inside import OptaxOptimizer, Prodigy, ScheduleFree

Beta = float | jax.Array


@runtime_checkable
class Optimizer(Protocol):
    """An entry of OPTIMIZERS.

    It may have more methods. `rule_at(beta1)` is the rule with another beta1, for
    schedules that change it. `whole(rate)` is a rule that applies the learning rate itself
    and whose updates are added to the weights; it is used instead of `rule`.
    """

    def rule(self) -> optax.GradientTransformation:
        """The transformation of gradients into updates of rate 1."""
        ...


@dataclasses.dataclass(frozen=True)
class Adam(Settings):
    """m / (sqrt(v) + eps), both moments bias-corrected (arXiv 1412.6980, Alg. 1)."""

    beta1: Fraction = 0.9
    beta2: Fraction = 0.99  # App. B.2
    eps: NotNegative = 1e-8

    def rule(self) -> optax.GradientTransformation:
        return self.rule_at(self.beta1)

    def rule_at(self, beta1: Beta) -> optax.GradientTransformation:
        return optax.scale_by_adam(b1=beta1, b2=self.beta2, eps=self.eps)


@dataclasses.dataclass(frozen=True)
class AdamW(Adam):
    """Adam's update + weight_decay w (arXiv 1711.05101, Alg. 2), times the full rate."""

    weight_decay: NotNegative = 0.01

    def rule_at(self, beta1: Beta) -> optax.GradientTransformation:
        adam = super().rule_at(beta1)
        return optax.chain(adam, *penalties.decay(self.weight_decay))


@dataclasses.dataclass(frozen=True)
class NAdam(Adam):
    """(beta1 m' + (1 - beta1) g') / (sqrt(v) + eps): Adam with Nesterov's momentum (Dozat 2016).

    m' = m / (1 - beta1^(t + 1)), g' = g / (1 - beta1^t), v bias-corrected; as in Optax,
    without the paper's second factor of beta2. torch's NAdam warms up its beta1.
    """

    def rule_at(self, beta1: Beta) -> optax.GradientTransformation:
        return optax.scale_by_adam(b1=beta1, b2=self.beta2, eps=self.eps, nesterov=True)


@dataclasses.dataclass(frozen=True)
class AMSGrad(Adam):
    """m / (sqrt(max over steps of v) + eps) (Reddi et al. 2018, Alg. 2).

    Both moments are bias-corrected before the maximum, as in Optax; torch corrects v
    after it.
    """

    def rule_at(self, beta1: Beta) -> optax.GradientTransformation:
        return optax.scale_by_amsgrad(b1=beta1, b2=self.beta2, eps=self.eps)


@dataclasses.dataclass(frozen=True)
class SGD(Settings):
    """m = momentum m + g, without a factor 1 - momentum; nesterov: g + momentum m."""

    momentum: Fraction = 0.9
    nesterov: bool = False

    def rule(self) -> optax.GradientTransformation:
        return self.rule_at(self.momentum) if self.momentum else optax.identity()

    def rule_at(self, beta1: Beta) -> optax.GradientTransformation:
        """The rule with another momentum."""
        return optax.trace(decay=beta1, nesterov=self.nesterov)  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass(frozen=True)
class RMSprop(Settings):
    """g / (sqrt(v) + eps), v from 0 and not bias-corrected (Hinton), then SGD's momentum.

    As in torch; Optax puts eps inside the root by default.
    """

    beta2: Fraction = 0.99
    eps: NotNegative = 1e-8
    momentum: Fraction = 0.0

    def rule(self) -> optax.GradientTransformation:
        scaled = optax.scale_by_rms(self.beta2, self.eps, eps_in_sqrt=False)
        return optax.chain(scaled, SGD(self.momentum).rule())


@dataclasses.dataclass(frozen=True)
class Adagrad(Settings):
    """g / sqrt(initial + sum over steps of g^2 + eps) (Duchi et al. 2011)."""

    initial: NotNegative = 0.1
    eps: NotNegative = 1e-7

    def rule(self) -> optax.GradientTransformation:
        return optax.scale_by_rss(self.initial, self.eps)


@dataclasses.dataclass(frozen=True)
class Lion(Settings):
    """sign(beta1 m + (1 - beta1) g), then m = beta2 m + (1 - beta2) g (arXiv 2302.06675)."""

    beta1: Fraction = 0.9
    beta2: Fraction = 0.99

    def rule(self) -> optax.GradientTransformation:
        return self.rule_at(self.beta1)

    def rule_at(self, beta1: Beta) -> optax.GradientTransformation:
        return optax.scale_by_lion(b1=beta1, b2=self.beta2)


@dataclasses.dataclass(frozen=True)
class Adafactor(Settings):
    """g / sqrt(v), v a product of row and column means, RMS at most clip (arXiv 1804.04235).

    v's decay is 1 - t^(-decay). Arrays whose second-largest axis is below min_size keep
    a full v. relative_step multiplies by the RMS of the array, at least 1e-3.
    """

    decay: Positive = 0.8
    clip: Positive = 1.0
    min_size: Count = 128
    relative_step: bool = False

    def rule(self) -> optax.GradientTransformation:
        links = [
            optax.scale_by_factored_rms(
                decay_rate=self.decay, min_dim_size_to_factor=self.min_size
            ),
            optax.clip_by_block_rms(self.clip),
        ]
        scale = [optax.scale_by_param_block_rms()] * self.relative_step
        return optax.chain(*links, *scale)


@dataclasses.dataclass(frozen=True)
class LAMB(Adam):
    """u |w| / |u| for each array, u Adam's update + weight_decay w (arXiv 1904.00962, Alg. 2).

    The ratio is 1 where either norm is 0, as for gains, which start at 0.
    """

    eps: NotNegative = 1e-6
    weight_decay: NotNegative = 0.0

    def rule_at(self, beta1: Beta) -> optax.GradientTransformation:
        adam = super().rule_at(beta1)
        decay = penalties.decay(self.weight_decay)
        return optax.chain(adam, *decay, optax.scale_by_trust_ratio())


OPTIMIZERS: dict[str, Any] = {
    "adam": Adam,
    "adamw": AdamW,
    "nadam": NAdam,
    "amsgrad": AMSGrad,
    "sgd": SGD,
    "rmsprop": RMSprop,
    "adagrad": Adagrad,
    "lion": Lion,
    "adafactor": Adafactor,
    "lamb": LAMB,
    "muon": Muon,
    "schedule_free": ScheduleFree,
    "prodigy": Prodigy,
    "optax": OptaxOptimizer,
}
