"""The packages whose files are known, and how each one counts and averages.

A package is told by what its file holds. What a file does not say, such as how often its
loop updated, the user does: in flags, or in averages.json beside the files.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from edm_jax.ema.power import gamma_from_sigma_rel
from edm_jax.files import Damaged, read_json
from edm_jax.foreign.kernels import Kernel, Plain, Power, Tracked, Traditional
from edm_jax.foreign.layout import Layout

_OPTIMIZER = re.compile(
    r"(optim\w*|opt|opt_state|\w*optimizer\w*|\w*scheduler\w*|\w*scaler\w*|rng\w*|sampler"
    r"|\w*callbacks?|loops|args|hyper_parameters)\."
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the user says about a series of files; None is not said.

    Attributes:
        tracked: σ_rel of each stored average, in the order of the package's indices.
        update_every: calls of the averaging code between two updates.
        update_after: calls before averaging begins.
        decay, min_decay, inv_gamma, power, warmup: of traditional averages.
        updates_per_epoch: where files count epochs.
        time: a pattern of file names, such as 'ckpt-{time}.pt'.
        files: the time of each file by name.
        key: the part of a checkpoint to average, such as 'model'.
    """

    format: str = ""
    tracked: tuple[float, ...] | None = None
    update_every: int | None = None
    update_after: int | None = None
    decay: float | None = None
    min_decay: float | None = None
    inv_gamma: float | None = None
    power: float | None = None
    warmup: str | None = None
    updates_per_epoch: int | None = None
    time: str | None = None
    files: Mapping[str, int] | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        for name in ("update_every", "updates_per_epoch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} = {value}: choose 1 or more.")
        if self.update_after is not None and self.update_after < 0:
            raise ValueError(f"update_after = {self.update_after}: choose 0 or more.")

    def traditional(self, **defaults: Any) -> Traditional:
        """The rule of decays that was said, or else by default."""
        fields = {f.name for f in dataclasses.fields(Traditional)}
        said = {
            name: value for name in fields if (value := getattr(self, name)) is not None
        }
        return Traditional(**(defaults | said))


def sidecar(path: Path) -> Settings:
    """Settings from a JSON file; raises Damaged if it holds others."""
    found = read_json(path)
    kinds = {f.name: f.type for f in dataclasses.fields(Settings)}
    for name, value in found.items():
        if name not in kinds:
            raise Damaged(
                path, f"has no use for {name!r}: it knows {', '.join(kinds)}."
            )
        if not _fits(kinds[name], value):
            raise Damaged(path, f"has {name} of a wrong type.")
    if "tracked" in found:
        found["tracked"] = tuple(map(float, found["tracked"]))
    return Settings(**found)


def _fits(kind: Any, value: Any) -> bool:
    number = type(value) in (int, float)
    if kind == tuple[float, ...] | None:
        return isinstance(value, list) and all(type(v) in (int, float) for v in value)
    if kind == Mapping[str, int] | None:
        return isinstance(value, dict) and all(type(v) is int for v in value.values())
    if kind == int | None:
        return type(value) is int
    return number if kind == float | None else isinstance(value, str)


class Package:
    """An entry of `PACKAGES`: how to tell its files, and what they are."""

    def told(self, layout: Layout) -> bool:
        """Whether a file is this package's, by its contents."""
        raise NotImplementedError

    def averaged(self, layout: Layout, said: Settings) -> Sequence[str]:
        """The names of the arrays to average."""
        raise NotImplementedError

    def time(self, layout: Layout, said: Settings) -> int | None:
        """The time that the file states; None if it does not."""
        raise NotImplementedError

    def kernel(self, layout: Layout, time: int, said: Settings) -> Kernel:
        """What its arrays are an average of."""
        raise NotImplementedError


