"""Training handles values that are not finite as configured, and names the layer."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared_steps import cached, shared_steps

import configs
from edm_jax import data, diffusion
from edm_jax.ema import snapshots
from edm_jax.optim import weight_norm
from edm_jax.runs.directory import RunDir
from edm_jax.train import loop
from edm_jax.train import trainer as trainers
from edm_jax.train.checkpoint import Checkpoints
from edm_jax.train.diagnosis import Diagnosis

pytestmark = pytest.mark.slow


def make_trainer(config):
    """A trainer of one device."""
    return trainers.make_trainer(config, jax.devices()[:1])


BATCH, TOTAL, EVERY = 16, 12, 4
BAD = 11  # the step in which it happens
MARK = 7.0  # of a pixel, in the batch of that step; no digit has it
TINY = {
    "network.channel_mult": "(1,)",
    "training.duration_mimg": str(TOTAL * BATCH / 1e6),
    "training.log_mimg": str(EVERY * BATCH / 1e6),
    "training.checkpoint_mimg": str(EVERY * BATCH / 1e6),
    "training.snapshot_mimg": str(EVERY * BATCH / 1e6),
    "training.keep_checkpoints": "9",
    "evaluation.num_heldout": "40",
    "evaluation.batch_size": "40",
}


@pytest.fixture(scope="module", autouse=True)
def _steps_are_shared():
    with shared_steps():
        yield


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    here = {"data.data_dir": str(tmp_path_factory.mktemp("tfds"))}

    def load(**overrides):
        dotted = {name.replace("__", "."): value for name, value in overrides.items()}
        reference = f"{configs.letter_path('g')}:digits-tiny"
        return configs.load(reference, TINY | here | dotted)

    data.prepare(load().data)
    return load


def by_name(params):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def with_leaf(params, name, change):
    """The parameters, one leaf of them changed."""

    def maybe(path, leaf):
        here = jax.tree_util.keystr(path, simple=True, separator="/") == name
        return change(leaf) if here else leaf

    return jax.tree_util.tree_map_with_path(maybe, params)


# What happens in step BAD, by the name that it is to be given


class SpoiledStep:
    """The step, which finds a NaN in a kernel of its state."""

    def __init__(self, step, name):
        self._step, self._name = step, name

    def __getattr__(self, attribute):
        return getattr(self._step, attribute)

    def __call__(self, state, batch):
        if int(state.step) == BAD - 1:

            def spoil(leaf):
                where = (0,) * leaf.ndim
                return jax.device_put(leaf.at[where].set(jnp.nan), leaf.sharding)

            state = state._replace(params=with_leaf(state.params, self._name, spoil))
        return self._step(state, batch)


def spoil_kernel(patch, layer):
    shared = loop.make_trainer

    def spoiled(config):
        trainer = shared(config)
        step = SpoiledStep(trainer.step, f"{layer}/kernel")
        return dataclasses.replace(trainer, step=step)

    patch.setattr(loop, "make_trainer", spoiled)


@jax.custom_vjp
def spoil_gradient_where(leaf, bad):
    """The leaf; its gradient is NaN where bad."""
    del bad
    return leaf


spoil_gradient_where.defvjp(
    lambda leaf, bad: (leaf, bad),
    lambda bad, gradient: (jnp.where(bad, jnp.nan, gradient), None),
)


def spoil_batch(patch, change):
    """Changes the images of step BAD."""
    train_batches = data.train_batches

    class Spoiled:
        def __init__(self, *args, start_step, **kwargs):
            self.step = start_step
            self.batches = train_batches(*args, start_step=start_step, **kwargs)
            self.skipped = self.batches.skipped

        def __next__(self):
            batch, self.step = next(self.batches), self.step + 1
            bad = self.step == BAD
            return batch | {"image": change(batch["image"])} if bad else batch

    patch.setattr(data, "train_batches", Spoiled)


@functools.cache
def trainer_with_bad_gradient(layer):
    """`make_trainer`, with a loss whose gradient is spoiled in batches that hold MARK."""
    make_loss = diffusion.make_loss

    def spoiled(*args):
        loss = make_loss(*args)

        def with_spoiled_gradient(params, batch, keys):
            bad = jnp.any(batch["image"] == MARK)
            params = with_leaf(
                params, f"{layer}/kernel", lambda w: spoil_gradient_where(w, bad)
            )
            return loss(params, batch, keys)

        return with_spoiled_gradient

    def spoiled_trainer(config):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(diffusion, "make_loss", spoiled)
            return make_trainer(config)

    return cached(spoiled_trainer)


def spoil_gradient(patch, layer):
    def mark(image):
        marked = image.copy()
        marked[-1, 0, 0, 0] = MARK
        return marked

    patch.setattr(loop, "make_trainer", trainer_with_bad_gradient(layer))
    spoil_batch(patch, mark)


def spoil_image(patch):
    def spoil(image):
        spoiled = image.copy()
        spoiled[3, 2, 5] = np.inf
        return spoiled

    spoil_batch(patch, spoil)


QKV, CONV0 = "unet/dec_8x8_in0/attention/qkv", "unet/enc_8x8_block0/branch/conv0"
FAULTS = {
    f"kernel of {QKV}": lambda patch: spoil_kernel(patch, QKV),
    f"gradient of {CONV0}": lambda patch: spoil_gradient(patch, CONV0),
    "the batch's images": spoil_image,
}


def train(config, path, fault=None, allow=()):
    """Trains with a fault of FAULTS; returns the run."""
    run = RunDir(path, config, allow)
    with pytest.MonkeyPatch.context() as patch:
        if fault:
            FAULTS[fault](patch)
        loop.train(config, run)
    return run


def alerts_of(run):
    return [a for a in run.records("alert") if a["about"] == "nonfinite"]


def stored_steps(run):
    """The times of checkpoints, and of snapshots."""
    steps = sorted(int(place.name) for place in run.checkpoints.iterdir())
    refs = snapshots.list_snapshots(run.snapshots)
    return steps, sorted({ref.meta.nimg // BATCH for ref in refs})


def final_state(run, config):
    trainer = make_trainer(config)
    checkpoints = Checkpoints(run.checkpoints)
    found = checkpoints.restore(trainer.step.abstract(trainer.shapes))
    checkpoints.close()
    return found.step, jax.tree.map(np.asarray, found.state)


@pytest.fixture(scope="module")
def sound(load, tmp_path_factory):
    """A run without faults."""
    config = load(optimizer__nonfinite="skip")
    return train(config, tmp_path_factory.mktemp("sound"))


KERNEL, GRADIENT, IMAGES = FAULTS


def test_a_sound_run_alerts_to_nothing(sound):
    assert sound.records("alert") == []
    assert sound.records("train")[-1]["nonfinite"] == 0


# Each policy meets a fault of the weights and one of a batch alone.
@pytest.mark.parametrize(
    ("policy", "fault"),
    [("zero", KERNEL), ("skip", GRADIENT), ("zero", IMAGES), ("skip", KERNEL)],
)
def test_training_continues_and_names_the_layer(load, tmp_path, policy, fault):
    config = load(optimizer__nonfinite=policy)
    run = train(config, tmp_path, fault)
    assert run.status["state"] == "done"
    alerts = alerts_of(run)
    # A kernel stays as it is, but is told once.
    assert [alert["step"] for alert in alerts] == [BAD]
    done = {"zero": "zeroed", "skip": "update skipped"}[policy]
    for alert in alerts:
        assert alert["first_bad"] == fault and alert["policy"] == policy
        assert alert["nimg"] == alert["step"] * BATCH and alert["count"] > 0
        assert alert["message"] == (
            f"{alert['count']:,} gradient elements are not finite; "
            f"first bad place: {fault}; {done}"
        )
    if fault == GRADIENT:
        params = make_trainer(config).shapes.params
        assert alerts[0]["count"] == by_name(params)[f"{CONV0}/kernel"].size
    before, after = (r["nonfinite"] for r in run.records("train")[-2:])
    # The kernel's are counted in the last step, too.
    bad_steps = TOTAL - BAD + 1 if fault == KERNEL else 1
    assert before == 0 and after == bad_steps * alerts[0]["count"]


@pytest.mark.parametrize("fault", [KERNEL, IMAGES])
def test_stop_ends_training_and_it_resumes_from_the_last_checkpoint(
    load, sound, tmp_path, fault
):
    config = load(optimizer__nonfinite="stop")
    sentence = (
        rf"^[\d,]+ gradient elements are not finite; first bad place: {re.escape(fault)}, "
        rf"in step {BAD} of {tmp_path}\. The same command retries from the last "
        r"checkpoint; --config\.optimizer\.nonfinite=skip "
        r"--allow=optimizer\.nonfinite skips the step\.$"
    )
    with pytest.raises(loop.Nonfinite, match=sentence):
        train(config, tmp_path, fault)
    run = RunDir(tmp_path, config)
    (alert,) = alerts_of(run)
    assert alert["first_bad"] == fault and alert["policy"] == "stop"
    assert stored_steps(run) == ([4, 8], [4, 8])
    # As told, past what was wrong once: the rest is as if nothing had happened.
    skip = load(optimizer__nonfinite="skip")
    with pytest.raises(ValueError, match="--allow=optimizer.nonfinite"):
        RunDir(tmp_path, skip)
    run = train(skip, tmp_path, allow=["optimizer.nonfinite"])
    assert stored_steps(run) == ([4, 8, 12], [4, 8, 12])
    assert alerts_of(run) == [] and run.config_hash != sound.config_hash
    (step, state), (last, whole) = (final_state(r, skip) for r in (run, sound))
    assert step == last == TOTAL
    jax.tree.map(np.testing.assert_array_equal, state, whole)


def test_a_bad_step_in_which_a_checkpoint_is_due_is_not_saved(
    load, tmp_path, monkeypatch
):
    monkeypatch.setattr(f"{__name__}.BAD", 8)
    with pytest.raises(loop.Nonfinite, match="in step 8 of"):
        train(load(optimizer__nonfinite="stop"), tmp_path, GRADIENT)
    run = RunDir(tmp_path, load(optimizer__nonfinite="stop"))
    assert stored_steps(run)[0] == [4]


def test_a_bad_image_that_stays_is_passed_by_the_policy_that_was_allowed(
    load, tmp_path
):
    stop, skip = (load(optimizer__nonfinite=policy) for policy in ("stop", "skip"))
    for _ in range(2):  # the same command tries again, and fails again
        with pytest.raises(loop.Nonfinite):
            train(stop, tmp_path, IMAGES)
    run = train(skip, tmp_path, IMAGES, allow=["optimizer.nonfinite"])
    (alert,) = alerts_of(run)
    assert (alert["step"], alert["policy"]) == (BAD, "skip")
    assert run.status["state"] == "done" and stored_steps(run)[0] == [4, 8, 12]


# Which layer is named


@pytest.fixture(scope="module")
def trainer(load):
    return make_trainer(load())


@pytest.fixture(scope="module")
def batch(load):
    batches = data.train_batches(load().data, batch_size=BATCH, seed=0)
    return next(batches)


@pytest.fixture(scope="module")
def first_bad(trainer, batch):
    """Diagnoses a changed initial state with these leaves' gradients bad."""
    names = list(by_name(trainer.shapes.params))
    state = trainer.initial_state()

    def first_bad(change=lambda params: params, leaves=(), images=None, agree=None):
        diagnosis.agree = agree or (lambda value: [value])
        images = batch["image"] if images is None else images
        by_leaf = [int(name in leaves) for name in names]
        changed = state._replace(params=change(state.params))
        return diagnosis.first_bad(changed, batch | {"image": images}, 0, by_leaf)

    diagnosis = Diagnosis(trainer, lambda value: diagnosis.agree(value))
    return first_bad


