"""Preconditioning, noise distribution and loss (Eq. 4-8, 14-16, 21); all float32."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from edm_jax.data import augment as augmentation
from edm_jax.data.augment import Augment, NoAugment
from edm_jax.fields import Finite, Fraction, Positive, Settings
from edm_jax.models.build import Model
from edm_jax.models.layers import Array
from edm_jax.models.unet import Params

Metrics = dict[str, Any]
_NO_AUGMENT = NoAugment()

# Upper ends of the ranges of sigma that the loss is logged in; the last has none.
SIGMA_EDGES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
# Apart from the streams that the loss splits off an example's key, and augmentation's.
_LABEL_SALT = 0xC1A55


def scalings(sigma: Array, sigma_data: float) -> tuple[Array, Array, Array, Array]:
    """c_skip, c_out, c_in and c_noise at noise levels sigma (Eq. 5-8)."""
    variance = sigma**2 + sigma_data**2
    c_skip = sigma_data**2 / variance
    c_out = sigma * sigma_data * jax.lax.rsqrt(variance)
    c_in = jax.lax.rsqrt(variance)
    return c_skip, c_out, c_in, jnp.log(sigma) / 4


def loss_weight(sigma: Array, sigma_data: float) -> Array:
    """lambda(sigma): 1 is the loss of a network that outputs zero (Eq. 15)."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


@dataclasses.dataclass(frozen=True)
class LossConfig(Settings):
    """A config's `loss` fields: ln(sigma) ~ N(P_mean, P_std^2), and the u(sigma) head."""

    sigma_data: Positive
    P_mean: Finite
    P_std: Positive
    uncertainty: bool
    label_dropout: Fraction


class Denoised(NamedTuple):
    """D(x; sigma) (N, H, W, C), u(sigma) (N,), and layer statistics where asked for."""

    image: Array
    logvar: Array
    mean_squares: Params


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """D(x; sigma, label): a network with its preconditioning (Eq. 4).

    unconditional: the network is not given the class, as when `label_dropout` hid it in
    training. That is the guide of classifier-free guidance.
    """

    model: Model
    sigma_data: float
    unconditional: bool = False

    def __call__(
        self,
        params: Params,
        x: Array,
        sigma: Array,
        label: Array,
        dropout_keys: Array | None = None,
        augment_label: Array | None = None,
        statistics: bool = False,
    ) -> Denoised:
        """x: (N, H, W, C), sigma: (N,), label: (N,) ints or (N, classes).

        In training, dropout_keys: (N,), and augment_label: (N, augment_labels), which is
        zeros otherwise. statistics: also the mean square of every layer's output
        features.
        """
        c_skip, c_out, c_in, c_noise = scalings(sigma, self.sigma_data)
        c_skip, c_out, c_in = (c[:, None, None, None] for c in (c_skip, c_out, c_in))
        inputs = (c_in * x, c_noise, self.encode(label), dropout_keys, augment_label)
        f, logvar, mean_squares = self.model.apply(
            params, *inputs, statistics=statistics
        )
        return Denoised(c_skip * x + c_out * f, logvar, mean_squares)

    def encode(self, label: Array) -> Array:
        """Class indices (N,) -> one-hot (N, classes) float32; vectors pass through."""
        if self.unconditional:
            return jnp.zeros((len(label), self.model.spec.num_classes), jnp.float32)
        if label.ndim == 2:
            return label.astype(jnp.float32)
        return jax.nn.one_hot(label, self.model.spec.num_classes, dtype=jnp.float32)


def example_keys(key: Array, step: Array, index: Array) -> Array:
    """(N,) keys that belong to the examples: by step and place in the global batch."""
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(lambda i: jax.random.fold_in(step_key, i))(index)


