"""Convert your data once: to a TFDS data set, or to the original code's ZIP.

    python experiments/prepare_data.py /data/pictures --out=/data/mine --resolution=64
    python experiments/train.py --config=configs/config_g.py:photos-64 --run=runs/mine \\
        --config.data.name=/data/mine --config.data.heldout_split=heldout

SOURCE is a folder or uncompressed ZIP of pictures or of the original code's data, or a .npz
or .npy file. An OUT that ends with .zip becomes the original's ZIP, any other a folder of
array_record files, which TFDS reads without TensorFlow. After an interruption the same
command resumes; OUT appears once it is complete.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np

from edm_jax import data as data_room
from edm_jax import files
from edm_jax.data import conversion, forms, measure
from edm_jax.data.folders import Original
from edm_jax.data.readers import READERS, Reader
from edm_jax.evals import latents
from experiments import cli


def main() -> None:
    """Parse the command line, convert, and say what was made."""
    options = _parser().parse_args()
    path, out = os.path.abspath(options.source), options.out
    if out.exists():
        raise FileExistsError(f"{out} is there already: remove it, or name another.")
    if Path(path) in out.absolute().parents:
        raise ValueError(f"--out={out} lies in {path}, which is read: name another.")
    is_zip = out.suffix.lower() == ".zip"
    found = measure.find(path)
    reader = _reader(path, found, options)
    sources = _sources(path, reader, found, options, is_zip)
    first = sources[0]
    encode, weights = None, {}
    if options.encode:
        coder, first = _encoder(first, options)
        encode = coder.encode
        weights = {"vae": coder.digest, "pixels": options.pixels}
        form_of = {"shape": first.shape, "dtype": first.dtype, "is_moments": True}
        sources = [each._replace(**form_of) for each in sources]
    form = forms.ZipForm(first) if is_zip else forms.TfdsForm(out, first)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    made_of = {
        "source": os.path.basename(path),
        "fingerprint": data_room.fingerprint(_data(path, reader, found.splits)),
        "reader": repr(reader),
        "splits": [each.name for each in sources],
        **weights,
    }
    with cli.progress_bar() as bar:
        report = cli.report_to(bar)
        made = conversion.convert(
            sources,
            form,
            out,
            made_of,
            workers=options.workers,
            on_bad=options.on_bad,
            encode=encode,
            on_progress=lambda done, total: report("examples", max(done, 1), total),
        )
    for sentence in made.skipped[:20]:
        cli.say(f"Skipped: {sentence}")
    counts = ", ".join(f"{count:,} {split}" for split, count in made.examples.items())
    left_out = f", {len(made.skipped)} skipped" if made.skipped else ""
    shape = " x ".join(map(str, first.shape))
    cli.say(
        f"Wrote {out}: {counts}{left_out}; {shape}, {first.dtype}; contents "
        f"{made.contents}."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("source", type=os.path.expanduser, metavar="SOURCE")
    add("--out", required=True, type=files.user_path, metavar="DIR|FILE.zip")
    add("--resolution", type=_positive, help="pixels; pictures are resized to it")
    add("--channels", type=int, choices=(1, 3), help="1: grayscale; of pictures")
    add("--fit", default="center", choices=("center", "pad"), help="what pictures that "
        "are not square lose (%(default)s)")  # fmt: skip
    add("--heldout", type=float, help="share of the examples that is held out, where no "
        "folder holds them (0.1)")  # fmt: skip
    add(
        "--labels",
        choices=("auto", "none"),
        default="auto",
        help="none: leave them out",
    )
    add("--on_bad", default="stop", choices=("stop", "skip"), help="at a damaged example "
        "(%(default)s)")  # fmt: skip
    add(
        "--encode",
        type=os.path.expanduser,
        metavar="VAE",
        help="make latents of RGB pictures with Stable Diffusion's VAE: its .safetensors "
        "file, or a folder that diffusers wrote",
    )
    add(
        "--pixels",
        choices=("unit", "symmetric"),
        default="unit",
        help="what the VAE is given: pixels in [0, 1], as EDM2 does, or in [-1, 1], as "
        "others do (%(default)s)",
    )
    add(
        "--workers",
        type=_positive,
        default=os.cpu_count(),
        help="threads (%(default)s)",
    )
    return parser


def _encoder(
    source: conversion.Source, options: argparse.Namespace
) -> tuple[latents.Coder, conversion.Source]:
    """The VAE, and what becomes of a split."""
    height, width, channels = source.shape
    coder = latents.Coder(options.encode, options.pixels)
    if source.dtype != np.uint8:
        raise ValueError(
            f"--encode takes 8-bit pictures, and {options.source} holds {source.dtype}."
        )
    coder.check(height, width, channels)
    small = height // coder.factor, width // coder.factor, coder.channels
    encoded = source._replace(shape=small, dtype=np.dtype(np.float32), is_moments=True)
    return coder, encoded


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1")
    return int(text)


def _reader(path: str, found: measure.Found, options: argparse.Namespace) -> Any:
    """The reader of the source, with its settings."""
    settings = dict(found.settings)
    if options.heldout is not None:
        settings["heldout"] = options.heldout
    if found.reader == "images":
        assert found.sizes is not None
        sizes = sorted({tuple(size) for size in found.sizes.tolist()})
        if not options.resolution and (len(sizes) != 1 or len(set(sizes[0])) != 1):
            (w, h), (w2, h2) = sizes[0], sizes[-1]
            raise ValueError(
                f"{path} has pictures of {w} x {h} to {w2} x {h2} pixels: say with "
                "--resolution how large they shall be."
            )
        settings["resolution"] = options.resolution or sizes[0][0]
        settings["channels"] = options.channels or settings["channels"]
        settings["fit"] = options.fit
    elif options.resolution or options.channels:
        raise ValueError(
            f"--resolution and --channels resize pictures, and {path} holds arrays or "
            "images of one size."
        )
    return READERS[found.reader](**settings)


def _data(
    path: str, reader: Reader, splits: tuple[str, str], on_bad: str = "stop"
) -> data_room.DataConfig:
    one = (0.0,), (1.0,)
    return data_room.DataConfig(path, "", *splits, *one, reader, on_bad=on_bad)


def _sources(
    path: str,
    reader: Any,
    found: measure.Found,
    options: argparse.Namespace,
    is_zip: bool,
) -> list[conversion.Source]:
    """The splits to convert: of a ZIP, all examples in one."""
    splits = list(found.splits)
    if is_zip:
        if splits != ["train", "heldout"]:
            raise ValueError(
                f"{path} has the splits {' and '.join(splits)}, and a ZIP holds one: "
                f"convert {os.path.join(path, splits[0])} alone, or to a folder."
            )
        splits = ["all"]
    elif getattr(reader, "heldout", 1.0) == 0 and splits == ["train", "heldout"]:
        splits = ["train"]
    classes = _classes(path, reader, found, splits, options)
    sources = []
    for split in splits:
        data = _data(path, reader, found.splits, options.on_bad)
        wanted = None if classes else 0
        if isinstance(reader, Original):
            rows = reader.opened(data, split, wanted, as_stored=True)
        else:
            rows = reader.open(data, split, wanted)
        is_moments = (
            isinstance(reader, Original)
            and rows.shape[2] == 8
            and rows.dtype.kind == "f"
        )
        names = getattr(rows, "classes", None)
        source = conversion.Source(
            split, rows, rows.shape, rows.dtype, is_moments, names, classes
        )
        sources.append(source)
    return sources


def _classes(
    path: str,
    reader: Any,
    found: measure.Found,
    splits: list[str],
    options: argparse.Namespace,
) -> int:
    """How many classes there are; 0: the data have no labels, or too few to train on."""
    if options.labels == "none":
        return 0
    highest = []
    for split in splits:
        try:
            # Bad labels are met when the split is opened for good.
            data = _data(path, reader, found.splits, on_bad="skip")
            rows = reader.open(data, split, None)
        except ValueError:
            return 0
        names = getattr(rows, "classes", None) or ()
        if len(names) > len(rows) / 2:  # captions, or numbers of the pictures
            return 0
        highest += [int(rows.labels.max()), len(names) - 1]
    return max(highest) + 1


if __name__ == "__main__":
    cli.run(main)
