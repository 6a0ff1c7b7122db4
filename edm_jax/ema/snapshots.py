"""Snapshots: the averaged weights of one profile at one time, in one file.

A snapshot is a safetensors file, readable with NumPy alone, here or on an object store
(gs://, s3://). Its header says which profile it holds, when, and of which run; checksums
cover the header and every chunk of the weights, so that a reader of any part can tell
whether that part is what was written.
"""

import concurrent.futures
import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import xxhash
from etils import epath

from edm_jax.ema import container
from edm_jax.ema.container import NO_DIGEST, Damaged, PathLike, Table
from edm_jax.ema.profiles import AnyProfile, from_fields, to_fields

FORMAT = "edm_jax.snapshot"
FORMAT_VERSION = 2
DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
CHUNK = 2**20  # elements under one checksum
_PACKAGES = ("edm_jax", "jax", "flax", "optax", "numpy")

Params = dict[str, Any]


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@dataclasses.dataclass(frozen=True)
class SnapshotMeta:
    """What a snapshot's header says: the profile, nimg, and where it comes from.

    nimg is the number of images trained on, update_interval the number of images
    between two updates of the EMA, config_hash the run's config, dtype the storage
    format ('float32', 'float16' or 'bfloat16'), rounded a coarser one that the weights
    went through before, versions the libraries that wrote it; ancestry is how it was
    made of others, for one that was. Raises ValueError for nimg or update_interval
    below 1 and for another dtype.
    """

    profile: AnyProfile
    nimg: int
    update_interval: int
    config_hash: str
    dtype: str = "float32"
    rounded: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=_versions)
    ancestry: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.nimg < 1 or self.update_interval < 1:
            raise ValueError(
                f"nimg = {self.nimg} and update_interval = {self.update_interval} of a "
                "snapshot must both be at least 1 image."
            )
        if self.dtype not in DTYPES or self.rounded not in (*DTYPES, ""):
            raise ValueError(
                f"Snapshots cannot be stored as {self.dtype!r}: choose one of "
                f"{', '.join(DTYPES)}."
            )

    @property
    def filename(self) -> str:
        """Such as power-0.050-000000065536.safetensors."""
        return f"{self.profile.label}-{self.nimg:012d}.safetensors"

    @property
    def unit_roundoff(self) -> float:
        """Half the spacing at 1 of the coarsest format that the weights went through."""
        formats = {self.dtype, self.rounded or self.dtype}
        return max(unit_roundoff(DTYPES[each]) for each in formats)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A snapshot on disk: its header, and its weights as one long row of elements."""

    path: epath.Path
    meta: SnapshotMeta
    table: Table
    data_start: int  # bytes
    digests: tuple[str, ...]  # one for each CHUNK elements

    @property
    def name(self) -> str:
        return os.fspath(self.path)

    @property
    def size(self) -> int:
        """Elements in all."""
        return sum(math.prod(shape) for shape in self.table.values())

    @property
    def dtype(self) -> np.dtype:
        return DTYPES[self.meta.dtype]

    @property
    def unit_roundoff(self) -> float:
        return self.meta.unit_roundoff

    @property
    def checksum(self) -> str:
        """Of the whole file: a checksum of the checksums."""
        return xxhash.xxh3_64_hexdigest("".join(self.digests).encode())

    def read(self, start: int, out: np.ndarray) -> None:
        """Fills `out` (elements,) from element `start` on; verifies nothing.

        Raises Damaged where the file ends before.
        """
        offset = self.data_start + start * self.dtype.itemsize
        count = container.read_range(self.path, offset, as_bytes(out))
        if count < out.nbytes:
            raise Damaged(self.path, "ends too soon: it was cut since it was opened.")

    def verify(self, chunk: int, digest: str) -> None:
        """Raises Damaged where a chunk read has another checksum than the one written."""
        if digest != self.digests[chunk]:
            raise Damaged(
                self.path,
                f"is damaged: elements {chunk * CHUNK} to {(chunk + 1) * CHUNK} are not "
                "what was written; copy it again or leave it out.",
            )


class Writer:
    """A snapshot being written in chunks, in any order; it appears whole or not at all.

    resume goes on with the partial file of a writer of the same meta and table.
    """

    def __init__(
        self, path: epath.Path, table: Table, meta: SnapshotMeta, resume: bool = False
    ):
        self.path, self._table, self.meta = path, table, meta
        size = sum(math.prod(shape) for shape in table.values())
        self._digests = [NO_DIGEST] * -(-size // CHUNK)
        self._itemsize = DTYPES[meta.dtype].itemsize
        header = _encode(table, meta, self._digests)
        self._data_start = len(header)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = container.partial_path(path)
        total = len(header) + size * self._itemsize
        whole = resume and os.path.exists(self._partial)
        whole = whole and os.path.getsize(self._partial) == total
        self._file = os.open(self._partial, os.O_RDWR | os.O_CREAT, 0o666)
        if not whole:
            os.truncate(self._file, 0)
            os.truncate(self._file, total)
        self.resumed = whole

    def write(self, start: int, values: np.ndarray) -> None:
        """Puts values (elements,) of the storage dtype at element `start`."""
        offset = self._data_start + start * self._itemsize
        left = as_bytes(np.ascontiguousarray(values))
        while left:
            count = os.pwrite(self._file, left, offset)
            left, offset = left[count:], offset + count

    def seal(self, chunk: int, digest: str) -> None:
        """Notes the checksum of a chunk that is written."""
        self._digests[chunk] = digest

    def sync(self) -> None:
        """Puts what is written so far on the disk."""
        os.fsync(self._file)

    def finish(self) -> epath.Path:
        """Writes the checksums, and moves the file to its name."""
        header = _encode(self._table, self.meta, self._digests)
        os.pwrite(self._file, header, 0)
        os.fsync(self._file)
        os.close(self._file)
        container.publish(self._partial, self.path)
        return self.path

    def close(self) -> None:
        """Leaves the partial file for a writer that goes on."""
        os.close(self._file)

    def discard(self) -> None:
        """Leaves nothing behind."""
        os.close(self._file)
        os.unlink(self._partial)


def write(
    directory: PathLike,
    params: Params,
    meta: SnapshotMeta,
    fetch: Callable[[Any], Any] = np.asarray,
    writing: bool = True,
) -> epath.Path:
    """Stores a nested dict of arrays as meta.filename in directory; returns the path.

    The file appears whole or not at all. Leaves are taken one after the other, by
    name, each through `fetch`: where arrays are spread over several processes that is a
    collective operation, and all call this, one of them with `writing`. Raises
    ValueError for a name that holds '/' and for a weight too large for meta.dtype.
    """
    flat = flatten(params)
    table = {name: tuple(flat[name].shape) for name in sorted(flat)}
    path = epath.Path(directory) / meta.filename
    writer = Writer(path, table, meta) if writing else None
    try:
        position, hasher = 0, xxhash.xxh3_64()
        for name in table:
            values = np.asarray(fetch(flat[name])).ravel()
            if writer is None:
                continue
            values = cast(name, values, meta.dtype)
            while len(values):
                room = CHUNK - position % CHUNK
                part, values = values[:room], values[room:]
                writer.write(position, part)
                hasher.update(as_bytes(part))
                position += len(part)
                if position % CHUNK == 0:
                    writer.seal(position // CHUNK - 1, hasher.hexdigest())
                    hasher.reset()
        if writer is not None and position % CHUNK:
            writer.seal(position // CHUNK, hasher.hexdigest())
    except BaseException:
        if writer is not None:
            writer.discard()
        raise
    return path if writer is None else writer.finish()


def unit_roundoff(dtype: np.dtype) -> float:
    """Half the spacing of a format's numbers at 1."""
    # ml_dtypes' finfo also knows NumPy's own formats.
    return float(ml_dtypes.finfo(dtype).eps) / 2


