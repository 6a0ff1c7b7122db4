"""Snapshots: the averaged weights of one tracked EMA profile at one time, on disk.

A snapshot is one safetensors file, readable with NumPy alone. Its header says which
profile it holds and when; the file name repeats it for people.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from edm_jax.ema import PowerProfile, TraditionalProfile

FORMAT = "edm_jax.snapshot"
FORMAT_VERSION = 1
DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

Params = dict[str, Any]


@dataclass(frozen=True)
class SnapshotMeta:
    """What a snapshot's header says: the profile, nimg, and where it comes from.

    nimg is the number of images trained on, update_interval the number of images
    between two updates of the EMA, config_hash the run's config, dtype the storage
    format ('float32', 'float16' or 'bfloat16'). Raises ValueError for nimg or
    update_interval below 1 and for another dtype.
    """

    profile: PowerProfile | TraditionalProfile
    nimg: int
    update_interval: int
    config_hash: str
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.nimg < 1 or self.update_interval < 1:
            raise ValueError(
                f"nimg = {self.nimg} and update_interval = {self.update_interval} of a "
                "snapshot must both be at least 1 image."
            )
        if self.dtype not in DTYPES:
            raise ValueError(
                f"Snapshots cannot be stored as {self.dtype!r}: choose one of "
                f"{', '.join(DTYPES)}."
            )

    @property
    def filename(self) -> str:
        """Such as power-0.050-000000065536.safetensors."""
        if isinstance(self.profile, PowerProfile):
            stem = f"power-{_decimal(self.profile.sigma_rel)}"
        else:
            stem = f"traditional-{_decimal(self.profile.halflife_mimg)}"
        return f"{stem}-{self.nimg:012d}.safetensors"


@dataclass(frozen=True)
class SnapshotRef:
    """A snapshot on disk: its path and its header."""

    path: Path
    meta: SnapshotMeta


def write(
    directory: str | os.PathLike[str], params: Params, meta: SnapshotMeta
) -> Path:
    """Stores a nested dict of arrays as meta.filename in directory; returns the path.

    The file appears whole or not at all: it is written beside its final name, synced
    and moved there. Raises ValueError for a name that holds '/' and for a weight too
    large for meta.dtype.
    """
    arrays = {
        name: _cast(name, leaf, meta.dtype) for name, leaf in flatten(params).items()
    }
    data = safetensors.numpy.save(arrays, metadata=_header(meta))
    path = Path(directory) / meta.filename
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not safetensors' save_file: that neither syncs nor lets others read the file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read(path: str | os.PathLike[str]) -> tuple[Params, SnapshotMeta]:
    """The weights of a snapshot, float32 in a nested dict, and its header.

    Raises ValueError for a file that is damaged or no snapshot, FileNotFoundError for
    none.
    """
    path = Path(path)
    with _open(path) as file:
        meta = _parse_header(path, file.metadata())
        names = file.keys()
        flat = {name: file.get_tensor(name).astype(np.float32) for name in names}
    return unflatten(flat), meta


def read_meta(path: str | os.PathLike[str]) -> SnapshotMeta:
    """The header of a snapshot; its weights stay on disk. Raises as read does."""
    path = Path(path)
    with _open(path) as file:
        return _parse_header(path, file.metadata())


def list_snapshots(directory: str | os.PathLike[str]) -> list[SnapshotRef]:
    """Every snapshot of a directory, by nimg, then by name; told by their headers.

    Raises FileNotFoundError for no such directory, ValueError for a damaged file.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"There is no directory of snapshots at {directory}.")
    paths = directory.glob("*.safetensors")
    refs = [SnapshotRef(path, read_meta(path)) for path in paths]
    return sorted(refs, key=lambda ref: (ref.meta.nimg, ref.path.name))


def flatten(params: Params, prefix: str = "") -> dict[str, np.ndarray]:
    """Nested dict of arrays -> {'outer/inner': array}.

    Raises ValueError for a name that is empty or holds '/'.
    """
    flat = {}
    for name, value in params.items():
        if not name or "/" in name:
            raise ValueError(f"{prefix}{name!r}: a name must not be empty or hold '/'.")
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = np.asarray(value)
    return flat


def unflatten(flat: dict[str, np.ndarray]) -> Params:
    """{'outer/inner': array} -> nested dict of arrays: the inverse of flatten."""
    params: Params = {}
    for path, array in flat.items():
        *outer, name = path.split("/")
        node = params
        for key in outer:
            node = node.setdefault(key, {})
        node[name] = array
    return params


def _decimal(value: float) -> str:
    """Three decimals, or as many as tell the value from every other."""
    short = f"{value:.3f}"
    return short if float(short) == value else repr(float(value))


def _cast(name: str, leaf: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        stored = np.asarray(leaf, DTYPES[dtype], order="C")
    if np.any(np.isinf(stored) & np.isfinite(leaf)):
        raise ValueError(
            f"{name} holds weights too large for {dtype}: store snapshots as float32."
        )
    return stored


def _header(meta: SnapshotMeta) -> dict[str, str]:
    profile = meta.profile
    if isinstance(profile, PowerProfile):
        shape = {"profile": "power", "sigma_rel": repr(float(profile.sigma_rel))}
    else:
        shape = {
            "profile": "traditional",
            "halflife_mimg": repr(float(profile.halflife_mimg)),
            "halflife_rampup": repr(float(profile.rampup)),
        }
    return shape | {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "nimg": str(int(meta.nimg)),
        "update_interval": str(int(meta.update_interval)),
        "config_hash": meta.config_hash,
        "dtype": meta.dtype,
    }


def _open(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"There is no snapshot at {path}.")
    try:
        return safetensors.safe_open(path, framework="np")
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or no safetensors file ({error}): move it away or copy "
            "it again."
        ) from error


def _parse_header(path: Path, header: dict[str, str] | None) -> SnapshotMeta:
    header = header or {}
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} is not a snapshot of edm_jax: move it away.")
    if header.get("format_version") != str(FORMAT_VERSION):
        raise ValueError(
            f"{path} has snapshot format {header.get('format_version')}, this edm_jax "
            f"reads format {FORMAT_VERSION}: read it with the version that wrote it."
        )
    try:
        kinds = {
            "power": lambda: PowerProfile(float(header["sigma_rel"])),
            "traditional": lambda: TraditionalProfile(
                float(header["halflife_mimg"]), float(header["halflife_rampup"])
            ),
        }
        return SnapshotMeta(
            profile=kinds[header["profile"]](),
            nimg=int(header["nimg"]),
            update_interval=int(header["update_interval"]),
            config_hash=header["config_hash"],
            dtype=header["dtype"],
        )
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} has a damaged snapshot header ({error}): move it away or copy it "
            "again."
        ) from error
