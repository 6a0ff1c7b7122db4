"""A page on a data set: examples of each class as the network gets them, and figures."""

import base64
import dataclasses
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from edm_jax.report.page import document

_STYLE = """
.strip { display: flex; align-items: center; gap: 1rem; margin: 0 0 .5rem; }
.strip div { flex: 0 0 10rem; font: 13px/1.35 var(--sans); overflow-wrap: anywhere; }
.strip img { image-rendering: pixelated; max-width: calc(100% - 11rem); }
svg { width: 100%; height: auto; font: 12px var(--sans); }
svg text { fill: var(--soft); }
"""
# A histogram's channels: red, green and blue where they are that, and a fourth.
_COLOURS = ("var(--s5)", "var(--s3)", "var(--s1)", "var(--s6)")
_BARS = 200  # classes that have a bar of their own
_RANGE = 2.0  # of the histogram, to either side: four standard deviations
BINS = 80


@dataclasses.dataclass(frozen=True)
class Class:
    """Some of a class's examples."""

    name: str
    images: np.ndarray  # (n, H, W, C), normalised


@dataclasses.dataclass(frozen=True)
class Split:
    """One of the data's splits, measured."""

    name: str
    count: int
    read: int
    counts: np.ndarray  # examples read of each class
    mean: Sequence[float]  # per channel, stored units
    std: Sequence[float]
    lowest: float
    highest: float


@dataclasses.dataclass(frozen=True)
class DataPage:
    """What the page shows."""

    title: str
    facts: dict[str, str]
    warnings: Sequence[str]
    splits: Sequence[Split]
    classes: Sequence[Class]
    class_names: Sequence[str]
    skipped: Sequence[str]
    sigma_data: float

    @property
    def images(self) -> np.ndarray:
        """All that are shown, (N, H, W, C)."""
        return np.concatenate([each.images for each in self.classes])


def render(page: DataPage) -> str:
    """The page as HTML that needs no other file, no script and no network."""
    warnings = "".join(f'<p class="bad">{escape(each)}</p>' for each in page.warnings)
    facts = "".join(
        f'<tr><th>{escape(name)}</th><td class="left">{escape(value)}</td></tr>'
        for name, value in page.facts.items()
    )
    body = f"""<main>
<header><h1>{escape(page.title)}</h1></header>
{warnings}
<table>{facts}</table>
<section><h2>As the network gets them</h2>
<p>Training images after cropping, normalizing and augmentation; black and white are two
standard deviations below and above the mean.{_on_channels(page)}</p>
{"".join(_strip(each, page.sigma_data) for each in page.classes)}
</section>
<section><h2>Values</h2>
{_histogram(page)}
{_table(page)}
</section>
<section><h2>Classes</h2>
{_bars(page)}
</section>
<section><h2>Skipped</h2>
{_skipped(page.skipped)}
</section>
</main>"""
    return document(page.title, body, style=_STYLE)


def _on_channels(page: DataPage) -> str:
    channels = page.images.shape[-1]
    if channels in (1, 3):
        return ""
    shown = "three" if channels > 3 else "one"
    return f" Of the {channels} channels, the first {shown} are shown."