def layers_in_order(trainer):
    """The layers with a kernel, each once."""
    order = trainer.denoiser.model.forward_order()
    return [name.removesuffix("/kernel") for name in order if name.endswith("/kernel")]


def test_layers_are_in_the_order_of_the_networks_figure(trainer):
    """Fig. 22, from the top: by hand for one level, of one block."""
    blocks = {
        "unet/embedding": ["noise0", "label"],
        "unet": ["enc_8x8_conv"],
        "unet/enc_8x8_block0": ["conv0", "emb_linear", "conv1"],
        "unet/dec_8x8_in0": ["conv0", "emb_linear", "conv1", "attention"],
        "unet/dec_8x8_in1": ["conv0", "emb_linear", "conv1"],
        "unet/dec_8x8_block0": ["conv0", "emb_linear", "conv1", "skip"],
        "unet/dec_8x8_block1": ["conv0", "emb_linear", "conv1", "skip"],
        "": ["out_conv", "logvar"],
    }
    parts = {
        "conv0": ["branch/conv0"],
        "conv1": ["branch/conv1"],
        "emb_linear": ["branch/emb_linear"],
        "attention": ["attention/qkv", "attention/proj"],
        "skip": ["conv_skip"],
        "out_conv": ["unet/out_conv"],
    }
    expected = [
        f"{block}/{part}".lstrip("/")
        for block, names in blocks.items()
        for name in names
        for part in parts.get(name, [name])
    ]
    assert layers_in_order(trainer) == expected


