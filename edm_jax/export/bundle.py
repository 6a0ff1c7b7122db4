"""Files of weights that say where they come from, and the way back to a snapshot.

A plain export is a snapshot whose header holds the config as well, so that it needs no
run beside it. What PyTorch reads has other names, and the snapshot's header as a text.
Both are safetensors.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from edm_jax.ema import container, snapshots
from edm_jax.ema.container import CHECKSUM, Header
from edm_jax.ema.meta import BY_CODE, FORMAT, SnapshotMeta, parse, refuse
from edm_jax.ema.snapshots import Params
from edm_jax.export import names
from edm_jax.files import Damaged, PathLike, named, parse_json
from edm_jax.original import weights
from edm_jax.tree import unflatten

# Words of a header that are not the snapshot's own: the config of its run, and where the
# names are PyTorch's all of the snapshot's words.
_CONFIG, _SNAPSHOT = "config", "snapshot"


@dataclasses.dataclass(frozen=True, eq=False)
class Bundle:
    """A snapshot's weights, and what is known of them.

    Attributes:
        tensors: the weights by name, in the formats in which the snapshot stores them.
        words: the snapshot's own metadata.
        config: the run's config, as config.json holds it.
        meta: `words`, parsed.
    """

    tensors: dict[str, np.ndarray]
    words: dict[str, str]
    config: dict[str, Any]
    meta: SnapshotMeta


class Restored(NamedTuple):
    """A snapshot that is written again; `same` if it has the bits of the exported one."""

    path: Path
    same: bool


def bundle(path: PathLike, config: dict[str, Any]) -> Bundle:
    """Reads and verifies a snapshot; raises as `snapshots.read`."""
    params, meta = snapshots.read(path)
    flat = snapshots.flatten(params)
    header = container.read_header(epath.Path(path), refuse)
    tensors = {
        name: flat[name].astype(BY_CODE[code], copy=False)
        for name, code in header.formats.items()
    }
    own = {CHECKSUM, _CONFIG}
    words = {k: v for k, v in header.words.items() if k not in own}
    return Bundle(tensors, words, config, meta)


def write_weights(path: Path, found: Bundle) -> None:
    """Writes the weights with the names and the layout that they have here.

    What takes a snapshot takes this file, too.
    """
    words = found.words | {_CONFIG: json.dumps(found.config)}
    _write(path, found.tensors, words, checked=True)


def write_state_dict(path: Path, found: Bundle) -> None:
    """Writes the weights as the state dict of the PyTorch module."""
    words = {
        "format": "pt",  # as libraries of PyTorch expect it
        _SNAPSHOT: json.dumps(found.words),
        _CONFIG: json.dumps(found.config),
    }
    _write(path, names.to_pytorch(found.tensors), words, checked=False)


def _write(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    words: Mapping[str, str],
    checked: bool,
) -> None:
    """Writes a safetensors file whole or not at all; an OSError names it."""
    codes = {dtype: code for code, dtype in BY_CODE.items()}
    table = {name: tensor.shape for name, tensor in tensors.items()}
    formats = {name: codes[tensor.dtype] for name, tensor in tensors.items()}
    partial = container.partial_path(epath.Path(path))
    try:
        with open(partial, "wb") as file:
            file.write(container.encode(table, formats, words, checked=checked))
            rows = (tensor.ravel() for tensor in tensors.values())
            file.writelines(map(snapshots.as_bytes, rows))
        container.publish(partial, epath.Path(path))
    except OSError as error:
        raise named(error, path) from None
    finally:
        Path(partial).unlink(missing_ok=True)


def read(path: PathLike, like: PathLike | None = None) -> Bundle:
    """Reads weights that were exported, in any of their forms.

    Args:
        path: a file that `write_weights` or `write_state_dict` wrote, or a state dict of
            the module that PyTorch wrote, perhaps trained further.
        like: a file of the export, which says what the file itself does not.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or none of these; mostly Damaged.
    """
    if not str(path).endswith(".safetensors"):
        words, tensors = {}, weights.read(path)
    elif (header := container.read_header(epath.Path(path))).words.get(
        "format"
    ) == FORMAT:
        return bundle(path, _object(path, header.words, _CONFIG))
    else:
        words, tensors = header.words, _tensors(path, header)
    tensors = names.from_pytorch(tensors)
    if _SNAPSHOT in words:
        stored, config = (_object(path, words, key) for key in (_SNAPSHOT, _CONFIG))
        if not all(isinstance(value, str) for value in stored.values()):
            raise Damaged(
                path, "is damaged: its snapshot's header holds more than text."
            )
        if reason := refuse(stored | {CHECKSUM: ""}):
            raise Damaged(path, f"is damaged: its snapshot's header {reason}")
        table = {name: tensor.shape for name, tensor in tensors.items()}
        meta, _, _ = parse(epath.Path(path), Header(stored, table, {}, 0, 0))
        return Bundle(tensors, stored, config, meta)
    if like is None:
        raise Damaged(
            path,
            "does not say what its weights come from: name a file of the export that "
            "they began as, such as --like=torch_denoiser.safetensors.",
        )
    base = read(like)
    _check_same_network(path, tensors, base.tensors)
    kept = {
        name: _narrow(tensors[name], old.dtype) for name, old in base.tensors.items()
    }
    return dataclasses.replace(base, tensors=kept)


def _check_same_network(
    path: PathLike, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> None:
    found, wanted = ({k: v.shape for k, v in each.items()} for each in (ours, theirs))
    if found == wanted:
        return
    name, _ = min(found.items() ^ wanted.items(), key=lambda item: item[0])
    raise Damaged(
        path,
        f"holds the weights of another network than --like: {name} has shape "
        f"{found.get(name)} there, and {wanted.get(name)} in --like.",
    )


def _narrow(tensor: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The tensor in the format it once had, if that loses nothing; else as float32."""
    wide = tensor.astype(np.float32, copy=False)
    with np.errstate(over="ignore"):
        narrow = wide.astype(dtype)
    return narrow if np.array_equal(narrow.astype(np.float32), wide) else wide


