"""Pictures of latents, and latents of pictures: how a run's images are decoded."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

import jax
import numpy as np
import xxhash

from edm_jax import fields, files
from edm_jax.data import store
from edm_jax.data.pipeline import denormalize
from edm_jax.fields import OneOf, Settings
from edm_jax.models import vae
from edm_jax.original import weights as weight_files

BATCH = 4  # images at a time, which bounds the memory: 512 x 512 pixels take 1 GB
# pixels: (scale, shift) that turns a value in [0, 1] into what the network takes.
_RANGES = {"unit": (1.0, 0.0), "symmetric": (2.0, -1.0)}
_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
# Of config.json: what this network does not have another way of.
_FIXED = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "out_channels": 3,
    "mid_block_add_attention": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}


@runtime_checkable
class Decoder(Protocol):
    """An entry of DECODERS."""

    decodes: ClassVar[bool]  # whether images become pictures of another form

    def made_of(self) -> str:
        """What its pictures depend on besides the images."""
        ...

    def shape(self, images: tuple[int, ...]) -> tuple[int, ...]:
        """Of the pictures of images of that shape (N, H, W, C)."""
        ...

    def pictures(self, raw: np.ndarray) -> np.ndarray:
        """Images (N, H, W, C) in units of the data as pictures uint8."""
        ...


@dataclasses.dataclass(frozen=True)
class NotDecoded(Settings):
    """The data are pictures, with values from 0 to 255."""

    decodes: ClassVar[bool] = False

    def made_of(self) -> str:
        """Nothing."""
        return ""

    def shape(self, images: tuple[int, ...]) -> tuple[int, ...]:
        """The same."""
        return images

    def pictures(self, raw: np.ndarray) -> np.ndarray:
        """Rounded and cut."""
        return np.clip(np.round(raw), 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Vae(Settings):
    """Latents of Stable Diffusion's VAE, decoded with the weights of a local file.

    `pixels` is the range that pictures had when they were encoded: 'unit' is [0, 1], as
    EDM2 has it; 'symmetric' is [-1, 1], as everyone else does. Latents of one are not
    those of the other.
    """

    decodes: ClassVar[bool] = True
    weights: str = ""  # a .safetensors file, or a folder that diffusers wrote
    pixels: Annotated[str, OneOf(tuple(_RANGES))] = "unit"

    @property
    def coder(self) -> "Coder":
        """The network, read once.

        Raises:
            FileNotFoundError: there are no weights.
            ValueError: they are damaged, or of another network.
        """
        return _coder(self.weights, self.pixels)

    def made_of(self) -> str:
        """The weights' checksum, and the range of pixels."""
        return f"{self.coder.digest} {self.pixels}"

    def shape(self, images: tuple[int, ...]) -> tuple[int, ...]:
        """The factor larger, in colours."""
        n, height, width, _ = images
        return n, height * self.coder.factor, width * self.coder.factor, 3

    def pictures(self, raw: np.ndarray) -> np.ndarray:
        """Pictures (N, h f, w f, 3) uint8 of latents (N, h, w, C)."""
        return self.coder.decode(raw)


DECODERS = {"none": NotDecoded, "vae": Vae}


def pictures_of(config: Any) -> Callable[[np.ndarray], np.ndarray] | None:
    """Makes pictures of a run's normalised latents; None where they are pictures."""
    decoder = config.evaluation.decoder
    if not decoder.decodes:
        return None
    encoded = store.made_of(config.data).get("pixels")
    if isinstance(decoder, Vae) and encoded not in (None, decoder.pixels):
        raise ValueError(
            f"Data set {config.data.name!r} was encoded from pixels={encoded!r}, and they "
            f"would be decoded as {decoder.pixels!r}: set evaluation.decoder.pixels, or "
            f"--pixels, to {encoded!r}."
        )
    return lambda images: decoder.pictures(denormalize(config.data, images))


