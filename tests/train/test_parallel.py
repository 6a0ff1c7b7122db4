"""However the step is spread over devices, its numbers are the same."""

import contextlib
import dataclasses
import functools

import jax
import numpy as np
import pytest

import configs
from edm_jax.cost import hlo
from edm_jax.train import parallel, trainer
from edm_jax.train.checkpoint import Checkpoints

BATCH, STEPS = 32, 20
# As small as a U-Net with dropout, attention and forced weight normalization gets.
TINY = {
    "network.resolution": "4",
    "network.channel_mult": "(1,)",
    "network.dropout": "0.1",
    "optimizer.batch_size": str(BATCH),
}
# {name: (devices, fields of `training`)}, all against one device and plain jit.
FORMS = {
    "2 devices, rematerialized": (2, {"remat": True}),
    "8 devices": (8, {}),
    "8 devices, 4 micro-batches": (8, {"microbatches": 4}),
    "pmap, 8 devices, 4 micro-batches": (8, {"parallel": "pmap", "microbatches": 4}),
    "state sharded over 8": (8, {"sharding": "state"}),
    "all sharded over 8, 4 micro-batches": (8, {"sharding": "full", "microbatches": 4}),
    "sharded over 4, twice": (8, {"sharding": "full", "shards": 4}),
}


def load(others=None, **training):
    fields = {f"training.{name}": str(value) for name, value in training.items()}
    path = f"{configs.letter_path('g')}:digits-tiny"
    return configs.load(path, TINY | (others or {}) | fields)


@functools.cache
def made_for(devices=8, **training):
    """The trainer: tests that step in one form compile it once."""
    return trainer.make_trainer(load(**training), jax.devices()[:devices])


def make_batch(step):
    rng = np.random.default_rng(step)
    image = rng.standard_normal((BATCH, 4, 4, 1)).astype(np.float32) / 2
    label = rng.integers(0, 10, BATCH).astype(np.int32)
    return {"image": image, "label": label, "index": np.arange(BATCH, dtype=np.int32)}


def run(devices, others=None, **training):
    """(metrics of every step, the last state as global arrays, its form)."""
    made = (
        trainer.make_trainer(load(others, **training), jax.devices()[:devices])
        if others
        else made_for(devices, **training)
    )
    state, metrics = made.initial_state(), []
    for step in range(STEPS):
        state, reported = made.step(state, make_batch(step))
        metrics.append(jax.tree.map(np.array, made.step.fetch(reported)))
    return metrics, made.step.global_arrays(state), made.step


@pytest.fixture(scope="module")
def one_device():
    metrics, state, _ = run(1)
    return metrics, jax.tree.map(np.array, state)


