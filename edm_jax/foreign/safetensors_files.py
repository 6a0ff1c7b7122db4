"""Plain safetensors files, of Hugging Face's libraries and others."""

import math
from pathlib import Path

from edm_jax.ema import container
from edm_jax.ema.optional import epath
from edm_jax.foreign.layout import ITEMSIZE, Array, Layout


def read(path: Path) -> Layout:
    """The layout of a safetensors file; raises Damaged if it is not one."""
    header = container.read_header(epath.Path(path), itemsize=ITEMSIZE)
    arrays: dict[str, Array] = {}
    offset = header.data_start
    for name, shape in header.table.items():
        count, code = math.prod(shape), header.formats[name]
        arrays[name] = Array(shape, code, offset, count)
        offset += count * ITEMSIZE[code]
    return Layout(path, "safetensors", arrays, header.words)
