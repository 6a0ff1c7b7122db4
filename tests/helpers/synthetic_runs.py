"""Run directories that look like finished ones, without any training."""

import copy
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

TITLES = {
    "a": "EDM baseline",
    "b": "+ Minor improvements",
    "c": "+ Architectural streamlining",
    "d": "+ Magnitude-preserving learned layers",
    "e": "+ Control effective learning rate",
    "f": "+ Remove group normalizations",
    "g": "+ Magnitude-preserving fixed-function layers",
}


BASE = {
    "letter": "a",
    "title": "EDM baseline",
    "workload": "digits",
    "seed": 0,
    "network": {"conv": "biased", "norm": "group", "attention": [32, 16, 8], "cat": 1},
    "loss": {"P_mean": -1.2, "P_std": 1.2, "uncertainty": False},
    "optimizer": {"batch_size": 4096, "alpha_ref": 1e-4, "t_ref": float("inf")},
    "ema": {"halflives_mimg": [0.07], "halflife_rampup": 0.05},
}


CHANGES = {
    "b": {
        "network.attention": [16, 8],
        "loss.P_mean": -0.4,
        "loss.P_std": 1.0,
        "loss.uncertainty": True,
        "optimizer.batch_size": 2048,
        "optimizer.alpha_ref": 2e-4,
        "ema.halflives_mimg": [],
    },
    "c": {"network.conv": "plain", "network.norm": "rms_group"},
    "d": {"network.conv": "mp", "optimizer.alpha_ref": 0.01},
    "e": {"optimizer.t_ref": 70000.0, "optimizer.forced_weight_norm": True},
    "f": {"network.norm": "none"},
    "g": {"network.cat": "mp"},
}


BEST = {"a": 0.3612, "b": 0.3411, "c": 0.3354, "d": 0.3123, "e": 0.2987, "f": 0.295}


BEST["g"] = 0.2894


OPTIMUM = dict(zip("abcdefg", (0.034, 0.09, 0.075, 0.15, 0.145, 0.1, 0.13)))


WEIGHTS = {"a": 2.1, "b": 2.4, "c": 2.8, "d": 6.5, "e": 1.0, "f": 1.001, "g": 0.999}


ACTIVATIONS = {"a": 3.0, "b": 3.5, "c": 4.2, "d": 1.1, "e": 1.02, "f": 1.3, "g": 1.01}


TOTAL = 1_500_000


def config_of(letter: str) -> dict:
    """The synthetic config of a letter: the one before it plus its changes."""
    config = copy.deepcopy(BASE)
    for step in "bcdefg"[: ord(letter) - ord("a")]:
        for name, value in CHANGES[step].items():
            section, field = name.split(".")
            config[section][field] = value
    config |= {"letter": letter, "title": TITLES[letter]}
    return config


def metrics_of(letter: str, rng: np.random.Generator) -> list[dict]:
    """Training, held-out and dynamics records that look like a run's."""
    records = []
    for step, nimg in enumerate(np.linspace(0, TOTAL, 61).astype(int).tolist()):
        t = nimg / TOTAL
        value = BEST[letter] + (1.1 - BEST[letter]) * np.exp(-7 * t**0.7)
        common = {"step": step, "nimg": nimg}
        noisy = float(value * np.exp(0.04 * rng.normal()))
        train = {"loss": 64 * noisy, "loss_per_element": noisy, "lr": 1e-3}
        train |= {"sigma": sigma_of(value), "effective_lr": rates_of(t)}
        records.append({"kind": "train", **common, **train})
        records.append({"kind": "heldout", **common, "loss_per_element": value})
        magnitudes = {}
        for kind, factors in (("activations", ACTIVATIONS), ("weights", WEIGHTS)):
            magnitudes[kind] = {}
            for index, group in enumerate(GROUPS):
                grown = 1 + (factors[letter] - 1) * t**0.8 * (1 - 0.12 * index)
                mean = (0.8 + 0.1 * index) * grown
                magnitudes[kind][group] = {"max": 1.4 * mean, "mean": mean}
        records.append({"kind": "dynamics", **common, **magnitudes})
    return records


