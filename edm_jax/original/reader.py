"""Reads a snapshot of the original code into named modules and arrays, without PyTorch.

It walks the modules through their dicts of parameters, buffers and modules, and ignores
the source code beside them. A tensor is a nested stream (a legacy torch.save), and each
of its claims is checked against the actual bytes.
"""

import math
import mmap
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from edm_jax.files import Damaged, open_regular
from edm_jax.original import pickles
from edm_jax.original.pickles import Budget, Global, Node, Refused

_MAX_DIMS = 8
_MAX_NAME = 255
_GROUPS = ("_parameters", "_buffers", "_modules")


class Module(NamedTuple):
    """A module of the pickled network: the name of its class, and its state.

    state is the object's dict, with parameters and settings, as inert values.
    """

    class_name: str
    state: dict[Any, Any]


class Stored(NamedTuple):
    """The contents of a snapshot.

    tensors: the averaged weights by names such as 'unet.out_conv.weight', read-only
    views of the file in the stored format (float16 or float32).
    modules: the network's modules by name; the network itself is ''.
    encoder: the state of the encoder of its images; {} if there is none.
    """

    tensors: dict[str, np.ndarray]
    modules: dict[str, Module]
    encoder: dict[Any, Any]


def read(path: str | os.PathLike[str]) -> Stored:
    """Reads a snapshot; nothing in the file is imported, called or executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, hostile or not a snapshot.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        # An empty file cannot be mapped.
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    try:
        return _read(memoryview(data))
    except Refused as refused:
        raise Damaged(path, str(refused)) from None


def _read(data: memoryview) -> Stored:
    budget = Budget()
    root = pickles.stream(data, budget)
    if not isinstance(root, dict) or "ema" not in root:
        raise Refused("holds no averaged weights", "choose a snapshot that does")
    tensors: dict[str, np.ndarray] = {}
    size = 0
    modules: dict[str, Module] = {}
    for name, module in _modules(root["ema"], budget):
        if name in modules:
            raise Refused(f"holds two modules {name!r}")
        modules[name] = module
    for prefix, module in modules.items():
        for name, node in _members(prefix, module.state):
            if name in tensors:
                raise Refused(f"holds two tensors {name!r}")
            tensors[name] = _tensor(name, node, budget)
            size += tensors[name].nbytes
            if size > len(data):
                raise Refused("holds tensors that share their storage")
    encoder = root.get("encoder")
    known = isinstance(encoder, Node) and encoder.name == pickles.MODULE
    return Stored(tensors, modules, _state(encoder, "encoder").state if known else {})


def _modules(root: Any, budget: Budget) -> Iterator[tuple[str, Module]]:
    # The budget and the length of names limit the cost of cycles and shared modules.
    pending = [("", root)]
    while pending:
        prefix, node = pending.pop()
        module = _state(node, prefix)
        yield prefix, module
        for group in _GROUPS:
            members = module.state.get(group)
            if not isinstance(members, dict):
                raise Refused(f"holds a module {prefix!r} without a dict {group!r}")
            budget.spend(1 + len(members))
        pending += reversed([*_named(prefix, module.state["_modules"])])


def _members(prefix: str, state: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    """A module's own tensors, with their full names."""
    yield from _named(prefix, state["_parameters"])
    yield from _named(prefix, state["_buffers"])


def _named(prefix: str, members: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    for key, member in members.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if "." in str(key):
            raise Refused(f"holds a member {name[:40]!r} with a dot in its name")
        if len(name) > _MAX_NAME:
            raise Refused(f"nests its modules too deeply at {name[:40]!r}")
        if member is not None:  # PyTorch stores None for an absent member
            yield name, member


def _state(module: Any, name: str) -> Module:
    match module:
        case Node(pickles.MODULE, (dict() as meta,)) if type(meta.get("state")) is dict:
            class_name = meta.get("class_name")
            known = isinstance(class_name, str)
            return Module(class_name if known else "", meta["state"])
        case Node(pickles.MODULE_DICT, (), dict() as state):
            return Module("ModuleDict", state)
    raise Refused(f"holds a module {name!r} of an unknown form")


def _tensor(name: str, node: Any, budget: Budget) -> np.ndarray:
    match node:
        case Node(pickles.PARAMETER, (tensor, _, _)):
            node = tensor
    match node:
        case Node(
            pickles.TENSOR,
            (Node(pickles.STORAGE, (memoryview() as data,)), offset, size, stride, *_),
        ):
            return strided(name, _storage(name, data, budget), offset, size, stride)
    raise Refused(f"holds a tensor {name!r} of an unknown form")


def _storage(name: str, data: memoryview, budget: Budget) -> np.ndarray:
    """The numbers (numel,) in a tensor's stream."""
    header, rest = pickles.nested_streams(data, 5, budget)
    match header:
        case [
            pickles.LEGACY_MAGIC,
            pickles.LEGACY_VERSION,
            {"little_endian": True},
            Node("", ("storage", Global(kind), str(key), str(), int(numel), *view)),
            [str(listed)],
        ] if key == listed and view in ([], [None]):
            pass
        case _:
            raise Refused(f"holds a tensor {name!r} whose storage has an unknown form")
    numbers, dtype = rest[8:], np.dtype(pickles.STORAGES[kind])
    sizes = {numel, int.from_bytes(rest[:8], "little"), len(numbers) / dtype.itemsize}
    if len(sizes) > 1 or numel < 1:
        raise Refused(
            f"claims {numel} numbers for the tensor {name!r}, but holds "
            f"{len(numbers)} bytes of them"
        )
    return np.frombuffer(numbers, dtype)


def strided(
    name: str, storage: np.ndarray, offset: Any, size: Any, stride: Any
) -> np.ndarray:
    """The view of a storage (numel,) with this shape and these strides, in numbers."""
    typed = type(offset) is int and type(size) is type(stride) is tuple
    shaped = typed and offset >= 0 and len(size) == len(stride) <= _MAX_DIMS
    # None may be 0, which would repeat numbers, or so large that products explode.
    if shaped and all(type(n) is int and 1 <= n <= storage.size for n in size + stride):
        end = 1 + offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if max(end, math.prod(size)) <= storage.size:
            start, *steps = (storage.itemsize * n for n in (offset, *stride))
            return np.ndarray(size, storage.dtype, storage.data, start, steps)
    raise Refused(
        f"gives the tensor {name!r} a shape or strides beyond its storage of "
        f"{storage.size} numbers"
    )