class Coder:
    """A VAE with weights.

    Args:
        path: of the weights.
        pixels: 'unit' or 'symmetric'.
    """

    def __init__(self, path: str, pixels: str):
        file, structure = _find(path)
        tensors = weight_files.read(file)
        try:
            self._params = vae.fill(structure, tensors)
        except ValueError as error:
            raise ValueError(
                f"{file} does not hold the weights of Stable Diffusion's VAE: it {error}."
            ) from None
        digest = xxhash.xxh3_128()
        for name in sorted(tensors):
            digest.update(name.encode() + np.ascontiguousarray(tensors[name]).tobytes())
        self.digest = digest.hexdigest()
        self.factor, self.channels = structure.factor, 2 * structure.latent_channels
        self._scale, self._shift = _RANGES[pixels]
        module = vae.Vae(structure)

        def encode(params: Any, x: jax.Array) -> Any:
            return module.apply({"params": params}, x, method="encode")

        def decode(params: Any, z: jax.Array) -> Any:
            return module.apply({"params": params}, z, method="decode")

        self._encode, self._decode = jax.jit(encode), jax.jit(decode)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Means and standard deviations (N, H / f, W / f, 2 C) of uint8 (N, H, W, 3)."""
        return np.concatenate(self.moments(images.astype(np.float32) / 255), axis=-1)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Pictures (N, h f, w f, 3) uint8 of latents (N, h, w, C), as they were encoded."""
        unit = np.clip(self.values(latents), 0, 1)
        return np.round(255 * unit).astype(np.uint8)

    def moments(self, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and standard deviations of pictures (N, H, W, 3) in [0, 1].

        Raises:
            ValueError: they do not divide into latents.
        """
        self.check(*unit.shape[1:])
        scaled = unit * self._scale + self._shift
        mean, std = _batched(self._encode, self._params, scaled)
        return mean, std

    def check(self, height: int, width: int, channels: int) -> None:
        """Raises ValueError where pictures do not divide into latents."""
        if height % self.factor or width % self.factor or channels != 3:
            raise ValueError(
                f"The VAE takes RGB pictures whose sides are multiples of {self.factor}; "
                f"these are {height} x {width} with {channels} channels."
            )

    def values(self, latents: np.ndarray) -> np.ndarray:
        """Pictures of latents (N, h, w, C), in [0, 1] but for what lies beyond it."""
        (found,) = _batched(lambda *x: (self._decode(*x),), self._params, latents)
        return (found - self._shift) / self._scale


_coder = functools.lru_cache(maxsize=1)(Coder)


def _batched(apply: Any, params: Any, inputs: np.ndarray) -> list[np.ndarray]:
    """What a function gives for all inputs, BATCH of them at a time."""
    found = []
    for start in range(0, len(inputs), BATCH):
        rows = np.arange(start, start + BATCH) % len(inputs)  # the last is filled up
        outputs = apply(params, inputs[rows].astype(np.float32))
        count = min(BATCH, len(inputs) - start)
        found.append([np.asarray(each)[:count] for each in outputs])
    return [np.concatenate(each) for each in zip(*found, strict=True)]


def _find(path: str) -> tuple[Path, vae.Structure]:
    """The file of weights, and what the config.json beside it says."""
    if not path:
        raise FileNotFoundError(
            "The VAE needs its weights, such as those of sd-vae-ft-mse (335 MB): name the "
            "folder or .safetensors file; nothing is downloaded."
        )
    place = Path(path).expanduser()
    tried = [place] if place.is_file() else [
        place / inside / name for inside in ("", "vae") for name in _FILES
    ]  # fmt: skip
    file = next((each for each in tried if each.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"There are no weights of a VAE at {place}: it must be a .safetensors file, "
            f"or a folder that holds {_FILES[0]}."
        )
    beside = file.with_name("config.json")
    if not beside.exists():
        return file, vae.Structure()
    described = files.read_json(beside)
    for name, value in _FIXED.items():
        if described.get(name, value) != value:
            raise files.Damaged(
                beside,
                f"has {name}={json.dumps(described[name])}; this VAE has "
                f"{json.dumps(value)} alone.",
            )
    known = {field.name for field in dataclasses.fields(vae.Structure)}
    given = {name: value for name, value in described.items() if name in known}
    try:
        return file, fields.make(vae.Structure, "", given)
    except ValueError as error:
        raise files.Damaged(beside, f"does not describe a VAE: {error}") from None