def test_every_kernel_that_is_not_finite_is_named(trainer, first_bad):
    layers = layers_in_order(trainer)
    for value in (np.nan, np.inf):

        def spoil(leaf, value=value):
            return leaf.at[(-1,) * leaf.ndim].set(value)

        for layer in layers:
            name = f"{layer}/kernel"
            said = first_bad(lambda p, name=name: with_leaf(p, name, spoil))
            assert said == f"kernel of {layer}"


def test_the_first_of_two_bad_kernels_is_named(trainer, first_bad):
    layers = layers_in_order(trainer)
    for seed in range(10):
        pair = np.sort(np.random.default_rng(seed).choice(len(layers), 2, False))

        def spoil(params, pair=pair):
            for place in reversed(pair):
                name = f"{layers[place]}/kernel"
                params = with_leaf(params, name, lambda w: w * jnp.nan)
            return params

        assert first_bad(spoil) == f"kernel of {layers[pair[0]]}"


@pytest.mark.parametrize(
    "layer", ["unet/enc_8x8_block0/branch/emb_linear", "unet/out_conv"]
)
def test_a_layer_that_overflows_is_named_by_its_output(first_bad, layer):
    def explode(params):
        return with_leaf(params, f"{layer}/gain", lambda gain: gain + 3e38)

    assert first_bad(explode) == f"output of {layer}"


