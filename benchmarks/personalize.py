"""A digit taught from five pictures: python benchmarks/personalize.py --base=runs/digits-without-3.

The base is config G trained without class 3:

    python experiments/train.py --config=configs/config_g.py:digits \\
        --config.data.classes=0,1,2,4,5,6,7,8,9 --run=runs/digits-without-3

personalize.py teaches it class 3 from five digits, other ones for each seed, with all
weights or an adapter, with and without prior preservation. Prints a table: how often a
support vector machine, trained on the real digits, reads a sample of class 3 as a 3, how
often it reads the other classes' samples right, and their held-out loss, the base first.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import svm

from edm_jax import data, files
from edm_jax.evals import evaluation
from edm_jax.evals.generation import Generator
from edm_jax.evals.heldout import HeldOut
from experiments import cli, guides, personalize

TAUGHT, PICTURES, SAMPLES = 3, 5, 100


def main() -> None:
    """Parse the command line, run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="runs/digits-without-3")
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--runs", type=Path, default=Path("runs/personalize-digits"))
    options = parser.parse_args()
    cli.prepare_jax()
    base = guides.Network(*_open(options.base))
    every = dataclasses.replace(base.config.data, classes=())
    real = data.load_split(every, "train", num_classes=10)
    reader = svm.SVC().fit(_rows(real["image"]), real["label"])
    test = data.load_split(every, "test", num_classes=10)
    print(f"The classifier reads {reader.score(_rows(test['image']), test['label']):.1%} "
          "of real test digits right.")  # fmt: skip
    print("| trained | prior | seed | samples of 3 read as 3 | others read right | loss of "
          "others | loss of 3 | nearest picture |")  # fmt: skip
    print("|-|-|-|-|-|-|-|-|")
    _tell("base", "", "", _measure(base, base.config, reader))
    for seed in cli.seed_list(options.seeds):
        pictures = options.runs / f"pictures-{seed}.npz"
        rows = np.flatnonzero(real["label"] == TAUGHT)
        chosen = np.random.default_rng(seed).choice(rows, PICTURES, replace=False)
        options.runs.mkdir(parents=True, exist_ok=True)
        np.savez(pictures, image=data.denormalize(every, real["image"][chosen]))
        for prior in (1, 0):
            for kind in ("all weights", "lora"):
                name = f"{kind.split()[0]}-prior{prior}-seed{seed}"
                run = options.runs / name
                if not (run / "personalize.json").exists():
                    _teach(options.base, pictures, run, kind, prior, seed)
                found = _measure(guides.Network(*_open(run)), base.config, reader)
                nearest = files.read_json(run / "personalize.json")["nearest"]
                _tell(kind, str(prior), str(seed), [*found, nearest])


def _open(run: Any) -> tuple[Any, Any]:
    return cli.open_run(argparse.Namespace(run=str(run), config=""))


def _teach(base: str, pictures: Path, run: Path, kind: str, prior: int, seed: int):
    sys.argv = [
        "personalize.py",
        f"--base={base}",
        f"--images={pictures}",
        f"--class={TAUGHT}",
        f"--prior={prior}",
        f"--run={run}",
        f"--config.seed={seed}",
        "--config.training.evaluate_mimg=inf",
        *(["--lora"] if kind == "lora" else []),
    ]
    personalize.main()


def _measure(network: guides.Network, of: Any, reader: svm.SVC) -> list[float]:
    """Accuracies of samples, and held-out losses on the real digits."""
    trained, config = guides.trained(network, None, False), network.config
    generate = Generator(trained.denoiser, evaluation.recipe(config), SAMPLES)
    others = [k for k in range(10) if k != TAUGHT]
    labels = np.array([TAUGHT] * SAMPLES + [others[i % 9] for i in range(SAMPLES)])
    images = generate(trained.params, range(2 * SAMPLES), labels)
    right = reader.predict(_rows(images)) == labels
    losses = []
    for classes in (tuple(others), (TAUGHT,)):
        chosen = dataclasses.replace(of.data, classes=classes)
        held = HeldOut(trained.denoiser, dataclasses.replace(of, data=chosen))
        losses.append(held.loss(trained.params))
    return [right[:SAMPLES].mean(), right[SAMPLES:].mean(), *losses]


def _rows(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


def _tell(kind: str, prior: str, seed: str, found: list[float]) -> None:
    shares = [f"{each:.0%}" for each in found[:2]]
    numbers = [f"{each:.3f}" for each in found[2:]]
    print(f"| {' | '.join([kind, prior, seed, *shares, *numbers])} |", flush=True)


if __name__ == "__main__":
    cli.run(main)