def as_bytes(row: np.ndarray) -> memoryview:
    """The bytes of a contiguous row of any format, not copied."""
    return row.view(np.uint8).data  # no buffer knows bfloat16


def cast(name: str, values: np.ndarray, dtype: str) -> np.ndarray:
    """Values in a storage format; raises ValueError where one becomes infinite."""
    with np.errstate(over="ignore"):
        stored = np.asarray(values, DTYPES[dtype], order="C")
    if stored.dtype.itemsize < 4 and np.any(np.isinf(stored) & np.isfinite(values)):
        raise ValueError(
            f"{name} holds weights too large for {dtype}: store snapshots as float32."
        )
    return stored


def read(path: PathLike) -> tuple[Params, SnapshotMeta]:
    """The weights of a snapshot, float32 in a nested dict, and its header.

    Raises Damaged, a ValueError, for a file that is damaged or no snapshot,
    FileNotFoundError for none.
    """
    snapshot = open_snapshot(path)
    raw = np.empty(snapshot.size, snapshot.dtype)
    for chunk in range(len(snapshot.digests)):
        part = raw[chunk * CHUNK : (chunk + 1) * CHUNK]
        snapshot.read(chunk * CHUNK, part)
        snapshot.verify(chunk, xxhash.xxh3_64_hexdigest(as_bytes(part)))
    return split(raw.astype(np.float32), snapshot.table), snapshot.meta


