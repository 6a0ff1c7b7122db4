"""The files of other packages, and what they should be averages of."""

import tarfile
from pathlib import Path

import numpy as np
import walk

from edm_jax import ema
from edm_jax.foreign import rebuild, series
from edm_jax.foreign.packages import Settings

GOLDEN = Path(__file__).parent.parent / "oracles" / "averaging_packages.tar.xz"
# What a user must say of each series.
SAID = {
    "ema_pytorch": Settings(tracked=(0.05, 0.28), update_every=1),
    "ema_pytorch_half": Settings(tracked=(0.05, 0.28), update_every=1),
    "ema_pytorch_every5": Settings(tracked=(0.05, 0.28), update_every=5),
    "fork": Settings(tracked=(0.05, 0.28), update_every=1),
    "ema": Settings(decay=0.98, update_after=10, update_every=2),
    "diffusers": Settings(),
    "timm": Settings(updates_per_epoch=40),
    "plain": Settings(),
    "safetensors": Settings(),
    "legacy": Settings(),
    "bfloat16": Settings(),
    "flax": Settings(),
}


def unpack(place):
    with tarfile.open(GOLDEN) as archive:
        archive.extractall(place, filter="data")
    return place


def truth(profile, t=walk.STEPS):
    """The average (SIZE,) of all weights up to step t, in float64."""
    share = (np.arange(t + 1) / t) ** (profile.gamma + 1)
    return np.diff(share) @ walk.weights()[1 : t + 1]


def relative(found, wanted):
    """The distance of an average from another, by its distance from the last weights."""
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted - walk.weights()[-1])


def row(layout):
    """A file's averaged weights in the order of the walk."""
    names = layout.averaged
    if layout.container == "flax":
        names = [
            f"params.{each}"
            for each in ("dense.kernel", "dense.bias", "norm.scale", "norm.bias")
        ]
    else:
        names = sorted(
            names, key=lambda name: (name[-3:] == "ied", name.split(".")[-2:])
        )
        names = [n for leaf in walk.SHAPES for n in names if n.endswith(leaf)] or names
    return np.concatenate([layout.read(name).ravel() for name in names]).astype(
        np.float64
    )


def rebuilt(place, name, out, lengths, **options):
    """Reconstructions of power functions: solutions and rows."""
    found = series.open_series(place / name, SAID[name])
    targets = [(None, ema.PowerProfile(s)) for s in lengths]
    job = rebuild.prepare(found, targets, 10)
    paths = rebuild.run(job, out, **options)
    rows = []
    for path, template in zip(paths, job.templates, strict=True):
        layout = series.read(path).averaging(template.source.layout.chosen)
        rows.append(row(layout))
    return job, paths, rows
