"""The config of a whole run: every room's settings, and checks across rooms."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

from edm_jax import fields, menu, tree
from edm_jax.data.augment import Edm
from edm_jax.data.config import DataConfig
from edm_jax.diffusion.denoiser import LossConfig
from edm_jax.ema.config import EmaConfig
from edm_jax.evals.config import EvaluationConfig
from edm_jax.fields import Bound, Count, Index, Positive, Settings
from edm_jax.models.adapters import ADAPTERS, Adapted, Adapter, NoAdapter
from edm_jax.models.build import Model, build
from edm_jax.models.ops import NetworkConfig
from edm_jax.models.unet import Params
from edm_jax.optim import groups
from edm_jax.optim.chain import OptimizerConfig
from edm_jax.optim.plateau import Plateau
from edm_jax.train.starts import STARTS, Start, Weights


@dataclasses.dataclass(frozen=True)
class TrainingConfig(Settings):
    """A config's `training` fields: duration, when to record what, and how to execute."""

    start: Annotated[Start, menu.Entry(STARTS)]
    duration_mimg: Positive
    snapshot_mimg: Bound
    snapshot_dir: str
    log_mimg: Bound
    probe_mimg: Bound
    patience_mimg: Bound
    alert_loss: Bound
    alert_growth: Bound
    alert_z: Bound
    alert_update: Bound
    sharpness_iterations: Index  # of Lanczos, at probes; 0: none
    evaluate_mimg: Bound
    checkpoint_mimg: Bound
    keep_checkpoints: Count
    keep_checkpoint_mimg: Bound
    parallel: Literal["jit", "pmap"]
    sharding: Literal["none", "state", "full"]
    shards: Index
    microbatches: Count
    remat: bool

    def faults(self) -> Iterator[str]:
        if self.parallel == "pmap" and self.sharding != "none":
            yield (
                f"sharding={self.sharding!r} needs training.parallel='jit': pmap keeps "
                "the whole state on every device."
            )
        if self.shards and self.sharding == "none":
            yield (
                f"shards={self.shards} needs training.sharding='state' or 'full': without, "
                "every device has a copy of the whole state."
            )


@dataclasses.dataclass(frozen=True)
class RunConfig(Settings):
    """The config of a run, typed and checked."""

    letter: str
    title: str
    workload: str
    seed: Index
    data: DataConfig
    network: NetworkConfig
    adapter: Annotated[Adapter, menu.Entry(ADAPTERS)]
    loss: LossConfig
    optimizer: OptimizerConfig
    ema: EmaConfig
    training: TrainingConfig
    evaluation: EvaluationConfig

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "RunConfig":
        """Makes a config from its fields as nested dicts.

        Raises:
            ValueError: a field is missing, unknown, mistyped or out of range, or two
                fields contradict each other; the message names them.
        """
        return fields.make(cls, "", config)

    def to_dict(self) -> dict[str, Any]:
        """The fields as nested dicts, as config.json holds them."""
        return fields.plain(self)

    def faults(self) -> Iterator[str]:
        opt, training = self.optimizer, self.training
        if opt.forced_weight_norm and self.network.weights != "mp":
            yield (
                "optimizer.forced_weight_norm fixes the norm of the weights, which only "
                "network.weights='mp' makes irrelevant: set network.weights='mp' "
                "(App. B.5)."
            )
        if opt.batch_size % training.microbatches:
            yield (
                f"training.microbatches={training.microbatches} does not divide "
                f"optimizer.batch_size={opt.batch_size}."
            )
        if isinstance(training.start, Weights) and not training.start.source:
            yield (
                "training.start.source is empty: name a run, a snapshot of one, or a "
                "snapshot of the original code."
            )
        if self.is_adapted and not isinstance(training.start, Weights):
            yield (
                "adapter changes weights that stay as they are, so training.start must "
                "name them: --init_from=RUN."
            )
        if self.is_adapted and getattr(training.start, "ema", "") == "continue":
            yield (
                "adapter is new, so there is no average of it to continue: set "
                "training.start.ema=restart."
            )
        if self.is_adapted and any(group.frozen for _, group in opt.groups):
            yield (
                "adapter is trained as a whole, so no group of optimizer.groups can be "
                "frozen: choose its layers with adapter.targets."
            )
        if self.is_adapted and training.sharding == "full":
            yield (
                "adapter is small, and training.sharding=full would shard nothing else: "
                "set training.sharding=state."
            )
        if self._nimg < opt.batch_size:
            yield (
                f"training.duration_mimg={training.duration_mimg} is {self._nimg:,} "
                f"image{'s' * (self._nimg != 1)}, less than one batch of "
                f"optimizer.batch_size={opt.batch_size}."
            )
        if self.loss.label_dropout and not self.network.num_classes:
            yield (
                "loss.label_dropout hides classes, but network.num_classes=0 has none; "
                "set loss.label_dropout=0."
            )
        if max(self.data.classes, default=-1) >= (self.network.num_classes or math.inf):
            yield (
                f"data.classes={self.data.classes}, but the network has "
                f"network.num_classes={self.network.num_classes}, numbered from 0."
            )
        if isinstance(self.data.augment, Edm) and self.network.channels not in (1, 3):
            yield (
                "data.augment resamples pixels, but images of network.channels="
                f"{self.network.channels} are treated as latents, which do not rotate or "
                "stretch with the pictures that they encode; set data.augment.name to "
                "'flip' or 'none'."
            )
        if opt.groups:
            try:
                groups.members(opt.groups, list(tree.flatten(self.model.shapes)))
            except ValueError as error:
                yield str(error)
        is_plateau = isinstance(opt.schedule, Plateau)
        if is_plateau and training.probe_mimg >= training.duration_mimg:
            yield (
                "optimizer.schedule is a plateau, which needs held-out losses during "
                f"training, but training.probe_mimg={training.probe_mimg:g} measures none: "
                "reduce it."
            )
        if self.ema.update_every > self.total_steps:
            yield (
                f"ema.update_every={self.ema.update_every} is more than the "
                f"{self.total_steps:,} steps of the run, so no average would ever be "
                "updated: reduce it."
            )

    @property
    def model(self) -> Model:
        """The network, with a u(sigma) head if the loss has one, and with its adapter."""
        return self._model

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: other processes build their own model."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_model", "_base")}

    @functools.cached_property
    def _model(self) -> Model:
        told = self.data.augment.labels
        uncertainty, remat = self.loss.uncertainty, self.training.remat
        model = build(self.network, uncertainty, remat, told)
        return Adapted(model.spec, self.adapter) if self.is_adapted else model

    @property
    def is_adapted(self) -> bool:
        """Whether an adapter alone is trained."""
        return not isinstance(self.adapter, NoAdapter)

    @property
    def base(self) -> Callable[[], Params] | None:
        """Returns the weights that the run started from; None if they are not known."""
        return self.__dict__.get("_base")

    def with_base(self, base: Callable[[], Params]) -> "RunConfig":
        """The config of a run that started from the weights that `base` returns.

        If it has an adapter, that changes these weights.
        """
        bound = dataclasses.replace(self)
        bound.__dict__["_base"] = base
        if self.is_adapted:
            bound.__dict__["_model"] = Adapted(self.model.spec, self.adapter, base)
        return bound

    @property
    def total_steps(self) -> int:
        """The first whole number of steps that reaches training.duration_mimg."""
        return math.ceil(self._nimg / self.optimizer.batch_size)

    @property
    def _nimg(self) -> int:
        return round(self.training.duration_mimg * 1e6)