def _strip(shown: Class, sigma_data: float) -> str:
    """A row of pictures."""
    images = shown.images[..., : 3 if shown.images.shape[-1] >= 3 else 1]
    unit = np.clip(images / (4 * sigma_data) + 0.5, 0, 1)
    framed = np.pad(unit, ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=0.5)
    row = np.concatenate(list(framed), axis=1)
    pixels = np.round(255 * np.broadcast_to(row, (*row.shape[:2], 3))).astype(np.uint8)
    whole = io.BytesIO()
    Image.fromarray(pixels).save(whole, "PNG")
    data = base64.b64encode(whole.getvalue()).decode()
    scale = max(1, 72 // pixels.shape[0])
    size = f'width="{pixels.shape[1] * scale}"'
    name = escape(shown.name)
    return (
        f'<div class="strip"><div>{name}</div>'
        f'<img {size} alt="examples of {name}" src="data:image/png;base64,{data}"></div>'
    )


def _histogram(page: DataPage) -> str:
    """Normalised values by channel, with the normal distribution of sigma_data."""
    edges = np.linspace(-_RANGE, _RANGE, BINS + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    sigma = page.sigma_data
    normal = np.exp(-0.5 * (middles / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
    channels = page.images.reshape(-1, page.images.shape[-1]).T
    found = [np.histogram(values, edges)[0] for values in channels]
    density = [each / max(each.sum(), 1) / (edges[1] - edges[0]) for each in found]
    # A spike, such as a background of one level, must not flatten all else.
    highest = min(3 * normal.max(), max(normal.max(), *map(np.max, density)))
    width, height, below = 800, 220, 24

    def path(values: np.ndarray) -> str:
        x = (middles + _RANGE) / (2 * _RANGE) * width
        y = height - np.minimum(values / highest, 1) * (height - 8)
        return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))

    one = len(density) == 1
    lines = "".join(
        f'<path d="{path(each)}" fill="none" stroke-width="1.8" '
        f'stroke="{"var(--s1)" if one else _COLOURS[i % 4]}"/>'
        for i, each in enumerate(density)
    )
    ticks = "".join(
        f'<text x="{(at + _RANGE) / (2 * _RANGE) * width}" y="{height + 18}" '
        f'text-anchor="middle">{at:g}</text>'
        for at in (-1.5, -1, -0.5, 0, 0.5, 1, 1.5)
    )
    return (
        f'<figure><svg viewBox="0 0 {width} {height + below}" role="img" '
        f'aria-label="histogram of the values of each channel">'
        f'<path d="M0 {height}H{width}" stroke="var(--rule)"/>{lines}'
        f'<path d="{path(normal)}" fill="none" stroke="var(--soft)" '
        f'stroke-dasharray="4 4"/>{ticks}</svg>'
        "<figcaption>Density of the values shown above, one line for each channel"
        "; dashed: the normal "
        f"distribution with sigma_data = {sigma:g}.</figcaption></figure>"
    )


def _table(page: DataPage) -> str:
    def listed(values: Sequence[float]) -> str:
        return ", ".join(f"{value:.4g}" for value in values)

    rows, cells = [], {}
    for split in page.splits:
        cells = {
            "examples": f"{split.count:,}",
            "read": f"{split.read:,}",
            "mean, stored units": listed(split.mean),
            "standard deviation": listed(split.std),
            "values": f"{split.lowest:g} to {split.highest:g}",
        }
        each = "".join(f'<td data-label="{k}">{v}</td>' for k, v in cells.items())
        rows.append(f"<tr><th>{escape(split.name)}</th>{each}</tr>")
    heads = "".join(f"<th>{name}</th>" for name in cells)
    return (
        f'<table class="growth"><thead><tr><th class="left">split</th>{heads}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _bars(page: DataPage) -> str:
    """Examples of each class in the first split."""
    counts = page.splits[0].counts
    if len(counts) < 2:
        return "<p>One class, or no labels.</p>"
    some = counts[:_BARS]
    each = min(70.0, 800 / len(some))
    width, height = 800, 110
    bars = "".join(
        f'<rect x="{i * each:.2f}" width="{max(each * 0.86, 0.5):.2f}" '
        f'y="{height - height * count / counts.max():.1f}" '
        f'height="{height * count / counts.max():.1f}" fill="var(--s1)">'
        f"<title>{escape(_name(page, i))}: {count}</title></rect>"
        for i, count in enumerate(some.tolist())
    )
    names = ""
    if len(some) <= 11:
        names = "".join(
            f'<text x="{(i + 0.43) * each:.1f}" y="{height + 16}" text-anchor="middle">'
            f"{escape(_name(page, i)[:10])}</text>"
            for i, count in enumerate(some.tolist())
        )
    empty = int((counts == 0).sum())
    few = f" {empty} classes have none." if empty else ""
    rest = f" The first {_BARS} are drawn." if len(counts) > _BARS else ""
    return (
        f'<figure><svg viewBox="0 0 {width} {height + 24}" role="img" '
        f'aria-label="examples of each class">{bars}{names}</svg><figcaption>'
        f"{len(counts):,} classes, {counts.min():,} to {counts.max():,} of the examples "
        f"read.{few}{rest}</figcaption></figure>"
    )


def _name(page: DataPage, label: int) -> str:
    return page.class_names[label] if label < len(page.class_names) else str(label)


def _skipped(sentences: Sequence[str]) -> str:
    if not sentences:
        return "<p>Nothing was skipped.</p>"
    shown = "".join(f"<li>{escape(each)}</li>" for each in sentences[:50])
    more = f"<p>And {len(sentences) - 50:,} more.</p>" if len(sentences) > 50 else ""
    return f"<ul>{shown}</ul>{more}"
