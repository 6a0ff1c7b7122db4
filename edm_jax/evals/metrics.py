"""The metrics of samples by name: a distance in the features of a network.

A metric is named after its network: only FID's Inception gives `fid` and `kid`.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from edm_jax.evals import distances, frechet, protocol
from edm_jax.evals.features.extraction import Features
from edm_jax.evals.features.networks import NETWORKS
from edm_jax.evals.features.references import Reference
from edm_jax.fields import one_of

Measure = Callable[[Features, Reference], dict[str, float]]
_FEWEST = 20  # images to extrapolate from


def _frechet(fake: Features, real: Reference) -> dict[str, float]:
    return {"fd": _distance(fake.vectors, real)}


def _distance(vectors: np.ndarray, real: Reference) -> float:
    width = len(real.gaussian.mean)
    if vectors.shape[1] != width:
        raise ValueError(
            f"{real.name} holds statistics of {width:,} features, but the network gives "
            f"{vectors.shape[1]:,}."
        )
    return frechet.frechet_distance(frechet.gaussian_fit(vectors), real.gaussian)


def _kernel(fake: Features, real: Reference) -> dict[str, float]:
    mean, std = distances.kid(_vectors(real), fake.vectors)
    return {"kd": mean, "kd_std": std}


def _precision_recall(fake: Features, real: Reference) -> dict[str, float]:
    found = distances.precision_recall(_vectors(real), fake.vectors)
    return dict(zip(("precision", "recall"), found, strict=True))


def _density_coverage(fake: Features, real: Reference) -> dict[str, float]:
    found = distances.density_coverage(_vectors(real), fake.vectors)
    return dict(zip(("density", "coverage"), found, strict=True))


def _score(fake: Features, real: Reference) -> dict[str, float]:
    del real
    assert fake.logits is not None
    mean, std = distances.inception_score(fake.logits)
    return {"is": mean, "is_std": std}


def _vectors(real: Reference) -> np.ndarray:
    assert real.vectors is not None  # see `check`
    return real.vectors


_MEASURES: dict[str, Measure] = {
    "fd": _frechet,
    "kd": _kernel,
    "pr": _precision_recall,
    "dc": _density_coverage,
    "is": _score,
}
# What everybody calls them.
_KNOWN = {"fd_inception": "fid", "kd_inception": "kid", "kd_std_inception": "kid_std"}


@dataclasses.dataclass(frozen=True)
class Metric:
    """A distance, by its name in _MEASURES, in the features of a network of NETWORKS."""

    distance: str
    network: str

    def measure(self, fake: Features, real: Reference) -> dict[str, float]:
        """{name: value}; raises ValueError where the reference is of other features."""
        found = _MEASURES[self.distance](fake, real)
        return {_name(key, self.network): value for key, value in found.items()}


def _name(key: str, network: str) -> str:
    name = f"{key}_{network}"
    return _KNOWN.get(name, name)


def frechet_name(network: str) -> str:
    """The name of a network's Fréchet distance, and of its entry in reference files."""
    return _name("fd", network)


METRICS = {
    _name(distance, network): Metric(distance, network)
    for network in NETWORKS
    for distance in _MEASURES
    if distance != "is" or network == "inception"
}


def pick(text: str, option: str = "--metric") -> list[str]:
    """'fid,pr_inception' as names of METRICS; raises ValueError for any other."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in METRICS:
            raise ValueError(f"{option}={name!r}, {one_of(name, METRICS)}")
    return list(dict.fromkeys(names))


def networks_of(names: Iterable[str]) -> list[str]:
    """The networks that metrics need, each once."""
    return list(dict.fromkeys(METRICS[name].network for name in names))


def check(names: Iterable[str], references: Mapping[str, Reference]) -> None:
    """Raises ValueError if a metric needs images and its reference has only statistics."""
    for name in names:
        real = references[METRICS[name].network]
        if METRICS[name].distance not in ("fd", "is") and real.vectors is None:
            raise ValueError(
                f"{real.name} holds only statistics, which are enough for Fréchet "
                f"distances; for {name}, name the images themselves as the reference."
            )


def score(
    names: Collection[str],
    draws: Mapping[str, Sequence[Features]],
    references: Mapping[str, Reference],
) -> dict[str, Any]:
    """Measures sets of samples.

    Args:
        names: of METRICS.
        draws: by network, the features of each set.
        references: by network.

    Returns:
        Of one set, {name: value}. Of several, the `_mean` over the sets, `_ci95`, half
        of its 95% interval, the values as `_draws`, and of distances the `_lowest`: the
        papers report the lowest of three, which is lower than the mean. Fréchet
        distances of fewer than 50,000 images have an `_at_infinity`, extrapolated from
        subsets of the first set.

    Raises:
        ValueError: a reference is of other features.
    """
    result: dict[str, Any] = {}
    for name in names:
        metric = METRICS[name]
        sets, real = draws[metric.network], references[metric.network]
        found = [metric.measure(features, real) for features in sets]
        for key in found[0]:
            result |= _summary(key, [each[key] for each in found])
        vectors = sets[0].vectors
        if metric.distance == "fd" and _FEWEST <= len(vectors) < protocol.ENOUGH:
            result[f"{name}_at_infinity"] = protocol.at_infinity(
                lambda few, real=real: _distance(few, real), vectors
            )
    return result


def _summary(key: str, values: Sequence[float]) -> dict[str, Any]:
    if len(values) == 1:
        return {key: values[0]}
    draws = protocol.Draws(tuple(values))
    found = {
        f"{key}_mean": draws.mean,
        f"{key}_ci95": draws.half_width,
        f"{key}_draws": list(values),
    }
    is_distance = key in METRICS and key[:2] != "is"
    return {f"{key}_lowest": draws.lowest, **found} if is_distance else found
