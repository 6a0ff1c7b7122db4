"""Measure your data, and write a config for them.

    python experiments/init_config.py --data=DIR --out=mine.py
    python experiments/train.py --config=mine.py --run=runs/mine

DIR is a folder of pictures, a folder or uncompressed ZIP of the original code, or a .npz
or .npy file. The file is short, and says beside each value why it is so. It is a
workload, too: --config=configs/config_a.py:mine.py trains another letter on the same.
"""

import argparse
import dataclasses
import os
import pprint
import textwrap
from collections.abc import Callable

import numpy as np

from edm_jax import data as data_room
from edm_jax import files
from edm_jax.data import measure
from edm_jax.data.readers import READERS, Reader, Rows
from experiments import cli

# Of workloads here that were tried: images, a network's channels, and the rest by rule.
PASSES = 20  # over the data, at least
SHORTEST_MIMG = 0.16  # as long as the workload photos: half an hour on 2 CPU cores
LARGEST = 64  # pixels: the most that the paper trains without a VAE


@dataclasses.dataclass(frozen=True)
class Line:
    """One field of the workload."""

    field: str
    value: object
    why: str


def main() -> None:
    """Parse the command line, measure and write."""
    options = _parser().parse_args()
    if options.out.suffix != ".py":
        raise ValueError(f"--out={options.out} must end with .py.")
    if options.out.exists() and not options.force:
        raise FileExistsError(f"{options.out} is there already; --force replaces it.")
    path = os.path.abspath(options.data)
    found = measure.find(path)
    with cli.progress_bar() as bar:
        report = cli.report_to(bar)
        text, summary = propose(
            path,
            found,
            options,
            lambda done, total: report("reading", done, total),
        )
    files.write_text(options.out, text)
    for sentence in summary:
        cli.say(sentence)
    next_one = cli.command(
        "train.py", f"--config={options.out}", f"--run=runs/{options.out.stem}"
    )
    cli.say(f"Wrote {options.out}; next: {next_one}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--data", required=True, type=os.path.expanduser, metavar="DIR")
    add("--out", required=True, type=files.user_path, metavar="FILE.py")
    add("--letter", default="g", choices=list("abcdefg"), help="(%(default)s)")
    add("--resolution", type=int, help="pixels; pictures are resized to it")
    add("--duration_mimg", type=float, help="of training, in million images (as many as "
        f"{PASSES} passes, {SHORTEST_MIMG} or more)")  # fmt: skip
    add("--batch_size", type=int, help="images (128, or 512 for long runs)")
    add("--channels", type=int, choices=(1, 3), help="1: grayscale; of pictures")
    add("--fit", default="center", choices=("center", "random", "pad"), help="what "
        "pictures that are not square lose (%(default)s)")  # fmt: skip
    add("--force", action="store_true", help="replace the file")
    return parser