@pytest.fixture(scope="module", autouse=True)
def _everything_is_worth_sharding():
    """Otherwise no leaf would be sharded in a network this small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "_SMALLEST_SHARDED", 64)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_numbers_of_one_device(one_device, name):
    devices, training = FORMS[name]
    expected, last = one_device
    metrics, state, _ = run(devices, **training)
    losses, expected_losses = (
        [m["loss"] for m in each] for each in (metrics, expected)
    )
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert np.ptp(expected_losses) > 0.1
    for ours, theirs in zip(metrics, expected, strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
            ours,
            theirs,
        )
    for field in ("params", "emas", "opt_state"):
        trees = getattr(state, field), getattr(last, field)
        for w, v in zip(*map(jax.tree.leaves, trees), strict=True):
            np.testing.assert_allclose(w, v, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_run_resumes_on_4_of_8_devices_and_then_on_8_again(one_device, tmp_path):
    parts = {8: {"sharding": "full", "shards": 4}, 4: {"sharding": "state"}}
    state, losses = None, []
    for devices, stop in ((8, 3), (4, 7), (8, STEPS)):
        made = made_for(devices, **parts[devices])
        with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
            if state is None:
                state = made.initial_state()
            else:
                restored = checkpoints.restore(made.step.abstract(made.shapes))
                assert restored.step == len(losses)
                state = made.step.place(restored.state)
            for step in range(len(losses), stop):
                state, reported = made.step(state, make_batch(step))
                losses.append(float(made.step.fetch(reported)["loss"]))
            checkpoints.save(stop, made.step.global_arrays(state), {})
    expected, last = one_device
    np.testing.assert_allclose(losses, [m["loss"] for m in expected], rtol=1e-5)
    for w, v in zip(*map(jax.tree.leaves, (state.params, last.params)), strict=True):
        np.testing.assert_allclose(w, v, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_in_bfloat16_losses_are_those_of_one_device_to_a_thousandth():
    bfloat16 = {"network.compute_dtype": "bfloat16"}

    def losses(devices, **training):
        return [m["loss"] for m in run(devices, bfloat16, **training)[0]]

    # Every device rounds the gradient of its own rows.
    np.testing.assert_allclose(losses(2, parallel="pmap"), losses(1), rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sharding", "spread"),
    [
        ("none", set()),
        ("state", {"opt_state", "emas"}),
        ("full", {"opt_state", "emas", "params"}),
    ],
)
def test_sharded_state_takes_an_eighth_on_each_device(sharding, spread):
    made = made_for(sharding=sharding)
    state = made.initial_state()
    for field in ("params", "opt_state", "emas"):
        leaves = jax.tree.leaves(getattr(state, field))
        whole = sum(x.nbytes for x in leaves)
        here = sum(x.addressable_data(0).nbytes for x in leaves)
        ratio = whole / here
        assert ratio > 6 if field in spread else ratio == 1, field


@pytest.mark.slow
def test_each_copy_of_a_sharded_state_lies_on_neighbours():
    made = made_for(sharding="full", shards=4)
    weights = jax.tree.leaves(made.initial_state().params)
    spread = [x for x in weights if not x.is_fully_replicated]
    assert spread
    for x in spread:
        parts = {s.device.id: s.index for s in x.addressable_shards}
        assert all(parts[i] == parts[i + 4] for i in range(4))
        assert len({str(parts[i]) for i in range(4)}) == 4


def test_copies_are_of_devices_of_one_process():
    @dataclasses.dataclass(frozen=True)
    class Device:
        process_index: int
        id: int

    mixed = [Device(process, 2 * i + process) for i in range(2) for process in (1, 0)]
    mesh = parallel.make_mesh(mixed, 2)
    assert [{d.process_index for d in copy} for copy in mesh.devices] == [{0}, {1}]
    with pytest.raises(ValueError, match=r"shards=3 does not divide 4 devices"):
        parallel.make_mesh(mixed, 3)


@pytest.mark.slow
def test_between_copies_only_the_gradients_of_a_shard_are_exchanged():
    made, compiled = compiled_step(microbatches=4, sharding="full", shards=4)
    found = hlo.collectives(compiled.as_text())
    assert not any(c.in_loop for c in found)
    gradients = sum(4 * x.size for x in jax.tree.leaves(made.shapes.params))
    scattered = sum(c.bytes for c in found if c.kind == "reduce-scatter")
    assert 0.95 * gradients < scattered <= gradients
    # Beside them only leaves too small to shard.
    reduced = sum(c.bytes for c in found if c.kind == "all-reduce")
    assert gradients / 4 <= reduced < gradients / 4 + 0.05 * gradients


@pytest.mark.slow
def test_a_step_leaves_the_state_sharded_as_it_was():
    made = made_for(sharding="full", microbatches=4)
    state = made.initial_state()
    before = jax.tree.map(lambda x: x.sharding, state)
    state, _ = made.step(state, make_batch(0))
    assert jax.tree.map(lambda x: x.sharding, state) == before


# Wide enough for its weights to matter beside its activations.
WIDE = {
    "network.model_channels": "32",
    "network.compute_dtype": "bfloat16",
    "optimizer.batch_size": "128",
}


@functools.cache
def compiled_step(**training):
    """The step in bfloat16 on 8 devices, compiled but not run."""
    made = trainer.make_trainer(load(WIDE, **training))
    batch = trainer.abstract_batch(made.config)
    return made, made.step.lower(made.shapes, batch).compile()


@pytest.mark.slow
@pytest.mark.parametrize("microbatches", [1, 4])
def test_gradients_are_averaged_once_a_step_in_float32(microbatches):
    made, compiled = compiled_step(microbatches=microbatches)
    found = hlo.collectives(compiled.as_text())
    assert {c.kind for c in found} == {"all-reduce"}
    assert not any(c.in_loop for c in found)
    assert set().union(*(c.dtypes for c in found)) == {"f32"}
    gradients = sum(4 * x.size for x in jax.tree.leaves(made.shapes.params))
    assert sum(c.bytes for c in found) == pytest.approx(gradients, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["state", "full"])
def test_a_sharded_state_reaches_the_loss_in_no_loop(sharding):
    made, compiled = compiled_step(microbatches=4, sharding=sharding)
    found = hlo.collectives(compiled.as_text())
    assert not any(c.in_loop for c in found)
    reduced = {"all-reduce", "reduce-scatter"}
    assert not any("bf16" in c.dtypes for c in found if c.kind in reduced)
    gradients = sum(4 * x.size for x in jax.tree.leaves(made.shapes.params))
    scattered = sum(c.bytes for c in found if c.kind == "reduce-scatter")
    assert 0.95 * gradients < scattered <= gradients


@pytest.mark.slow
def test_a_step_takes_less_memory_the_more_is_sharded():
    def step_bytes(sharding):
        _, compiled = compiled_step(microbatches=4, sharding=sharding)
        analysis = compiled.memory_analysis()
        return analysis.argument_size_in_bytes + analysis.temp_size_in_bytes

    none, state, full = map(step_bytes, ("none", "state", "full"))
    assert full < 0.95 * state < 0.9 * none


@pytest.mark.slow
@pytest.mark.parametrize("form", ["jit", "pmap"])
def test_a_state_goes_to_the_host_and_back_to_the_bit(form):
    made = made_for(
        **({} if form == "jit" else {"parallel": "pmap", "microbatches": 4})
    )
    state, _ = made.step(made.initial_state(), make_batch(0))
    stored = jax.tree.map(np.array, made.step.global_arrays(state))
    placed = made.step.place(stored)
    again = made.step.global_arrays(placed)
    jax.tree.map(np.testing.assert_array_equal, stored, again)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), again)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), made.shapes)
    next_batch = make_batch(1)
    losses = [
        made.step.fetch(made.step(s, next_batch)[1]["loss"]) for s in (state, placed)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("devices", "parts", "sentence"),
    [
        (8, 1, "batch_size=12 does not divide evenly over 8 devices"),
        (2, 4, "multiple of 8"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(devices, parts, sentence):
    fields = TINY | {
        "optimizer.batch_size": "12",
        "training.microbatches": str(parts),
    }
    config = configs.load(f"{configs.letter_path('g')}:digits-tiny", fields)
    with pytest.raises(ValueError, match=sentence):
        trainer.make_trainer(config, jax.devices()[:devices])


@pytest.mark.slow
# Both topologies, plain and normalized weights: tracing this size takes long.
@pytest.mark.parametrize("letter", "ag")
def test_the_step_lowers_at_the_widths_of_imagenet512_s_without_allocating(letter):
    # One block of each width stands for three.
    fields = {"training.sharding": "full", "network.blocks_per_level": "1"}
    if letter == "g":
        # Micro-batches trace the loss twice: once is enough.
        fields["training.microbatches"] = "4"
    config = configs.load(f"{configs.letter_path(letter)}:imagenet512-s", fields)
    made = trainer.make_trainer(config)
    before = len(jax.live_arrays())
    lowered = made.step.lower(made.shapes, trainer.abstract_batch(config))
    assert len(jax.live_arrays()) <= before + 8  # a few constants
    state, metrics = lowered.out_info
    assert jax.tree.map(lambda x: x.shape, state) == jax.tree.map(
        lambda x: x.shape, made.shapes
    )
    assert metrics["loss"].shape == ()
