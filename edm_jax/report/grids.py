"""The page's sample grids, side by side, within a budget of bytes."""

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from edm_jax.report.results import letter
from edm_jax.report.runs import Entry, with_samples

MOST = 48  # grids: nobody compares more by eye
SMALL = 480  # width of a shrunken grid in pixels


def grids(entries: Sequence[Entry], budget: int) -> str:
    """One grid per finished config, shrunk if they exceed `budget` bytes."""
    shown = with_samples(entries)
    if not shown:
        return ""
    kept = [(entry, run, run.samples or b"") for entry, run in shown[:MOST]]
    # The header of a PNG holds its width at byte 16.
    widths = [int.from_bytes(png[16:20], "big") for *_, png in kept]
    parts, smaller = [], 0
    for entry, run, png in kept:
        data = inlined(png, budget // len(kept))
        smaller += data is not None and not data.startswith("data:image/png")
        alt = escape(f"Samples of {entry.label} {entry.title}")
        image = f'<img alt="{alt}" src="{data}">' if data else "<p>too large</p>"
        parts.append(
            f'<div data-config="{entry.place}" title="{escape(run.name)}">'
            f"{letter(entry)}{escape(entry.title)}{image}</div>"
        )
    note = "Samples of the finished runs, one class per row. "
    if smaller:
        note += f"{smaller} are shrunk to fit. "
    if len(shown) > MOST:
        note += f"Only the first {MOST} of {len(shown)} configs are shown. "
    note += (
        "The paper’s claims are about statistics (FID): a few pictures may not show the "
        "effect of a letter."
    )
    width = min(260, max(130, *widths))
    return (
        f'<section><h2>Samples</h2><figure><div class="grids" style="--w:{width}px">'
        f"{''.join(parts)}</div><figcaption>{note}</figcaption></figure></section>"
    )


def inlined(png: bytes, budget: int) -> str | None:
    """A data URL of an image, shrunk to fit into `budget` bytes; None if it cannot be."""
    if len(png) * 4 / 3 <= budget:
        return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
    out = io.BytesIO()
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        image = image.convert("RGB")
        image.thumbnail((SMALL, 4 * SMALL))
        image.save(out, "WEBP", quality=75)
    if len(out.getvalue()) * 4 / 3 > budget:
        return None
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode('ascii')}"
