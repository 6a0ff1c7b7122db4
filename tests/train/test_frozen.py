"""Groups of parameters in the training step: what is frozen, and what that saves."""

import functools

import jax
import numpy as np
import pytest

import configs
from edm_jax import tree
from edm_jax.train import trainer
from edm_jax.train.checkpoint import Checkpoints

BATCH, STEPS = 32, 4
TINY = {
    "network.resolution": "4",
    "network.channel_mult": "(1,)",
    "network.dropout": "0.1",
    "optimizer.batch_size": str(BATCH),
}
TUNED = {
    "optimizer.groups.encoder,embedding.frozen": "True",
    "optimizer.groups.label.rate": "0.5",
    "optimizer.groups.label.schedule.name": "cosine",
    "optimizer.groups.rest.rate": "2",
}
FROZEN = ("unet/enc_", "unet/embedding/noise")


def load(others, **training):
    fields = {f"training.{name}": str(value) for name, value in training.items()}
    path = f"{configs.letter_path('g')}:digits-tiny"
    return configs.load(path, TINY | others | fields)


def make_batch(step):
    rng = np.random.default_rng(step)
    image = rng.standard_normal((BATCH, 4, 4, 1)).astype(np.float32) / 2
    label = rng.integers(0, 10, BATCH).astype(np.int32)
    return {"image": image, "label": label, "index": np.arange(BATCH, dtype=np.int32)}


@functools.cache
def made(devices=1, **training):
    return trainer.make_trainer(load(TUNED, **training), jax.devices()[:devices])


@functools.cache
def trained(devices=1, **training):
    """(the state before and after some steps, the metrics of the last)."""
    this = made(devices, **training)
    state = this.initial_state()
    before = jax.tree.map(np.array, this.step.global_arrays(state))
    metrics = None
    for step in range(STEPS):
        state, metrics = this.step(state, make_batch(step))
    after = jax.tree.map(np.array, this.step.global_arrays(state))
    return before, after, jax.tree.map(np.array, this.step.fetch(metrics))


def flat(params):
    return tree.flatten(params)


@pytest.mark.slow
def test_frozen_parts_move_by_exactly_zero_and_their_state_does_not_exist():
    before, after, metrics = trained()
    start, end = flat(before.params), flat(after.params)
    drawn = flat(made().denoiser.model.init(0))
    for name in start:
        frozen = name.startswith(FROZEN)
        for average in after.emas.values():
            moved = np.any(flat(average)[name] != start[name])
            assert moved == (not frozen and "features" not in name), name
        if frozen:
            np.testing.assert_array_equal(end[name], start[name], name)
            np.testing.assert_array_equal(end[name], drawn[name], name)
    stored = jax.tree_util.tree_leaves_with_path(after.opt_state)
    paths = [jax.tree_util.keystr(path) for path, _ in stored]
    assert paths and not any("enc_" in path or "noise0" in path for path in paths)
    kernels = sum("['kernel']" in path for path in paths)
    trainable = [n for n in start if n.endswith("kernel") and not n.startswith(FROZEN)]
    assert kernels == 3 * len(trainable)  # two moments, and the norm of each
    assert (
        "enc_4x4" not in metrics["effective_lr"] and metrics["effective_lr"]["all"] > 0
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "training"),
    [
        (8, {"sharding": "full", "microbatches": 2}),
        (2, {"parallel": "pmap"}),
    ],
    ids=str,
)
def test_groups_step_alike_however_the_step_is_spread(devices, training):
    """Each group's schedule too: it counts images."""
    _, expected, _ = trained()
    _, found, _ = trained(devices, **training)
    for name, weights in flat(expected.params).items():
        other = flat(found.params)[name]
        if name.startswith(FROZEN):
            np.testing.assert_array_equal(other, weights, name)
        else:
            np.testing.assert_allclose(other, weights, atol=2e-3, err_msg=name)


@pytest.mark.slow
def test_a_checkpoint_resumes_groups_to_the_bit(tmp_path):
    this = made()
    whole = trained()[1]
    state, checkpoints = this.initial_state(), Checkpoints(tmp_path)
    for step in range(STEPS // 2):
        state, _ = this.step(state, make_batch(step))
    checkpoints.save(STEPS // 2, this.step.global_arrays(state), {})
    checkpoints.close()
    again = Checkpoints(tmp_path)
    restored = again.restore(this.step.abstract(this.shapes))
    again.close()
    state = this.step.place(restored.state)
    for step in range(STEPS // 2, STEPS):
        state, _ = this.step(state, make_batch(step))
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def flops(*frozen, sharding="none"):
    """Of the step as it is traced, before XLA could remove anything."""
    fields = {f"optimizer.groups.{name}.frozen": "True" for name in frozen}
    fields |= {"optimizer.groups.rest.rate": "1"} if frozen else {}
    config = load(fields, sharding=sharding)
    this = trainer.make_trainer(config, jax.devices()[:1])
    batch = trainer.abstract_batch(config)
    return this.step.lower(this.shapes, batch).cost_analysis()["flops"]


@pytest.mark.slow
def test_what_only_frozen_parts_need_is_not_differentiated():
    """A backward pass is twice a forward one; of the head alone it is nearly none."""
    forward_and_back = flops()
    only_head = flops("unet", "conditioning", sharding="full")
    assert only_head < 0.4 * forward_and_back
    # The encoder's weights alone, if the embedding is frozen, too: nothing before
    # the decoder is differentiated.
    half = flops("encoder", "conditioning")
    assert only_head < half < 0.9 * forward_and_back