def propose(
    path: str,
    found: measure.Found,
    options: argparse.Namespace,
    on_progress: Callable[[int, int], object],
) -> tuple[str, list[str]]:
    """The config file's text, and sentences on what was measured."""
    settings, said = dict(found.settings), []
    if found.sizes is not None:
        short = found.sizes.min(axis=1)
        quarter = int(np.percentile(short, 25))
        settings["resolution"] = options.resolution or _power_of_2(quarter)
        settings["channels"] = options.channels or settings["channels"]
        settings["fit"] = options.fit
        width, height = np.median(found.sizes, axis=0).astype(int)
        modes = ", ".join(f"{n} {mode}" for mode, n in (found.modes or {}).items())
        said.append(
            f"Pictures: {width} x {height} pixels in the median, the shorter side "
            f"{short.min()} to {short.max()}; {modes}."
        )
    elif options.resolution or options.channels:
        raise ValueError(
            f"--resolution and --channels resize pictures, and {path} holds arrays or "
            "images of one size."
        )
    if found.ignored:
        said.append(f"Files of other kinds, passed over: {found.ignored}.")
    reader = READERS[found.reader](**settings)
    opened = [_open(path, reader, found.splits, split) for split in found.splits]
    (rows, labelled), (heldout, _) = opened
    m = measure.measure(rows, on_progress)
    other = measure.measure(heldout, on_progress)
    bad = [*m.bad.values(), *other.bad.values()]
    height, width, _ = m.shape
    if height != width:
        raise ValueError(
            f"{path} has images of {height} x {width} pixels, and the network takes "
            "square ones: cut or pad them."
        )
    classes = int(m.counts.size) if labelled else 0
    if hasattr(rows, "labels") and labelled:
        classes = int(max(rows.labels.max(), heldout.labels.max())) + 1
    said += _on_contents(m, len(heldout), classes)
    if bad:
        how_many = "One example is" if len(bad) == 1 else f"{len(bad)} examples are"
        said.append(f"{how_many} bad; the first: {bad[0]}")
    said += getattr(rows, "skipped", [])
    said += _on_duplicates(m, other, rows, heldout)
    name = options.out.stem
    duration = options.duration_mimg or max(SHORTEST_MIMG, PASSES * m.count / 1e6)
    batch = options.batch_size or (128 if duration <= 4 else 512)
    lines = [
        Line("dataset", path, ""),
        Line("reader", {"name": found.reader, **settings}, ""),
        Line("train_split", found.splits[0], f"{m.count:,} examples"),
        Line("heldout_split", found.splits[1], f"{len(heldout):,} examples"),
        Line("on_bad", "skip" if bad else "stop", f"{len(bad)} bad"),
        Line("resolution", m.shape[0], _on_size(found)),
        *_data_lines(m, classes),
        *_network_lines(m.shape[0], duration * 1e6 / m.count),
        *_budget_lines(duration, batch, duration * 1e6 / m.count),
        Line("num_samples", min(500, max(len(heldout), 64)), "for the evaluators"),
        Line("evaluation_batch_size", 125, ""),
    ]
    return _text(name, options.letter, lines, said), said


def _open(
    path: str, reader: Reader, splits: tuple[str, str], split: str
) -> tuple[Rows, bool]:
    """A split, and whether it has labels."""
    one = (0.0,), (1.0,)
    data = data_room.DataConfig(path, "", *splits, *one, reader, on_bad="skip")
    try:
        rows = reader.open(data, split, None)
    except ValueError:
        return reader.open(data, split, 0), False
    names = getattr(rows, "classes", None) or ()
    if len(names) > len(rows) / 2:  # captions, or numbers of the pictures
        return reader.open(data, split, 0), False
    return rows, True


def _power_of_2(size: int) -> int:
    return max(8, min(LARGEST, 2 ** int(np.log2(max(size, 1)))))


def _on_contents(m: measure.Measured, heldout: int, classes: int) -> list[str]:
    few = "" if m.read == m.count else f" ({m.read:,} of them read)"
    contents = (
        f"of shape {m.shape} and type {m.dtype}, from {m.lowest:g} to {m.highest:g}"
    )
    said = [f"{m.count:,} training examples{few} and {heldout:,} held out, {contents}."]
    if classes:
        counts = m.counts[m.counts > 0]
        said.append(
            f"{classes} classes, with {counts.min()} to {counts.max()} of the examples "
            "read."
        )
    return said


def _on_duplicates(
    m: measure.Measured, other: measure.Measured, rows: Rows, heldout: Rows
) -> list[str]:
    said = []
    place, there = (getattr(each, "place", str) for each in (rows, heldout))
    if m.duplicates:
        one, same = m.duplicates[0]
        said.append(
            f"{len(m.duplicates)} training examples repeat another, such as "
            f"{place(same)} and {place(one)}."
        )
    if both := m.digests.keys() & other.digests.keys():
        first = min(both, key=lambda digest: other.digests[digest])
        one, same = place(m.digests[first]), there(other.digests[first])
        said.append(
            f"{len(both)} held-out examples are trained on, such as {same}, which is "
            f"{one}: the held-out loss will look too good."
        )
    return said


def _data_lines(m: measure.Measured, classes: int) -> list[Line]:
    is_smooth = m.detail < 0.5 and m.shape[2] in (1, 3)
    P_mean, P_std = (-0.8, 1.6) if is_smooth else (-0.4, 1.0)
    kind = "smooth, like the paper's pixels" if is_smooth else "rough, like its latents"
    mean, std = (tuple(float(f"{x:.5g}") for x in each) for each in (m.mean, m.std))
    differ = f"neighbours differ by {m.detail:.2f} standard deviations:"
    return [
        Line("channels", m.shape[2], ""),
        Line("num_classes", classes, "the data's" if classes else "no labels"),
        Line("raw_mean", mean, "measured; batches have mean 0"),
        Line("raw_std", std, "and standard deviation sigma_data = 0.5"),
        Line("P_mean", P_mean, differ),
        Line("P_std", P_std, f"{kind} (Table 6)"),
    ]