class PostHoc(Package):
    """ema-pytorch's PostHocEMA: {index}.{step}.pt, with ema_model.*, initted and step.

    Updates at every update_every-th call, with the decay for every call.
    """

    prefix: ClassVar[str] = "ema_model."
    every: ClassVar[int] = 100
    _NAME = re.compile(r"(\d{1,3})\.(\d{1,12})\.pt")

    def told(self, layout: Layout) -> bool:
        has = {"initted", "step"} <= layout.arrays.keys()
        inner = any(name.startswith("ema_model.") for name in layout.arrays)
        named = self._NAME.fullmatch(layout.path.name) is not None
        return has and named and inner == bool(self.prefix)

    def averaged(self, layout: Layout, said: Settings) -> Sequence[str]:
        names = [name for name in layout.arrays if name.startswith(self.prefix)]
        return [name for name in names if name not in ("initted", "step")]

    def time(self, layout: Layout, said: Settings) -> int | None:
        found = self._NAME.fullmatch(layout.path.name)
        return int(found[2]) if found else None

    def kernel(self, layout: Layout, time: int, said: Settings) -> Kernel:
        if said.tracked is None:
            raise ValueError(
                "These files do not say which lengths they track: add the sigma_rels of "
                "PostHocEMA in its order, such as --tracked=0.05,0.28."
            )
        if said.update_every is None:
            raise ValueError(
                "These files do not say how often they were updated: add --update_every=K "
                f"(the package's default is {self.every})."
            )
        found = self._NAME.fullmatch(layout.path.name)
        index = int(found[1]) if found else 0
        if index >= len(said.tracked):
            raise ValueError(
                f"{layout.path} is of average {index}, but --tracked lists "
                f"{len(said.tracked)}, counted from 0."
            )
        decay = Power(gamma_from_sigma_rel(said.tracked[index]))
        return Tracked(decay, said.update_every, self.start(layout, time, said))

    def start(self, layout: Layout, time: int, said: Settings) -> int:
        """The time before the first call."""
        return 0


class PostHocFork(PostHoc):
    """pytorch-posthoc-ema: the same names, without prefix; begins at update_after_step.

    Its `step` counts from there, while the files' names count from 0.
    """

    prefix: ClassVar[str] = ""
    every: ClassVar[int] = 10

    def start(self, layout: Layout, time: int, said: Settings) -> int:
        if said.update_after is not None:
            return max(said.update_after - 1, 0)
        array = layout.arrays["step"]
        calls = float(layout.read("step"))
        exact = {"F16": 2**11, "BF16": 2**8}.get(array.code, math.inf)
        if not 0 < calls <= min(exact, time):
            raise ValueError(
                f"{layout.path} does not say when its averaging began, because its step "
                f"is stored in {array.code}: add --update_after=N (the package's default "
                "is 100)."
            )
        return time - int(calls)


class Ema(Package):
    """ema-pytorch's EMA: ema_model.*, online_model.*, initted and step."""

    def told(self, layout: Layout) -> bool:
        has = {"initted", "step"} <= layout.arrays.keys()
        return has and any(name.startswith("ema_model.") for name in layout.arrays)

    def averaged(self, layout: Layout, said: Settings) -> Sequence[str]:
        return [name for name in layout.arrays if name.startswith("ema_model.")]

    def time(self, layout: Layout, said: Settings) -> int | None:
        return int(layout.read("step")) if layout.arrays["step"].code == "I64" else None

    def kernel(self, layout: Layout, time: int, said: Settings) -> Kernel:
        decay = said.traditional(update_after=100)
        return Tracked(decay, said.update_every or 10)