def make_loss(
    denoiser: Denoiser,
    P_mean: float,
    P_std: float,
    augment: Augment = _NO_AUGMENT,
    label_dropout: float = 0.0,
) -> Callable[[Params, dict[str, Any], Array], tuple[Array, Metrics]]:
    """loss(params, batch, keys) -> (loss, metrics), Eq. 14-16 and 21.

    batch: image (N, H, W, C) scaled to sigma_data, label. keys: (N,), from which
    `augment` draws how it changes each image, and `label_dropout`, a share, whose class
    is hidden (arXiv 2207.12598). Per element the loss is
    lambda (D - y)^2 / e^u + u, summed over C, H, W and averaged over the batch: a mean
    over elements would shrink gradients against Adam's epsilon.
    """

    draw = _drawer(denoiser, P_mean, P_std, augment, label_dropout)

    def loss(params: Params, batch: dict[str, Any], keys: Array):
        image, inputs = draw(batch, keys)
        denoised, logvar, _ = denoiser(params, *inputs)
        sigma = inputs[1]
        weight = loss_weight(sigma, denoiser.sigma_data)
        error = weight * jnp.sum(jnp.square(denoised - image), axis=(1, 2, 3))
        elements = image[0].size
        total = jnp.mean(error * jnp.exp(-logvar) + elements * logvar)
        per_element = error / elements
        metrics = {"loss": total, "loss_per_element": jnp.mean(per_element)}
        return total, metrics | {"sigma": _by_sigma(sigma, per_element, logvar)}

    return loss


def make_layer_check(
    denoiser: Denoiser,
    P_mean: float,
    P_std: float,
    augment: Augment = _NO_AUGMENT,
    label_dropout: float = 0.0,
) -> Callable[[Params, dict[str, Any], Array], Params]:
    """(params, batch, keys) -> the mean square of every layer's outputs in the loss.

    Repeats the loss's own random draws, to find what is not finite.
    """
    draw = _drawer(denoiser, P_mean, P_std, augment, label_dropout)

    def check(params: Params, batch: dict[str, Any], keys: Array) -> Params:
        _, inputs = draw(batch, keys)
        return denoiser(params, *inputs, statistics=True).mean_squares

    return check


def _drawer(
    denoiser: Denoiser,
    P_mean: float,
    P_std: float,
    augment: Augment,
    label_dropout: float,
) -> Callable[[dict[str, Any], Array], tuple[Array, tuple[Any, ...]]]:
    """(batch, keys) -> the images to restore, and the denoiser's inputs."""
    noisy = _noiser(P_mean, P_std)

    def draw(batch: dict[str, Any], keys: Array) -> tuple[Array, tuple[Any, ...]]:
        image, told = augmentation.apply(augment, keys, batch["image"])
        x, sigma, dropout_keys = noisy(image, keys)
        label = batch["label"]
        if label_dropout:
            told_of = jax.vmap(lambda key: _is_told(key, label_dropout))(keys)
            label = jnp.where(told_of[:, None], denoiser.encode(label), 0.0)
        return image, (x, sigma, label, dropout_keys, told)

    return draw


def _is_told(key: Array, label_dropout: float) -> Array:
    """Whether the network sees an example's class."""
    return ~jax.random.bernoulli(jax.random.fold_in(key, _LABEL_SALT), label_dropout)


def _noiser(P_mean: float, P_std: float) -> Callable[[Array, Array], tuple[Array, ...]]:
    """(image, keys) -> noisy images, sigma, and keys for the dropout (Eq. 16)."""

    def draw(key: Array, image: Array) -> tuple[Array, Array, Array]:
        sigma_key, noise_key, dropout_key = jax.random.split(key, 3)
        sigma = jnp.exp(P_mean + P_std * jax.random.normal(sigma_key))
        noise = sigma * jax.random.normal(noise_key, image.shape)
        return image + noise, sigma, dropout_key

    return lambda image, keys: jax.vmap(draw)(keys, image)


def _by_sigma(sigma: Array, per_element: Array, logvar: Array) -> Metrics:
    """Sums over the examples of each range of sigma, divided by the batch size.

    So that they can be averaged over devices and steps like any other metric: the loss
    of a range is then loss / share.
    """
    # Not jnp.searchsorted, which is a loop. NaN comes last.
    place = jnp.sum(~(sigma[:, None] <= jnp.asarray(SIGMA_EDGES)[None]), axis=1)
    member = place[:, None] == jnp.arange(len(SIGMA_EDGES) + 1)[None]

    def share(value: Array) -> Array:
        # Not a product: one loss that is not finite would spoil every range.
        return jnp.mean(jnp.where(member, value[:, None], 0.0), axis=0)

    ones = jnp.ones_like(sigma)
    return {"share": share(ones), "loss": share(per_element), "logvar": share(logvar)}
