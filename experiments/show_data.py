"""Look at a config's data before training on them, on one page.

    python experiments/show_data.py --config=mine.py --out=data.html

The page shows examples of each class as the network gets them, cropped, normalized and
augmented, the distribution of their values, the counts of classes, and what was skipped.
It warns where data.raw_mean and data.raw_std are not those of the data.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from edm_jax import data, diffusion, files
from edm_jax.data import augment, measure, selection
from edm_jax.data.readers import Rows
from edm_jax.report import data_page
from edm_jax.train.config import RunConfig
from experiments import cli

Reported = Callable[[str, int, int], None]
CLASSES, EXAMPLES = 24, 14  # shown
BATCHES = 400  # read to find them, at most


def main() -> None:
    """Parse the command line, read and write."""
    parser = cli.config_parser(__doc__)
    parser.add_argument("--out", type=files.user_path, default=Path("data.html"))
    options, config = cli.parse_config(parser, None)
    cli.prepare_jax()
    with cli.progress_bar(reads=config) as bar:
        page = look(config, cli.report_to(bar))
    files.write_text(options.out, data_page.render(page))
    for sentence in page.warnings:
        cli.say(f"Warning: {sentence}")
    cli.say(f"Wrote {options.out}.")


def look(config: RunConfig, report: Reported) -> data_page.DataPage:
    """Reads what the page shows."""
    data.prepare(config.data)
    splits, skipped, opened = [], [], []
    for name in (config.data.train_split, config.data.heldout_split):
        training = name == config.data.train_split
        rows, _ = selection.open_rows(
            config.data, name, config.network.num_classes, training
        )
        skipped += getattr(rows, "skipped", [])
        m = measure.measure(rows, lambda done, total, n=name: report(n, done, total))
        if m.bad and config.data.on_bad == "stop":
            raise ValueError(
                f"{m.bad[min(m.bad)]} It stops training, too; data.on_bad=skip would "
                "leave it out."
            )
        skipped += m.bad.values()
        shared = {f.name for f in dataclasses.fields(data_page.Split)} - {"name"}
        values = {field: getattr(m, field) for field in shared}
        splits.append(data_page.Split(name, **values))
        opened.append(rows)
    names = list(getattr(opened[0], "classes", None) or ())
    return data_page.DataPage(
        title=f"Data of {Path(config.data.name).name or config.data.name}",
        facts=_facts(config, opened[0]),
        warnings=_warnings(config, splits[0]),
        splits=splits,
        classes=_examples(config, names, report),
        class_names=names,
        skipped=skipped,
        sigma_data=config.loss.sigma_data,
    )


def _facts(config: RunConfig, rows: Rows) -> dict[str, str]:
    reader = config.data.reader
    print_of = data.fingerprint(config.data)
    listed = ", ".join(f"{key} {value}" for key, value in print_of.items())
    return {
        "data.name": config.data.name,
        "data.reader": repr(reader),
        "fingerprint": listed,
        "images": f"{rows.shape}; the network takes {config.network.resolution} x "
        f"{config.network.resolution} x {config.network.channels}",
        "network.num_classes": str(config.network.num_classes),
        "data.augment": repr(config.data.augment),
    }


def _warnings(config: RunConfig, split: data_page.Split) -> list[str]:
    """Where the config's statistics are not those of the data."""
    mean, std = np.asarray(config.data.raw_mean), np.asarray(config.data.raw_std)
    found = []
    off = np.abs(np.asarray(split.mean) - mean) / std
    ratio = np.asarray(split.std) / std
    if off.max() > 0.2 or ratio.max() > 1.25 or ratio.min() < 0.8:
        measured = [tuple(float(f"{x:.5g}") for x in each)
                    for each in (split.mean, split.std)]  # fmt: skip
        found.append(
            f"data.raw_mean={config.data.raw_mean} and data.raw_std="
            f"{config.data.raw_std} are not what was measured: {measured[0]} and "
            f"{measured[1]}."
        )
    used = len(set(config.data.classes)) or config.network.num_classes
    empty = used - int((split.counts > 0).sum())
    if config.network.num_classes and empty and split.read == split.count:
        found.append(f"{empty} of the network's classes have no training examples.")
    return found


def _examples(
    config: RunConfig, names: list[str], report: Reported
) -> list[data_page.Class]:
    """The first training images of each class, augmented as in training."""
    count = max(1, config.network.num_classes)
    wanted = {label: [] for label in range(min(count, CLASSES))}
    batches = data.train_batches(
        config.data,
        batch_size=256,
        seed=config.seed,
        num_classes=config.network.num_classes,
    )
    for step in range(BATCHES):
        batch = next(batches)
        keys = diffusion.example_keys(
            jax.random.key(config.seed), np.int32(step), batch["index"]
        )
        images, _ = augment.apply(config.data.augment, keys, batch["image"])
        for image, label in zip(np.asarray(images), batch["label"], strict=True):
            room = wanted.get(int(label))
            if room is not None and len(room) < EXAMPLES:
                room.append(image)
        full = sum(len(each) == EXAMPLES for each in wanted.values())
        report("examples", max(full, 1), len(wanted))
        if full == len(wanted):
            break
    names = names or [str(label) for label in range(count)]
    if not config.network.num_classes:
        names = ["all"]
    return [
        data_page.Class(names[label] if label < len(names) else str(label), np.stack(i))
        for label, i in wanted.items()
        if i
    ]


if __name__ == "__main__":
    cli.run(main)
