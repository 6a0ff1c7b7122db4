"""Runs of the smallest networks with random weights, and their exports."""

from tiny_unets import random_params, tiny_config

from edm_jax import ema, export
from edm_jax.diffusion import Denoiser
from edm_jax.ema import snapshots
from edm_jax.runs.directory import RunDir
from edm_jax.runs.schema import SCHEMA


def store(path, letter, dtype="float32"):
    """A run that no training has seen, and its only snapshot."""
    config = tiny_config(letter)
    run = RunDir(path, config)
    meta = ema.SnapshotMeta(ema.PowerProfile(0.1), 640, 16, run.config_hash, dtype)
    return run, snapshots.write(run.snapshots, random_params(letter), meta)


def bundle_of(path, letter, dtype="float32"):
    """(snapshot, what is exported of it)."""
    _, snapshot = store(path / "run", letter, dtype)
    fields = {"schema": SCHEMA, **tiny_config(letter).to_dict()}
    return snapshot, export.bundle(snapshot, fields)


def text_of(letter, found):
    """The text of the PyTorch module."""
    config = tiny_config(letter)
    denoiser = Denoiser(config.model, config.loss.sigma_data)
    return export.module(config.network, denoiser, found)


def write(place, letter):
    """The PyTorch module and its weights."""
    _, found = bundle_of(place, letter)
    (place / "torch_denoiser.py").write_text(text_of(letter, found))
    export.write_state_dict(place / "torch_denoiser.safetensors", found)
