"""The metadata in a snapshot's header."""

import dataclasses
import functools
import importlib.metadata
import json
import platform
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from edm_jax import tree
from edm_jax.ema import container
from edm_jax.ema.container import Header, Table
from edm_jax.ema.grammar import AnyProfile, from_fields, to_fields
from edm_jax.ema.optional import epath, ml_dtypes
from edm_jax.files import Damaged, json_kind, parse_json

FORMAT = "edm_jax.snapshot"
FORMAT_VERSION = 4  # of averages whose clock ran before the run's did
_ONE_FORMAT = 2  # the version of files whose arrays all have the same format
_MIXED = 3
DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16)}
if ml_dtypes is not None:
    DTYPES["bfloat16"] = np.dtype(ml_dtypes.bfloat16)
_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
BY_CODE = {_CODES[name]: dtype for name, dtype in DTYPES.items()}
_WHOLE = "[0-9]{1,19}"
_LONGEST = 200  # characters of a hash
_PACKAGES = ("edm_jax", "jax", "flax", "optax", "numpy")


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
    """A snapshot's metadata: the profile, nimg, and where it comes from.

    Attributes:
        profile: the averaging profile.
        nimg: images trained on.
        update_interval: images between two updates of the EMA.
        config_hash: identifies the run's config.
        dtype: the storage format, 'float32', 'float16' or 'bfloat16'.
        rounded: a coarser format that the weights went through before; '' for none.
        versions: the versions of the libraries that wrote it.
        ancestry: how a reconstruction was made; None for a snapshot of a run.
        base: what the run's weights started from; None for a run from scratch.

    Raises:
        ValueError: nimg or update_interval is below 1 or beyond 64 bits, the dtype is
            unknown, or the base's clock is no number of images.
    """

    profile: AnyProfile
    nimg: int
    update_interval: int
    config_hash: str
    dtype: str = "float32"
    rounded: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=_versions)
    ancestry: Mapping[str, Any] | None = None
    base: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        before = (self.base or {}).get("before_nimg", 0)
        if type(before) is not int or not 0 <= before < 2**62:
            raise ValueError(f"its base has the clock {str(before)[:60]!r}")
        for name in ("nimg", "update_interval"):
            if not 1 <= (value := getattr(self, name)) < 2**63:
                raise ValueError(
                    f"A snapshot's {name} = {value} must be at least 1 image and fit in "
                    "64 bits."
                )
        for dtype in (self.dtype, self.rounded or self.dtype):
            if dtype in _CODES.keys() - DTYPES.keys():
                raise ImportError(
                    "Snapshots in bfloat16 need ml_dtypes: pip install ml_dtypes."
                )
            if dtype not in DTYPES:
                raise ValueError(
                    f"Snapshots cannot be stored as {dtype[:60]!r}: choose one of "
                    f"{', '.join(DTYPES)}."
                )

    @property
    def filename(self) -> str:
        """Such as power-0.050-000000065536.safetensors."""
        return f"{self.profile.label}-{self.nimg:012d}.safetensors"

    @property
    def before_nimg(self) -> int:
        """Images that the average's clock had counted before the run's first."""
        return (self.base or {}).get("before_nimg", 0)

    @property
    def unit_roundoff(self) -> float:
        """Half the spacing at 1 of the coarsest format that the weights went through."""
        formats = {self.dtype, self.rounded or self.dtype}
        return max(unit_roundoff(DTYPES[each]) for each in formats)


def unit_roundoff(dtype: np.dtype) -> float:
    """Half the spacing of a format's numbers at 1."""
    known = np.finfo if dtype.kind == "f" else ml_dtypes.finfo
    return float(known(dtype).eps) / 2


def formats(table: Table, meta: SnapshotMeta, exact: Container[str]) -> dict[str, str]:
    """The format of every array: float32 for those in `exact`, meta.dtype for others."""
    code = _CODES[meta.dtype]
    return {name: "F32" if name in exact else code for name in table}