def _tensors(path: PathLike, header: Header) -> dict[str, np.ndarray]:
    raw = bytearray(header.data_bytes)
    container.read_range(epath.Path(path), header.data_start, memoryview(raw))
    found, start = {}, 0
    for name, shape in header.table.items():
        code = header.formats[name]
        if code not in BY_CODE:
            raise Damaged(path, f"holds {name[:60]!r} as {code}, which no weights are.")
        tensor = np.ndarray(shape, BY_CODE[code], raw, start)
        found[name], start = tensor, start + tensor.nbytes
    return found


def restore(directory: PathLike, found: Bundle, source: str) -> Restored:
    """Writes a snapshot of weights that came back.

    If they are those that were exported, the file is the exported one to the byte.
    Otherwise they are float32, and the ancestry names `source`.
    """
    params: Params = unflatten(found.tensors)
    wide = BY_CODE["F32"]
    exact = {name for name, each in found.tensors.items() if each.dtype == wide}
    meta, digests = found.meta, json.loads(found.words["checksums"])
    path = snapshots.write(directory, params, meta, exact=exact)
    same = list(snapshots.open_snapshot(path).digests) == digests
    if not same:
        ancestry = {"method": "import", "file": source, "of": dict(found.words)}
        changed = dataclasses.replace(meta, dtype="float32", ancestry=ancestry)
        path = snapshots.write(directory, params, changed)
    return Restored(Path(path), same)


def _object(path: PathLike, words: Mapping[str, str], key: str) -> dict[str, Any]:
    try:
        value = parse_json(words[key].encode())
    except KeyError:
        reason = f"is no export (its header has no {key}): name a file of export.py."
        raise Damaged(path, reason) from None
    except ValueError as error:
        raise Damaged(path, f"is damaged: its {key} is not JSON ({error}).") from None
    if not isinstance(value, dict):
        raise Damaged(path, f"is damaged: its {key} is not an object.")
    return value