def split(row: np.ndarray, table: Table) -> Params:
    """One long row of elements -> nested dict of arrays, views of it."""
    flat, start = {}, 0
    for name, shape in table.items():
        stop = start + math.prod(shape)
        flat[name], start = row[start:stop].reshape(shape), stop
    return unflatten(flat)


class Listing(NamedTuple):
    """The snapshots of a directory, by nimg and then by name, and what is none."""

    snapshots: list[Snapshot]
    damaged: list[Damaged]


def scan(directory: PathLike) -> Listing:
    """Every .safetensors file of a directory, told by its header.

    Raises FileNotFoundError for no such directory.
    """
    directory = epath.Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"There is no directory of snapshots at {directory}.")

    def attempt(path: epath.Path) -> Snapshot | Damaged:
        try:
            return open_snapshot(path)
        except Damaged as error:
            return error

    paths = sorted(p for p in directory.glob("*.safetensors") if p.name[0] != ".")
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(attempt, paths))
    good = [each for each in found if isinstance(each, Snapshot)]
    good.sort(key=lambda snapshot: (snapshot.meta.nimg, snapshot.path.name))
    return Listing(good, [each for each in found if isinstance(each, Damaged)])


def list_snapshots(directory: PathLike) -> list[Snapshot]:
    """As scan, and raises Damaged, a ValueError, for the first file that is none."""
    found, damaged = scan(directory)
    if damaged:
        raise damaged[0]
    return found


def open_snapshot(path: PathLike) -> Snapshot:
    """The header of a snapshot; its weights stay where they are. Raises as read does."""
    path = epath.Path(path)
    header = container.read_header(path)
    words = header.words
    if words.get("format") != FORMAT or container.CHECKSUM not in words:
        raise Damaged(path, "is not a snapshot of edm_jax: move it away.")
    if words.get("format_version") != str(FORMAT_VERSION):
        version = words.get("format_version")
        raise Damaged(
            path,
            f"has snapshot format {version}, this edm_jax reads format "
            f"{FORMAT_VERSION}: read it with the version that wrote it.",
        )
    try:
        meta = _parse_meta(words)
        digests = tuple(json.loads(words["checksums"]))
        size = header.data_bytes // DTYPES[meta.dtype].itemsize
        if header.codes - {_CODES[meta.dtype]}:
            raise ValueError("mixed formats")
        if int(words["chunk"]) != CHUNK or len(digests) != -(-size // CHUNK):
            raise ValueError("checksums of other chunks")
    except (KeyError, ValueError, TypeError) as error:
        raise Damaged(
            path,
            f"has a damaged snapshot header ({error}): move it away or copy it again.",
        ) from error
    return Snapshot(path, meta, header.table, header.data_start, digests)


def flatten(params: Params, prefix: str = "") -> dict[str, Any]:
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
            flat[prefix + name] = value if hasattr(value, "shape") else np.array(value)
    return flat


def unflatten(flat: Mapping[str, Any]) -> Params:
    """{'outer/inner': array} -> nested dict of arrays: the inverse of flatten."""
    params: Params = {}
    for path, array in flat.items():
        *outer, name = path.split("/")
        node = params
        for key in outer:
            node = node.setdefault(key, {})
        node[name] = array
    return params


def _encode(table: Table, meta: SnapshotMeta, digests: Sequence[str]) -> bytes:
    words = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "profile": json.dumps(to_fields(meta.profile)),
        "nimg": str(int(meta.nimg)),
        "update_interval": str(int(meta.update_interval)),
        "config_hash": meta.config_hash,
        "dtype": meta.dtype,
        "rounded": meta.rounded,
        "versions": json.dumps(dict(meta.versions)),
        "ancestry": json.dumps(meta.ancestry),
        "chunk": str(CHUNK),
        "checksums": json.dumps(list(digests)),
    }
    return container.encode(table, _CODES[meta.dtype], words)


def _parse_meta(words: dict[str, str]) -> SnapshotMeta:
    return SnapshotMeta(
        profile=from_fields(json.loads(words["profile"])),
        nimg=int(words["nimg"]),
        update_interval=int(words["update_interval"]),
        config_hash=words["config_hash"],
        dtype=words["dtype"],
        rounded=words["rounded"],
        versions=json.loads(words["versions"]),
        ancestry=json.loads(words["ancestry"]),
    )