GROUPS = ("enc_8x8", "dec_8x8", "enc_4x4", "dec_4x4", "enc_2x2", "dec_2x2")


def sigma_of(value: float) -> dict:
    """Loss and u by range of sigma; no image fell into the last."""
    losses = [value * (0.3 + 0.2 * i) for i in range(7)]
    below = [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, None]
    logvar = [*np.log(losses).tolist(), None]
    return {"below": below, "loss_per_element": [*losses, None], "logvar": logvar}


def rates_of(t: float) -> dict:
    """Effective learning rates by group."""
    names = ("all", "other", *GROUPS)
    return {n: 1e-3 * (1 + 0.2 * i) * np.exp(-2 * t) for i, n in enumerate(names)}


def evaluation_of(letter: str) -> dict:
    sweep = [
        {"sigma_rel": s, "loss": BEST[letter] * (1 + 1.5 * np.log(s / b) ** 2 / 60)}
        for b in [OPTIMUM[letter]]
        for s in sorted({*np.linspace(0.015, 0.25, 25).round(4).tolist(), b})
    ]
    return {
        "nimg": TOTAL,
        "untrained_loss": 1.0031,
        "raw_loss": BEST[letter] * 1.21,
        "sweep": sweep,
        "best": {"sigma_rel": OPTIMUM[letter], "loss": BEST[letter]},
        "traditional": [{"halflife_mimg": 0.07, "loss": 0.363}]
        if letter == "a"
        else [],
        "pixel_frechet": 11.37 - 10 * (0.37 - BEST[letter]),
        "pixel_frechet_floor": 1.934,
        "num_samples": 1000,
        "images_per_s": 512.3 - 20 * (ord(letter) - 97),
    }


def samples_png(rng: np.random.Generator) -> bytes:
    out = io.BytesIO()
    grid = np.zeros((90, 72), np.uint8)
    grid[::9] = grid[:, ::9] = 255
    Image.fromarray(grid | rng.integers(0, 200, grid.shape, np.uint8)).save(out, "PNG")
    return out.getvalue()


def write_run(study: Path, letter: str, name: str = "", **status) -> Path:
    """Write one finished run directory; keywords replace fields of its status."""
    run = study / (name or f"digits-{letter}-s0")
    run.mkdir(parents=True)
    rng = np.random.default_rng(ord(letter))
    records = metrics_of(letter, rng)
    state = {"state": "done", "stage": "evaluate", "nimg": TOTAL, "total_nimg": TOTAL}
    provenance = {"start_time": "2026-02-03T10:11:12Z", "params": 461_234 + ord(letter)}
    provenance |= {"jax": "0.10.2", "devices": ["cpu:0"], "git_commit": "0123abc"}
    files = {
        "config.json": config_of(letter),
        "provenance.json": provenance,
        "status.json": {**state, "images_per_s": 500.0, "message": "", **status},
        "evaluation.json": evaluation_of(letter),
    }
    for file, value in files.items():
        (run / file).write_text(json.dumps(value))
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    (run / "samples.png").write_bytes(samples_png(rng))
    return run


def write_seeds(study: Path, letter: str, seeds: int, name: str = "") -> list[Path]:
    """Write runs of one config that differ in seed, the held-out loss by a percent."""
    runs = []
    for seed in range(seeds):
        run = write_run(study, letter, f"{name or letter}-seed{seed}")
        rewrite(run / "config.json", seed=seed)
        by = 1 + 0.01 * seed
        path = run / "metrics.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for record in records:
            if record["kind"] == "heldout":
                record["loss_per_element"] *= by
        path.write_text("\n".join(map(json.dumps, records)) + "\n")
        evaluation = evaluation_of(letter)
        for point in [*evaluation["sweep"], evaluation["best"]]:
            point["loss"] *= by
        rewrite(run / "evaluation.json", **evaluation)
        runs.append(run)
    return runs


def rewrite(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
