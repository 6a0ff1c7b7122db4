"""A run that trains an adapter: its steps, its base, and its files."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from driven_run import BATCH
from shared_steps import shared_steps
from trained_base import run, trained_base

import configs
from edm_jax import data, tree
from edm_jax.diffusion import Denoiser
from edm_jax.ema import snapshots
from edm_jax.evals.heldout import HeldOut
from edm_jax.models.adapters import ADAPTERS, Part, merge
from edm_jax.train import bases, step, trainer
from edm_jax.train.starts import Weights
from experiments import adapters, cli, export, sample, train

STEPS, MORE = 12, 6
TUNED = [
    f"--config.training.duration_mimg={MORE * BATCH / 1e6}",
    f"--config.training.snapshot_mimg={MORE * BATCH / 2e6}",
    f"--config.training.checkpoint_mimg={MORE * BATCH / 2e6}",
    "--config.optimizer.warmup.name=none",
    "--config.optimizer.schedule.name=constant",
    "--config.adapter.name=sphere",
    "--config.adapter.rank=2",
    "--config.adapter.dropout=0.25",
]


@pytest.fixture(scope="module", autouse=True)
def _steps_are_shared():
    with shared_steps():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A short run of config G."""
    return trained_base(tmp_path_factory.mktemp("base"), STEPS)


@pytest.fixture(scope="module")
def tuned(base):
    """An adapter of it, trained."""
    path = base.parent / "tuned"
    with pytest.MonkeyPatch.context() as patch:
        run(train, patch, f"--init_from={base}", f"--run={path}", *TUNED)
    return path


def flat(params):
    return {k: np.asarray(v) for k, v in tree.flatten(params).items()}


def records(run, kind):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [each for each in map(json.loads, lines) if each["kind"] == kind]


@pytest.mark.slow
def test_it_starts_at_the_base_and_its_files_hold_the_adapter_alone(base, tuned):
    config = cli.recorded_config(base)
    stored = snapshots.list_snapshots(base / "snapshots")
    last = next(s for s in stored if s.meta.filename.startswith("power-0.100") and
                s.meta.nimg == STEPS * BATCH)  # fmt: skip
    heldout = HeldOut(Denoiser(config.model, config.loss.sigma_data), config)
    before = heldout.loss(snapshots.read(last.path)[0])
    first, *_, end = records(tuned, "heldout")
    assert first["raw_loss_per_element"] == first["loss_per_element"] == before
    assert end["raw_loss_per_element"] != before
    [*_, written] = snapshots.list_snapshots(tuned / "snapshots")
    assert {name.rpartition("/")[2] for name in written.table} == {"down", "up"}
    assert written.meta.base["adapter"]["name"] == "sphere"
    assert written.meta.base["adapter"]["rank"] == 2
    assert written.meta.base["source"] == str(base)


@pytest.mark.slow
def test_the_effective_rate_is_that_of_the_merged_weights(base, tuned):
    config = bases.of_run(cli.recorded_config(tuned), tuned)
    undropped = dataclasses.replace(config.adapter, dropout=0.0)
    made = trainer.make_trainer(
        dataclasses.replace(config, adapter=undropped), jax.devices()[:1]
    )
    state = made.initial_state()
    weights = made.denoiser.model.weights
    batch = next(
        data.train_batches(config.data, batch_size=BATCH, seed=0, num_classes=10)
    )
    before = flat(weights(jax.tree.map(np.array, state.params)))
    state, metrics = made.step(state, batch)
    after = flat(weights(state.params))
    kernels = [name for name in before if name.endswith("/kernel")]
    squares = [
        sum(np.sum(np.square(np.float64(each[name]))) for name in kernels)
        for each in ({k: after[k] - before[k] for k in kernels}, before)
    ]
    found = float(metrics["effective_lr"]["all"])
    np.testing.assert_allclose(found, np.sqrt(squares[0] / squares[1]), rtol=1e-4)


@pytest.mark.slow
def test_a_run_that_stops_resumes_to_the_bit(base, tuned, monkeypatch):
    path = base.parent / "stopped"
    half = [each for each in TUNED if "duration" not in each]
    half.append(f"--config.training.duration_mimg={MORE * BATCH / 2e6}")
    run(train, monkeypatch, f"--init_from={base}", f"--run={path}", *half)
    run(train, monkeypatch, f"--init_from={base}", f"--run={path}", *TUNED,
        "--allow=training.duration_mimg")  # fmt: skip
    for name in ("power-0.050", "power-0.100"):
        file = f"snapshots/{name}-{MORE * BATCH:012}.safetensors"
        a, b = (flat(snapshots.read(each / file)[0]) for each in (tuned, path))
        for leaf in a:
            np.testing.assert_array_equal(a[leaf], b[leaf])


