"""The menus on the parameters of real networks, and whole runs with a few entries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optimizer_options import optimizer_config

import configs
from edm_jax import tree
from edm_jax.optim import chain, leaves
from edm_jax.runs.directory import RunDir
from edm_jax.train import loop


def load(letter, **overrides):
    fields = {name.replace("__", "."): text for name, text in overrides.items()}
    return configs.load(f"{configs.letter_path(letter)}:digits-tiny", fields)


@pytest.mark.slow
@pytest.mark.parametrize("letter", "ag")
def test_every_leaf_of_a_network_is_of_the_kind_that_its_name_says(letter):
    params = load(letter).model.shapes
    kinds = jax.tree_util.tree_map_with_path(lambda path, _: leaves.kind(path), params)
    flat = tree.flatten(kinds, "/")
    assert {k for k, kind in flat.items() if kind == "frozen"} == {
        k for k in flat if k.endswith(("freqs", "phases"))
    }
    assert {k for k, kind in flat.items() if kind == "norms"} == {
        k for k in flat if "norm" in k.split("/")[-2]
    }
    assert {k for k, kind in flat.items() if kind == "gains"} == {
        k for k in flat if k.endswith("gain")
    }
    assert all("embedding" in k for k, kind in flat.items() if kind == "embeddings")
    assert flat["unet/out_conv/kernel"] == flat["unet/enc_8x8_conv/kernel"] == "weights"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["muon", "lamb", "adafactor", "lion"])
def test_an_optimizer_moves_every_trained_leaf_of_g_and_no_frozen_one(method):
    opt = optimizer_config(method={"name": method}, clip={"name": "agc"})
    tx, rng = chain.make_optimizer(opt, 1.0), np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype),
        load("g", network__channel_mult="(1,)").model.shapes,
    )
    trained = leaves.of_kinds(params, set(leaves.KINDS) - {"frozen"})
    grads = jax.tree.map(lambda w, moves: w * moves, params, trained)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    for update, moves in zip(*map(jax.tree.leaves, (updates, trained)), strict=True):
        assert np.isfinite(update).all()
        assert bool(np.abs(update).max() > 0) == moves


@pytest.mark.slow
@pytest.mark.parametrize(
    ("letter", "overrides"),
    [
        (
            "g",
            {
                "optimizer__method__name": "muon",
                "optimizer__clip__name": "agc",
                "optimizer__penalty__name": "weight_decay",
                "optimizer__schedule__name": "warmup_stable_decay",
            },
        ),
        (
            "c",
            {
                "optimizer__method__name": "schedule_free",
                "optimizer__clip__name": "zclip",
                "optimizer__clip__warmup": "5",
                "optimizer__noise__name": "annealed",
                "optimizer__noise__eta": "1e-9",
            },
        ),
        (
            "a",
            {
                "optimizer__schedule__name": "one_cycle",
                "optimizer__warmup__name": "none",
            },
        ),
    ],
)
def test_a_run_with_entries_of_the_menus_learns(tmp_path, letter, overrides):
    config = load(letter, network__channel_mult="(1,)", **overrides)
    run = RunDir(tmp_path / "run", config)
    loop.train(config, run)
    losses = [each["raw_loss_per_element"] for each in run.records("heldout")]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
