"""What a config is trained on, and how big: the argument after the colon.

`--config=configs/config_g.py:digits`. Presets of the paper's Table 6 (XXS, and XS at 64
pixels, of arXiv 2406.02507); the small ones are this project's own. Config A reads a
workload; the later letters change config A.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from edm_jax import files
from edm_jax.menu import choice, suggest

MEBI_MIMG = 2**20 / 1e6  # the paper's durations count 2^20 images


@dataclasses.dataclass(frozen=True)
class Workload:
    """A data set, a network size and a training budget; the names hold the units."""

    # Data: batches hold (raw - raw_mean) / raw_std * sigma_data.
    dataset: str
    resolution: int
    channels: int
    num_classes: int
    raw_mean: tuple[float, ...]
    raw_std: tuple[float, ...]
    # Network size.
    model_channels: int
    attention_resolutions: tuple[int, ...]  # config A's; B drops the first
    dropout: float = 0.0  # config G's; A-F have 0.1
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    blocks_per_level: int = 3
    compute_dtype: str = "bfloat16"
    # Budget and schedule.
    batch_size: int = 2048  # config B's and later; A's is double
    duration_mimg: float = 2048 * MEBI_MIMG
    rampup_mimg: float = 10.0
    halflife_mimg: float = 50.0  # config A's traditional EMA
    snapshot_mimg: float = 8 * MEBI_MIMG
    log_mimg: float = 0.5
    probe_mimg: float = 8 * MEBI_MIMG
    alpha_ref_plain: float = 1e-4  # config A's; B doubles it
    alpha_ref_mp: float = 0.01  # from config D on
    t_ref: float = 70000.0  # steps, from config E on
    # Noise distribution from config B on.
    P_mean: float = -0.4
    P_std: float = 1.0
    # Evaluation.
    evaluators: str = "heldout_loss,sample_grid,pixel_frechet"
    train_split: str = "train"
    heldout_split: str = "validation"
    reader: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: choice("tfds")
    )
    on_bad: str = "stop"  # at a damaged example; or skip
    num_samples: int = 50000
    evaluation_batch_size: int = 256


_RGB = {"raw_mean": (127.5,) * 3, "raw_std": (63.75,) * 3}

# Latents of the paper's VAE (App. A.1), channel-wise statistics.
IMAGENET512 = Workload(
    dataset="imagenet512_latents",
    resolution=64,
    channels=4,
    num_classes=1000,
    raw_mean=(5.81, 3.25, 0.12, -2.15),
    raw_std=(4.17, 4.62, 3.71, 3.28),
    model_channels=192,
    attention_resolutions=(32, 16, 8),
)
IMAGENET64 = dataclasses.replace(
    IMAGENET512,
    dataset="imagenet_resized/64x64",
    channels=3,
    **_RGB,
    t_ref=35000.0,
    P_mean=-0.8,
    P_std=1.6,
)
# This project's own choices from here on: not in the paper.
CIFAR10 = dataclasses.replace(
    IMAGENET64,
    dataset="cifar10",
    resolution=32,
    num_classes=10,
    model_channels=128,
    channel_mult=(1, 2, 2),
    attention_resolutions=(16, 8),
    batch_size=512,
    duration_mimg=200.0,
    rampup_mimg=2.0,
    halflife_mimg=5.0,
    snapshot_mimg=1.0,
    alpha_ref_mp=0.012,
    heldout_split="test",
)
DIGITS = Workload(
    dataset="digits",
    resolution=8,
    channels=1,
    num_classes=10,
    raw_mean=(4.8834,),
    raw_std=(6.0130,),
    model_channels=16,
    channel_mult=(1, 2),
    blocks_per_level=1,
    attention_resolutions=(8, 4),
    compute_dtype="float32",
    batch_size=64,
    duration_mimg=0.04,
    rampup_mimg=0.004,
    halflife_mimg=0.00093,
    snapshot_mimg=0.00125,
    log_mimg=0.0005,
    probe_mimg=0.0025,
    alpha_ref_plain=5e-4,
    alpha_ref_mp=0.03,
    t_ref=160.0,
    heldout_split="test",
    num_samples=360,
    evaluation_batch_size=120,
)
DIGITS_TINY = dataclasses.replace(
    DIGITS,
    model_channels=8,
    batch_size=16,
    duration_mimg=0.00064,
    rampup_mimg=0.00016,
    snapshot_mimg=0.00016,
    log_mimg=0.00008,
    probe_mimg=0.00032,
    num_samples=20,
)

# Points in the plane, images of one pixel: the network is a multilayer perceptron.
TOY = Workload(
    dataset="fractal",
    reader=choice("fractal"),
    resolution=1,
    channels=2,
    num_classes=2,
    raw_mean=(0.0, 0.0),
    raw_std=(1.0, 1.0),
    model_channels=32,
    channel_mult=(1,),
    blocks_per_level=1,
    attention_resolutions=(),
    compute_dtype="float32",
    batch_size=1024,
    duration_mimg=4.0,
    rampup_mimg=0.1,
    halflife_mimg=0.093,
    snapshot_mimg=0.125,
    log_mimg=0.05,
    probe_mimg=0.5,
    alpha_ref_plain=1e-3,
    alpha_ref_mp=0.03,
    t_ref=500.0,
    P_mean=-2.3,
    P_std=1.5,
    evaluators="heldout_loss,density",
    heldout_split="test",
    num_samples=4096,
    evaluation_batch_size=4096,
)
TOY_TINY = dataclasses.replace(
    TOY,
    model_channels=8,
    batch_size=256,
    duration_mimg=0.02048,
    rampup_mimg=0.002,
    snapshot_mimg=0.00128,
    log_mimg=0.001,
    probe_mimg=0.01,
    num_samples=256,
    evaluation_batch_size=256,
)

PHOTOS = dataclasses.replace(
    DIGITS,
    dataset="photos/32x32",
    resolution=32,
    channels=3,
    raw_mean=(118.876, 91.066, 80.238),
    raw_std=(80.692, 60.658, 61.314),
    model_channels=32,
    channel_mult=(1, 1, 2),
    attention_resolutions=(16, 8),
    batch_size=128,
    duration_mimg=0.16,
    rampup_mimg=0.016,
    halflife_mimg=0.0037,
    snapshot_mimg=0.005,
    log_mimg=0.00256,
    probe_mimg=0.02,
    alpha_ref_mp=0.0244,  # about 0.138 / sqrt(model_channels), as in Table 6
    t_ref=320.0,
    P_mean=-0.8,
    P_std=1.6,
    num_samples=500,
    evaluation_batch_size=250,
)
PHOTOS64 = dataclasses.replace(
    PHOTOS,
    dataset="photos/64x64",
    resolution=64,
    raw_mean=(118.938, 91.118, 80.294),
    raw_std=(81.263, 61.461, 62.126),
    model_channels=64,
    channel_mult=(1, 2, 2, 2),
    compute_dtype="bfloat16",
    batch_size=256,
    duration_mimg=0.512,
    rampup_mimg=0.0512,
    halflife_mimg=0.0119,
    snapshot_mimg=0.016,
    log_mimg=0.00512,
    probe_mimg=0.064,
    alpha_ref_plain=2e-4,
    alpha_ref_mp=0.0172,
    t_ref=500.0,
)

# size: (model_channels, alpha_ref, dropout, img512 Mi images, img64 Mi images)
_SIZES = {
    "xxs": (64, 0.0170, 0.0, 2048, None),
    "xs": (128, 0.0120, 0.0, 2048, 1024),
    "s": (192, 0.0100, 0.0, 2048, 1024),
    "m": (256, 0.0090, 0.1, 2048, 2048),
    "l": (320, 0.0080, 0.1, 1792, 1024),
    "xl": (384, 0.0070, 0.1, 1280, 640),
    "xxl": (448, 0.0065, 0.1, 896, None),
}


def _sizes(name: str, base: Workload, column: int) -> dict[str, Workload]:
    workloads = {}
    for size, (channels, alpha_ref, dropout, *durations) in _SIZES.items():
        if durations[column] is not None:
            workloads[f"{name}-{size}"] = dataclasses.replace(
                base,
                model_channels=channels,
                alpha_ref_mp=alpha_ref,
                dropout=dropout,
                duration_mimg=durations[column] * MEBI_MIMG,
            )
    return workloads


WORKLOADS = {
    "digits": DIGITS,
    "digits-tiny": DIGITS_TINY,
    "toy": TOY,
    "toy-tiny": TOY_TINY,
    "photos": PHOTOS,
    "photos-64": PHOTOS64,
    "cifar10": CIFAR10,
    **_sizes("imagenet512", IMAGENET512, 0),
    **_sizes("imagenet64", IMAGENET64, 1),
}


def get_workload(name: str) -> Workload:
    """The workload of that name, or a file's WORKLOAD, where it is FILE.py.

    Raises ValueError naming the nearest right one.
    """
    if name in WORKLOADS:
        return WORKLOADS[name]
    if name.endswith(".py"):
        found = files.run_python(name).get("WORKLOAD")
        if not isinstance(found, Workload):
            raise files.Damaged(name, "defines no WORKLOAD = Workload(...).")
        return found
    raise ValueError(
        f"There is no workload {name!r}; there are {', '.join(WORKLOADS)}."
        + suggest(name, list(WORKLOADS))
    )