@pytest.mark.slow
def test_sampling_sums_adapters_and_refuses_other_weights(
    base, tuned, monkeypatch, tmp_path, capsys
):
    file = tuned / f"snapshots/power-0.100-{MORE * BATCH:012}.safetensors"
    options = sample._parser().parse_args(
        [f"--run={base}", f"--adapter={file}:0.5", f"--adapter={tuned}:-0.25"]
    )
    config = cli.recorded_config(base)
    found = adapters.applied(
        options, adapters.Network(cli.open_run(options)[0], config), False
    )
    stored = base / f"snapshots/power-0.100-{STEPS * BATCH:012}.safetensors"
    own, change = snapshots.read(stored)[0], snapshots.read(file)[0]
    adapter = ADAPTERS["sphere"](rank=2)
    wanted = merge(own, [Part(adapter, change, 0.5), Part(adapter, change, -0.25)])
    for name, leaf in flat(wanted).items():
        np.testing.assert_allclose(flat(found.params)[name], leaf, atol=1e-6)
    for text, why in (
        (f"--adapter={stored}", "holds no adapter"),
        (f"--adapter={file}:nan", "must be finite"),
        (f"--adapter={tmp_path / 'none'}", "there is no"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=why):
            run(sample, monkeypatch, f"--run={base}", text, "--seeds=0")
    with pytest.raises(ValueError, match="trained on other weights"):
        run(sample, monkeypatch, f"--run={base}", "--sigma_rel=0.05",
            f"--adapter={file}", "--seeds=0")  # fmt: skip


@pytest.mark.slow
def test_an_export_holds_the_merged_weights(base, tuned, monkeypatch, tmp_path):
    to = ["--to=safetensors", f"--out={tmp_path}", "--sigma_rel=0.1"]
    run(export, monkeypatch, f"--run={base}", f"--adapter={tuned}:0.5", *to)
    params, meta = snapshots.read(tmp_path / "weights.safetensors")
    stored = adapters.read(f"{tuned}:0.5")
    plain = bases.find(Weights(str(base), 0.1))
    own = tree.unflatten(plain.weights([plain.profile])[0])
    merged = flat(merge(own, [Part(stored.adapter, stored.params, 0.5)]))
    found = flat(params)
    assert found.keys() == merged.keys()
    assert all(np.array_equal(found[name], merged[name]) for name in merged)
    assert any(not np.array_equal(found[name], flat(own)[name]) for name in merged)
    assert meta.ancestry["method"] == "adapters" and meta.nimg == STEPS * BATCH
    with pytest.raises(ValueError, match=f"--run=BASE --adapter={tuned}"):
        run(export, monkeypatch, f"--run={tuned}", *to)


@pytest.mark.slow
def test_a_base_that_has_changed_is_refused(base, tuned, monkeypatch):
    """Last: it changes the base."""
    stored = base / f"snapshots/power-0.100-{STEPS * BATCH:012}.safetensors"
    params, meta = snapshots.read(stored)
    params["unet"]["out_conv"]["kernel"] = params["unet"]["out_conv"]["kernel"] * 1.01
    snapshots.write(stored.parent, params, meta)
    with pytest.raises(ValueError, match="has changed"):
        run(train, monkeypatch, f"--init_from={base}", f"--run={tuned}", *TUNED)
    config = bases.of_run(cli.recorded_config(tuned), tuned)
    with pytest.raises(ValueError, match="no longer those that it was trained on"):
        config.model.weights(config.model.init(0))


TINY = {
    "network.resolution": "4",
    "network.channel_mult": "(1,)",
    "optimizer.batch_size": "8",
    "optimizer.warmup.name": "none",
    "training.start.name": "weights",
    "training.start.source": "none",
    "adapter.name": "lora",
    "adapter.rank": "2",
    "adapter.dropout": "0.25",
}


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_devices_and_their_dropout_agree(parallel, one_device):
    found = stepped(2, parallel)
    for name, leaf in one_device.items():
        np.testing.assert_allclose(found[name], leaf, atol=2e-5, err_msg=name)


@pytest.fixture(scope="module")
def one_device():
    return stepped(1, "jit")


def stepped(devices, parallel):
    """The adapter after four steps."""
    path = f"{configs.letter_path('g')}:digits-tiny"
    config = configs.load(path, TINY | {"training.parallel": parallel})
    weights = config.model.network.init(0)
    config = config.with_base(lambda: weights)
    made = trainer.make_trainer(config, jax.devices()[:devices])
    state = made.initial_state()
    for index in range(4):
        rng = np.random.default_rng(index)
        image = rng.standard_normal((8, 4, 4, 1)).astype(np.float32) / 2
        label = rng.integers(0, 10, 8).astype(np.int32)
        rows = np.arange(8, dtype=np.int32)
        state, _ = made.step(state, {"image": image, "label": label, "index": rows})
    found: step.TrainState = made.step.global_arrays(state)
    return flat(found.params)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        ({"adapter.name": "lora"}, "training.start must"),
        ({**TINY, "training.sharding": "full"}, "adapter is small"),
        ({**TINY, "training.start.ema": "continue"}, "no average of it"),
        ({**TINY, "adapter.rank": "0"}, "rank"),
        ({**TINY, "adapter.init": "kaiming"}, "init"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides, why):
    with pytest.raises(ValueError, match=why):
        configs.load(f"{configs.letter_path('g')}:digits-tiny", overrides)


def test_targets_are_places_or_patterns_and_match_something():
    path = f"{configs.letter_path('g')}:digits-tiny"
    fields = {**TINY, "adapter.targets": "attention,unet/dec_*/conv_skip/*"}
    found = list(flat(configs.load(path, fields).model.shapes))
    assert {name.split("/")[-2] for name in found} == {"qkv", "proj", "conv_skip"}
    model = configs.load(path, {**TINY, "adapter.targets": "atention"}).model
    with pytest.raises(ValueError, match="Did you mean 'attention'"):
        model.shapes  # noqa: B018
