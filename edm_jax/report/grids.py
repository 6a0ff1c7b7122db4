"""The sample grids of the page, side by side, within a budget of bytes."""

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from edm_jax.report.results import Index
from edm_jax.report.runs import Entry, Run, with_samples

MOST = 48  # grids: more are not compared by eye
SMALL = 480  # pixels of width of one that is made smaller


def grids(entries: Sequence[Entry], index: Index, budget: int) -> str:
    """One grid per finished config, as on disk where `budget` bytes allow it."""
    shown = with_samples(entries)
    if not shown:
        return ""
    kept = shown[:MOST]
    widths = [png_width(run.samples or b"") for _, run in kept]
    width = min(260, max(130, *widths))
    parts, smaller = [], 0
    for entry, run in kept:
        png = run.samples or b""
        data = inlined(png, budget // len(kept))
        smaller += data is not None and not data.startswith("data:image/png")
        parts.append(_grid(entry, run, index, data))
    note = "Samples of the finished runs, one class to a row. "
    if smaller:
        note += f"{smaller} are made smaller here. "
    if len(shown) > MOST:
        note += f"The first {MOST} of {len(shown)} configs. "
    note += (
        "The paper’s claim is one of statistics (FID): a letter’s step need not be seen "
        "in a few pictures."
    )
    return (
        f'<section><h2>Samples</h2><figure><div class="grids" style="--w:{width}px">'
        f"{''.join(parts)}</div><figcaption>{note}</figcaption></figure></section>"
    )


def _grid(entry: Entry, run: Run, index: Index, data: str | None) -> str:
    name = f"Samples of {entry.label} {entry.title}"
    image = f'<img alt="{escape(name)}" src="{data}">' if data else "<p>too large</p>"
    place = index.configs[id(entry)]
    return (
        f'<div data-config="{place}" title="{escape(run.name)}">{index.letter(entry)}'
        f"{escape(entry.title)}{image}</div>"
    )


def inlined(png: bytes, budget: int) -> str | None:
    """An image as a data URL of at most so many bytes; None where none is so small."""
    kind, data = "png", png
    if len(data) * 4 / 3 > budget:
        kind, data = "webp", _smaller(png)
    if len(data) * 4 / 3 > budget:
        return None
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _smaller(png: bytes) -> bytes:
    out = io.BytesIO()
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        image = image.convert("RGB")
        image.thumbnail((SMALL, 4 * SMALL))
        image.save(out, "WEBP", quality=75)
    return out.getvalue()


def png_width(png: bytes) -> int:
    """The width in pixels, which the PNG header holds at byte 16."""
    return int.from_bytes(png[16:20], "big")