def encode(
    table: Table,
    formats: Mapping[str, str],
    meta: SnapshotMeta,
    digests: Sequence[str],
    chunk: int,
) -> bytes:
    """The bytes before the data; `digests` holds a checksum for every `chunk` elements.

    If formats are mixed, checksums are of the elements as float32.
    """
    mixed = set(formats.values()) - {_CODES[meta.dtype]}
    words = {
        "format": FORMAT,
        "format_version": str(
            FORMAT_VERSION if meta.before_nimg else _MIXED if mixed else _ONE_FORMAT
        ),
        "profile": json.dumps(to_fields(meta.profile)),
        "nimg": str(int(meta.nimg)),
        "update_interval": str(int(meta.update_interval)),
        "config_hash": meta.config_hash,
        "dtype": meta.dtype,
        "rounded": meta.rounded,
        "versions": json.dumps(dict(meta.versions)),
        "ancestry": json.dumps(meta.ancestry),
        **({"base": json.dumps(meta.base)} if meta.base else {}),
        "chunk": str(chunk),
        "checksums": json.dumps(list(digests)),
    }
    return container.encode(table, formats, words)


def refuse(words: dict[str, str]) -> str:
    """Why a file with this metadata is not a readable snapshot; '' if it is."""
    if words.get("format") != FORMAT or container.CHECKSUM not in words:
        return "is not a snapshot of edm_jax: move it away."
    version = words.get("format_version", "")
    if version in map(str, (_ONE_FORMAT, _MIXED, FORMAT_VERSION)):
        return ""
    found = f"has snapshot format {version[:20]}, but this edm_jax reads formats "
    newer = re.fullmatch(_WHOLE, version) and int(version) > FORMAT_VERSION
    advice = "update edm_jax" if newer else "read it with the edm_jax that wrote it"
    return f"{found}{_ONE_FORMAT} to {FORMAT_VERSION}: {advice}."


def parse(
    path: epath.Path, header: Header
) -> tuple[SnapshotMeta, tuple[str, ...], int]:
    """Reads what `encode` wrote: meta, checksums, chunk. Raises Damaged otherwise."""
    words = header.words
    try:
        meta = SnapshotMeta(
            profile=from_fields(_json(words, "profile", dict)),
            nimg=_whole(words, "nimg"),
            update_interval=_whole(words, "update_interval"),
            config_hash=_short(words, "config_hash"),
            dtype=words["dtype"],
            rounded=words["rounded"],
            versions=_json(words, "versions", dict),
            ancestry=_json(words, "ancestry", dict, type(None)),
            base=_json(words, "base", dict) if "base" in words else None,
        )
        mixed = words["format_version"] != str(_ONE_FORMAT)
        known = {_CODES[meta.dtype], "F32"} if mixed else {_CODES[meta.dtype]}
        if not known >= set(header.formats.values()):
            raise ValueError("the formats of its arrays do not match its dtype")
        tree.unflatten(header.table)  # refuses names that no nested dict has
        digests = _json(words, "checksums", list)
        return meta, tuple(map(str, digests)), _whole(words, "chunk")
    except KeyError as error:
        reason = f"{error} is missing"
    except ValueError as error:
        reason = str(error).rstrip(".")
    raise Damaged(
        path,
        f"has a damaged snapshot header ({reason}): copy it again or move it away.",
    )


def _json(words: dict[str, str], name: str, *kinds: type) -> Any:
    """Parses a JSON value; raises ValueError if it is of another kind."""
    value = parse_json(words[name].encode(), unique=True)
    if type(value) not in kinds:
        raise ValueError(f"its {name} is {json_kind(value)}")
    return value


def _short(words: dict[str, str], name: str) -> str:
    if len(words[name]) > _LONGEST:
        raise ValueError(f"its {name} has {len(words[name]):,} characters")
    return words[name]


def _whole(words: dict[str, str], name: str) -> int:
    if not re.fullmatch(_WHOLE, words[name]):
        raise ValueError(f"its {name} is {words[name][:60]!r}, not a whole number")
    return int(words[name])
