"""Weights and statistics in other projects' files, without PyTorch or running their
code.

PyTorch's state dicts (in both of its formats), safetensors, and pickles of nested dicts
of NumPy arrays. Pickles go through the machine of `pickles`, which builds inert nodes.
"""

import io
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from edm_jax.files import Damaged, PathLike, read_bytes
from edm_jax.original import arrays, pickles, reader
from edm_jax.original.pickles import Budget, Global, Node, Refused

_LIMIT_BYTES = 8 << 30  # DINOv2's largest network takes 4.5 GB
_MAX_DEPTH = 16  # of nested dicts
_LEGACY = b"\x80\x02\x8a\x0a" + pickles.LEGACY_MAGIC.to_bytes(10, "little")


def read(path: PathLike) -> dict[str, np.ndarray]:
    """The tensors of a file by name, read-only, in the stored types.

    The names of nested dicts are joined by dots.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, hostile or of another kind.
    """
    raw = read_bytes(path, _LIMIT_BYTES)
    try:
        if os.fspath(path).endswith(".safetensors"):
            found = safetensors.numpy.load(raw)
        elif raw.startswith(b"PK\x03\x04"):
            found = _zipped(raw)
        elif raw.startswith(_LEGACY):
            found = _legacy(memoryview(raw))
        else:
            tree = pickles.stream(memoryview(raw), Budget())
            found = dict(_flat(decoded(tree)))
    except Refused as refused:
        raise Damaged(path, str(refused)) from None
    except (safetensors.SafetensorError, zipfile.BadZipFile) as error:
        raise Damaged(path, f"is damaged ({error}).") from None
    if not found:
        raise Damaged(path, "holds no tensors.")
    return found


def read_tree(path: PathLike) -> Any:
    """What a pickle of nested dicts holds, arrays as NumPy's; raises as `read`."""
    raw = read_bytes(path, _LIMIT_BYTES)
    try:
        return decoded(pickles.stream(memoryview(raw), Budget()))
    except Refused as refused:
        raise Damaged(path, str(refused)) from None


def decoded(value: Any, depth: int = 0) -> Any:
    """Inert nodes of nested dicts as arrays and numbers; raises Refused."""
    if not isinstance(value, dict):
        return arrays.decode(value)
    if depth == _MAX_DEPTH:
        raise Refused(f"nests dicts more than {_MAX_DEPTH} deep")
    return {name: decoded(member, depth + 1) for name, member in value.items()}


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    if not isinstance(tree, Mapping):
        raise Refused("is not a dict of tensors", "name a file of weights")
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, np.ndarray):
            yield name, value
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            raise Refused(f"holds {name[:60]!r}, which is not a tensor")


def _zipped(raw: bytes) -> dict[str, np.ndarray]:
    """The state dict of torch.save's archive: data.pkl, and a file for each storage."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise Refused("is an archive that is compressed, as torch.save's is not")
        if not (roots := [name for name in members if name.endswith("/data.pkl")]):
            raise Refused("is an archive without data.pkl", "name a file of weights")
        folder = roots[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in members:
            raise Refused(
                "is a TorchScript program",
                "name the file of its weights (a state dict)",
            )
        if members.get(f"{folder}byteorder"):
            order = archive.read(f"{folder}byteorder")
            if order != b"little":
                raise Refused("is not little-endian", "save it again elsewhere")
        data = memoryview(archive.read(roots[0]))
        [root], rest = pickles.nested_streams(data, 1, Budget(), pickles.STATE_DICT)
        if len(rest):
            raise Refused("has bytes after the end of its pickle")

        def storage(key: str, dtype: np.dtype, numel: int) -> np.ndarray:
            name = f"{folder}data/{key}"
            if name not in members:
                raise Refused(f"lacks the storage {key!r}", "copy the file again")
            return _numbers(key, archive.read(name), dtype, numel)

        return _tensors(root, storage, len(raw))


def _legacy(data: memoryview) -> dict[str, np.ndarray]:
    """The state dict of torch.save before 1.6: pickles, then the storages in order."""
    header, rest = pickles.nested_streams(data, 5, Budget(), pickles.STATE_DICT)
    magic, version, system, root, keys = header
    claims = magic, version, isinstance(system, dict) and system.get("little_endian")
    if claims != (pickles.LEGACY_MAGIC, pickles.LEGACY_VERSION, True):
        raise Refused("is a file of torch.save of an unknown form")
    if not isinstance(keys, list):
        raise Refused("does not list its storages")
    sizes = {key: (dtype, numel) for key, dtype, numel in _storages(root)}
    places: dict[str, np.ndarray] = {}
    for key in keys:
        if not isinstance(key, str) or key not in sizes or key in places:
            raise Refused("lists a storage that no tensor has")
        dtype, numel = sizes[key]
        count, rest = int.from_bytes(rest[:8], "little"), rest[8:]
        size = numel * dtype.itemsize
        if count != numel or len(rest) < size:
            raise Refused(
                f"ends before its storage {key!r} does", "copy the file again"
            )
        places[key], rest = _numbers(key, rest[:size], dtype, numel), rest[size:]
    if len(rest):
        raise Refused("has bytes after its last storage")
    if missing := sizes.keys() - places.keys():
        raise Refused(f"lacks the storage {min(missing)!r}", "copy the file again")
    return _tensors(root, lambda key, *_: places[key], len(data))


def _numbers(key: str, data: Any, dtype: np.dtype, numel: int) -> np.ndarray:
    if len(data) != numel * dtype.itemsize:
        raise Refused(
            f"claims {numel} numbers for the storage {key!r}, and holds {len(data)} "
            "bytes of them"
        )
    return np.frombuffer(data, dtype)


def _entries(root: Any) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Name, claim of storage, and (offset, shape, strides) of each tensor."""
    if not isinstance(root, dict):
        raise Refused("is not a dict of tensors", "save the network's state_dict()")
    for name, node in root.items():
        match node:
            case Node(pickles.PARAMETER, (tensor, _, _)):
                node = tensor
        match node:
            case Node(pickles.TENSOR, (Node("", claim), offset, size, stride, *_)):
                yield str(name), claim, (offset, size, stride)
            case _:
                advice = "save the network's state_dict() alone"
                raise Refused(
                    f"holds {str(name)[:60]!r}, which is not a tensor", advice
                )


def _storages(root: Any) -> Iterator[tuple[str, np.dtype, int]]:
    for name, claim, _ in _entries(root):
        yield _claimed(name, claim)


def _claimed(name: str, claim: tuple[Any, ...]) -> tuple[str, np.dtype, int]:
    match claim:
        case ("storage", Global(kind), str(key), str(), int(numel), *_) if numel >= 1:
            if kind in pickles.WEIGHT_STORAGES:
                return key, np.dtype(pickles.WEIGHT_STORAGES[kind]), numel
    raise Refused(f"holds a tensor {name[:60]!r} whose storage has an unknown form")


def _tensors(root: Any, storage: Any, limit: int) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    size = 0
    for name, claim, (offset, shape, strides) in _entries(root):
        numbers = storage(*_claimed(name, claim))
        found[name] = reader.strided(name, numbers, offset, shape, strides)
        size += math.prod(found[name].shape) * found[name].itemsize
        if size > limit:
            raise Refused("holds tensors that share their storage")
    return found