def test_if_only_gradients_are_bad_the_last_layer_is_named(trainer, first_bad):
    layers = layers_in_order(trainer)
    for place, layer in enumerate(layers):
        assert first_bad(leaves={f"{layer}/kernel"}) == f"gradient of {layer}"
        up_to = {f"{name}/kernel" for name in layers[: place + 1]}
        assert first_bad(leaves=up_to) == f"gradient of {layer}"
    name = "unet/out_conv/gain"
    assert first_bad(leaves={name}) == "gradient of unet/out_conv"


def test_images_are_named_before_what_they_spoil(batch, first_bad):
    images = batch["image"].copy()
    images[-1, -1, -1, -1] = np.nan
    spoil = {"change": lambda params: jax.tree.map(lambda x: x * jnp.nan, params)}
    assert first_bad(images=images) == "the batch's images"
    assert first_bad(images=images, **spoil) == "the batch's images"


def test_another_process_may_have_met_it_first(first_bad):
    leaves = {"unet/out_conv/kernel"}
    assert first_bad(leaves=leaves) == "gradient of unet/out_conv"
    said = first_bad(leaves=leaves, agree=lambda value: [value, -1.0])
    assert said == "the batch's images"
    said = first_bad(leaves=leaves, agree=lambda value: [value, 4.0])
    assert said.endswith(" of unet/embedding/noise0")


def test_a_gradient_that_only_its_scale_made_infinite_has_a_name_too(first_bad):
    """Dividing by a loss_scale below 1 overflows, although every leaf was finite."""
    assert first_bad() == "gradient after loss_scale is divided out"


def test_a_loss_scale_that_overflows_float16_is_survived_and_named(load, tmp_path):
    config = load(
        network__compute_dtype="float16",
        optimizer__loss_scale="1e8",
        optimizer__nonfinite="skip",
    )
    run = train(config, tmp_path)
    alerts = alerts_of(run)
    # 65504 is the largest number of float16: the last layer is the first to exceed it.
    assert {alert["first_bad"] for alert in alerts} == {"gradient of unet/out_conv"}
    assert [alert["step"] for alert in alerts] == [1]  # all steps are one stretch
    step, state = final_state(run, config)
    # Nothing but the normalization has moved them.
    before = weight_norm.project(make_trainer(config).initial_state().params)
    assert step == TOTAL
    for old, new in zip(*map(jax.tree.leaves, (before, state.params)), strict=True):
        np.testing.assert_allclose(old, new, rtol=1e-6)
