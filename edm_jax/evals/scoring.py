"""Images to metrics: networks loaded, references found, samples scored."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edm_jax import data
from edm_jax.data.config import DataConfig
from edm_jax.evals import metrics
from edm_jax.evals.features import references, sources
from edm_jax.evals.features.extraction import Extractor
from edm_jax.evals.features.networks import NETWORKS
from edm_jax.evals.features.references import Reference
from edm_jax.evals.features.sources import Source
from edm_jax.evals.latents import Decoder, NotDecoded

OnProgress = Callable[[str, int, int], None]  # (what, images done, total)


_NOT_DECODED = NotDecoded()


class Scorer:
    """Scores sets of images by metrics, each network loaded once.

    Args:
        names: of METRICS.
        weights: a file or directory of weights; by default installed packages'.
        on_progress: takes what is being done, and how far.

    Raises:
        FileNotFoundError: a network's weights are not there.
        ValueError: they are damaged, or another network's.
    """

    def __init__(
        self,
        names: Sequence[str],
        weights: Path | None = None,
        on_progress: OnProgress = lambda *_: None,
    ):
        self.names, self.on_progress = names, on_progress
        self._extractors: dict[str, Extractor] = {}
        self._splits: dict[str, dict[str, Reference]] = {}
        for name in metrics.networks_of(names):
            network = NETWORKS[name]
            self._extractors[name] = Extractor(network.load(network.find(weights)))

    def reference(
        self, name: str, images: Source, identity: Mapping[str, Any] | None = None
    ) -> dict[str, Reference]:
        """By network, of a set of images; see `references.of_images`."""
        report = functools.partial(self.on_progress, "reference")
        return {
            network: references.of_images(name, images, extract, identity, report)
            for network, extract in self._extractors.items()
        }

    def of_split(
        self, config: DataConfig, split: str, decoder: Decoder = _NOT_DECODED
    ) -> dict[str, Reference]:
        """By network, of a split of a data set, kept by its fingerprint."""
        data.prepare(config)
        images: Source = sources.Split(config, split, decoder.decodes)
        identity: dict[str, Any] = {"data": data.fingerprint(config), "split": split}
        if config.classes:
            identity["classes"] = config.classes
        if decoder.decodes:
            images = sources.Decoded(images, decoder)
            identity["decoder"] = decoder.made_of()
        key = json.dumps(identity, sort_keys=True)
        if key not in self._splits:
            name = f"{config.name} ({split})"
            self._splits[key] = self.reference(name, images, identity)
        return self._splits[key]

    def of_file(self, path: Path) -> dict[str, Reference]:
        """By network, of a file of statistics; raises as `references.read`."""
        return {
            network: references.read(path, metrics.frechet_name(network))
            for network in self._extractors
        }

    def score(
        self, draws: Sequence[Source], real: Mapping[str, Reference]
    ) -> dict[str, Any]:
        """The metrics of sets of images; see `metrics.score`."""
        metrics.check(self.names, real)
        report = functools.partial(self.on_progress, "features")
        found = {
            network: [extract(images, report) for images in draws]
            for network, extract in self._extractors.items()
        }
        return metrics.score(self.names, found, real)


def of_run(
    config: DataConfig,
    samples: Any,
    names: Sequence[str],
    weights: Path | None = None,
    on_progress: OnProgress = lambda *_: None,
    decoder: Decoder = _NOT_DECODED,
) -> dict[str, Any]:
    """The metrics of a run's normalised samples against all of its training images."""
    scorer = _scorer(tuple(names), weights)
    scorer.on_progress = on_progress
    real = scorer.of_split(config, config.train_split, decoder)
    return scorer.score([sources.of_samples(config, samples, decoder)], real)


@functools.lru_cache(maxsize=1)
def _scorer(names: Sequence[str], weights: Path | None) -> Scorer:
    return Scorer(names, weights)  # once in training, though measured many times