def _network_lines(size: int, passes: float) -> list[Line]:
    levels = _levels(size)
    lowest = size >> (len(levels) - 1)
    attention = tuple(size >> i for i in range(len(levels)))[-2:]
    width = _width(size)
    many = "many: they overfit" if passes > 100 else "few"
    return [
        Line("model_channels", width, "small: for one GPU, or patience on a CPU"),
        Line("channel_mult", levels, f"{len(levels)} levels, down to {lowest} pixels"),
        Line("blocks_per_level", 1, "the paper's have 3"),
        Line("attention_resolutions", attention, "config B drops the first"),
        Line(
            "dropout", 0.1 if passes > 100 else 0.0, f"{passes:.0f} passes are {many}"
        ),
        Line("compute_dtype", "float32", "on GPUs and TPUs: bfloat16"),
        Line(
            "alpha_ref_mp",
            float(f"{0.138 / width**0.5:.3g}"),
            "D to G: 0.138 / sqrt(model_channels), as Table 6; or measure it:",
        ),
        Line(
            "alpha_ref_plain",
            5e-4 if width == 32 else 2e-4,
            "A to C; --config.optimizer.alpha_ref=auto",
        ),
    ]


def _width(size: int) -> int:
    return 32 if size <= 32 else 64


def _budget_lines(duration: float, batch: int, passes: float) -> list[Line]:
    """What scales with the duration, in million images."""
    steps = duration * 1e6 / batch
    length = f"{passes:.0f} passes, {steps:,.0f} steps; what follows scales with it"
    return [
        Line("batch_size", batch, "config A's is double"),
        Line("duration_mimg", _short(duration), length),
        Line("rampup_mimg", _short(duration / 10), "a tenth"),
        Line("t_ref", float(round(0.26 * steps)), "steps: the rate falls from there"),
        Line("halflife_mimg", _short(0.023 * duration), "config A's average"),
        Line("snapshot_mimg", _short(duration / 32), "32: any EMA length afterwards"),
        Line("log_mimg", _short(duration / 64), ""),
        Line("probe_mimg", _short(duration / 8), "held-out loss"),
    ]


def _levels(size: int) -> tuple[int, ...]:
    """Multipliers of channels, halving down to 8 pixels or as far as halves are whole."""
    count = 1
    while size % 2**count == 0 and size >> count >= min(8, size // 2) and count < 4:
        count += 1
    return {1: (1,), 2: (1, 2), 3: (1, 1, 2), 4: (1, 2, 2, 2)}[count]


def _on_size(found: measure.Found) -> str:
    if found.sizes is None:
        return "the data's"
    short = int(np.percentile(found.sizes.min(axis=1), 25))
    return (
        f"three quarters have {short} pixels or more; the paper's largest is {LARGEST}"
    )


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _text(name: str, letter: str, lines: list[Line], said: list[str]) -> str:
    body = []
    for line in lines:
        value = line.value
        if line.field == "reader":
            assert isinstance(value, dict)
            rest = "".join(f", {k}={v!r}" for k, v in value.items() if k != "name")
            shown = f"choice({value['name']!r}{rest})"
        else:
            shown = pprint.pformat(value)
        why = f"  # {line.why}" if line.why else ""
        body.append(f"    {line.field}={shown},{why}")
    measured = "\n".join(textwrap.fill(files.printable(each), 88) for each in said)
    measured = measured.replace("\\", "/").replace('"""', "'''")
    return f'''"""{name}: a workload, and config {letter.upper()} trained on it.

Measured by experiments/init_config.py:

{measured}
"""

from configs import config_{letter}
from configs.workloads import Workload
from edm_jax.menu import choice

WORKLOAD = Workload(
{chr(10).join(body)}
)


def get_config(workload=""):
    config = config_{letter}.get_config(__file__)
    # Changes to the letter go here, such as
    # config.data.augment = choice("edm")
    return config
'''


if __name__ == "__main__":
    cli.run(main)