class Diffusers(Package):
    """diffusers' EMAModel: its state dict (shadow_params), or save_pretrained's folder."""

    def told(self, layout: Layout) -> bool:
        return "optimization_step" in layout.values

    def averaged(self, layout: Layout, said: Settings) -> Sequence[str]:
        shadow = [name for name in layout.arrays if name.startswith("shadow_params.")]
        return shadow or list(layout.arrays)

    def time(self, layout: Layout, said: Settings) -> int | None:
        time = layout.values["optimization_step"]
        return time if type(time) is int else None

    def kernel(self, layout: Layout, time: int, said: Settings) -> Kernel:
        stated = {}
        for name, field in (
            *(("decay", "decay"), ("min_decay", "min_decay"), ("power", "power")),
            *(("inv_gamma", "inv_gamma"), ("update_after_step", "update_after")),
        ):
            value = layout.values.get(name)
            if type(value) in (int, float):
                stated[field] = value
        warm = layout.values.get("use_ema_warmup")
        stated["warmup"] = "inverse" if warm else "tenths"
        return Tracked(said.traditional(**stated), said.update_every or 1)


class Timm(Package):
    """timm's checkpoints: state_dict_ema beside state_dict, the time in epochs."""

    def told(self, layout: Layout) -> bool:
        return any(name.startswith("state_dict_ema.") for name in layout.arrays)

    def averaged(self, layout: Layout, said: Settings) -> Sequence[str]:
        return [name for name in layout.arrays if name.startswith("state_dict_ema.")]

    def time(self, layout: Layout, said: Settings) -> int | None:
        epoch = layout.values.get("epoch")
        if type(epoch) is not int or epoch < 0:
            return None
        if said.updates_per_epoch is None:
            raise ValueError(
                "timm's files count epochs, and its averages are updated at every "
                "optimizer step: add --updates_per_epoch=N."
            )
        return (epoch + 1) * said.updates_per_epoch

    def kernel(self, layout: Layout, time: int, said: Settings) -> Kernel:
        stated = layout.values.get("args.model_ema_decay")
        decay = stated if type(stated) is float else 0.9999
        warm = layout.values.get("args.model_ema_warmup") is True
        rule = said.traditional(decay=decay, warmup="inverse" if warm else "none")
        return Tracked(rule, said.update_every or 1)


class Checkpoints(Package):
    """Any code's weights at some times, or its averages of --tracked or --decay.

    Without either, each file is the weights of one moment.
    """

    def told(self, layout: Layout) -> bool:
        return True

    def averaged(self, layout: Layout, said: Settings) -> Sequence[str]:
        if said.key is not None:
            prefix = f"{said.key}."
            found = [name for name in layout.arrays if name.startswith(prefix)]
            if not found:
                tops = sorted({name.partition(".")[0] for name in layout.arrays})
                raise Damaged(
                    layout.path, f"has no {said.key!r}, but {', '.join(tops[:12])}."
                )
            return found
        return [name for name in layout.arrays if not _OPTIMIZER.match(name)]

    def time(self, layout: Layout, said: Settings) -> int | None:
        for name in ("global_step", "step"):
            value = layout.values.get(name)
            if type(value) is int and value > 0:
                return value
            array = layout.arrays.get(name)
            if array and not array.shape and array.code in ("I32", "I64"):
                return int(layout.read(name))
        return None

    def kernel(self, layout: Layout, time: int, said: Settings) -> Kernel:
        every = said.update_every or 1
        if said.decay is not None:
            return Tracked(said.traditional(warmup="none"), every)
        if said.tracked is None:
            return Plain()
        if len(said.tracked) != 1:
            raise ValueError(
                "Plain files of averages hold one each: name one --tracked."
            )
        return Tracked(Power(gamma_from_sigma_rel(said.tracked[0])), every)


PACKAGES: dict[str, Package] = {
    "ema-pytorch": PostHoc(),
    "pytorch-posthoc-ema": PostHocFork(),
    "ema-pytorch-ema": Ema(),
    "diffusers": Diffusers(),
    "timm": Timm(),
    "checkpoints": Checkpoints(),  # last: it takes any
}


def told(layout: Layout, said: Settings) -> str:
    """The name of a file's package, by its contents."""
    if said.format:
        if said.format not in PACKAGES:
            raise ValueError(
                f"There is no format {said.format!r}: choose one of {', '.join(PACKAGES)}."
            )
        return said.format
    return next(name for name, package in PACKAGES.items() if package.told(layout))
