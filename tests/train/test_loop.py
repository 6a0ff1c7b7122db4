"""A whole run at digits-tiny: resume to the bit, probes, magnitudes and evaluation."""

import json
import os
import signal
import statistics
import time
import types

import jax
import numpy as np
import pytest
from PIL import Image
from shared_steps import shared_steps

import configs
from edm_jax import data, diffusion, ema
from edm_jax.cost import averages
from edm_jax.ema import plan, posthoc, snapshots
from edm_jax.evals import dynamics, evaluation, frechet, sweeps
from edm_jax.evals.evaluators import PixelFrechet
from edm_jax.evals.generation import Generator
from edm_jax.evals.heldout import HeldOut
from edm_jax.models.build import count_params
from edm_jax.optim import weight_norm
from edm_jax.runs.directory import RunDir
from edm_jax.studies.task import is_done
from edm_jax.train import loop
from edm_jax.train.checkpoint import Checkpoints
from edm_jax.train.trainer import make_trainer

BATCH, TOTAL = 16, 30
# One level, so that a step compiles in seconds; 30 steps, with a line of the log every
# 5, snapshots every 10, probes every 15.
TINY = {
    "network.channel_mult": "(1,)",
    "network.dropout": "0.1",
    "training.duration_mimg": "0.00048",
    "training.probe_mimg": "0.00024",
    "evaluation.num_heldout": "40",
    "evaluation.num_sigmas": "1",
    "evaluation.batch_size": "40",
    "evaluation.num_samples": "12",
    "evaluation.num_steps": "3",
    "evaluation.sigma_rels": "(0.05, 0.08, 0.1, 0.12)",
}


@pytest.fixture(scope="module", autouse=True)
def _steps_are_shared():
    with shared_steps():
        yield


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")

    def load(letter="g", **overrides):
        dotted = {name.replace("__", "."): value for name, value in overrides.items()}
        here = {"data.data_dir": str(data_dir)}
        return configs.load(
            f"{configs.letter_path(letter)}:digits-tiny", TINY | here | dotted
        )

    data.prepare(load().data)
    return load


class Finished(types.SimpleNamespace):
    """A run directory, its config, and what its training reported."""

    def metrics(self):
        """The lines of frechet.jsonl without times."""
        lines = (self.run.path / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        return [record for record in records if record["kind"] != "speed"]

    def final_state(self):
        """Every stored array, by name."""
        trainer = make_trainer(self.config)
        checkpoints = Checkpoints(self.run.checkpoints)
        found = checkpoints.restore(trainer.step.abstract(trainer.shapes))
        checkpoints.close()
        return jax.tree.map(np.asarray, found.state)


def train(config, path):
    run, reports = RunDir(path, config), []
    loop.train(config, run, lambda *report: reports.append(report))
    return Finished(run=run, config=config, reports=reports)


@pytest.fixture(scope="module")
def whole(load, tmp_path_factory):
    """Config G, trained without interruption."""
    return train(load(), tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def interrupted(load, tmp_path_factory):
    """The same run, stopped by SIGINT in step 18, within a log interval, and resumed."""
    config, path = load(), tmp_path_factory.mktemp("interrupted")
    run = RunDir(path, config)

    def stop(nimg, total, rate):
        if nimg == 17 * BATCH:  # reported while step 18 is under way
            signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(loop.Preempted, match=f"saved at {18 * BATCH} images"):
        loop.train(config, run, stop)
    assert signal.getsignal(signal.SIGINT) is handler
    status, snapshot_count = run.status, len(list(run.snapshots.iterdir()))
    resumed = train(config, path)
    resumed.status_between, resumed.snapshots_between = status, snapshot_count
    return resumed


@pytest.fixture(scope="module")
def evaluated(whole):
    reports = []
    again = {"--metric": PixelFrechet()}  # though the config's evaluators measure it
    result = evaluation.evaluate(
        whole.config, whole.run, lambda *report: reports.append(report), again
    )
    return types.SimpleNamespace(result=result, reports=reports)


def assert_same_weights(one, other):
    """Compares the last checkpoint and every snapshot bit for bit."""
    states = one.final_state(), other.final_state()
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(states[0]),
        jax.tree.leaves(states[1]),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b, err_msg=str(path))
    stored = [snapshots.list_snapshots(each.run.snapshots) for each in (one, other)]
    # Their bytes differ: safetensors writes a header in no particular order.
    for a, b in zip(*stored, strict=True):
        assert a.path.name == b.path.name
        arrays = [snapshots.flatten(snapshots.read(ref.path)[0]) for ref in (a, b)]
        for name in arrays[0] | arrays[1]:
            np.testing.assert_array_equal(arrays[0][name], arrays[1][name])


@pytest.mark.slow
def test_interrupted_training_saves_and_says_so(interrupted):
    status = interrupted.status_between
    assert status["state"] == "preempted" and status["stage"] == "train"
    assert status["nimg"] == 18 * BATCH and status["total_nimg"] == TOTAL * BATCH
    assert interrupted.snapshots_between == 2
    # Resumed there: nothing before is trained again.
    assert interrupted.reports[1][0] == 19 * BATCH


@pytest.mark.slow
def test_interrupted_and_resumed_training_is_the_uninterrupted_to_the_bit(
    whole, interrupted
):
    assert_same_weights(whole, interrupted)


@pytest.mark.slow
def test_interrupted_and_resumed_training_logs_the_same_metrics(whole, interrupted):
    assert whole.metrics() == interrupted.metrics()


@pytest.mark.slow
def test_training_killed_after_a_checkpoint_repeats_itself_to_the_bit(
    load, whole, tmp_path
):
    config = load(training__checkpoint_mimg="0.00016")  # every 10 steps

    def die(nimg, total, rate):
        if nimg == 17 * BATCH:
            while not (tmp_path / "checkpoints" / "10").is_dir():
                time.sleep(0.01)  # it is written in the background
            raise SystemError("killed")

    with pytest.raises(SystemError, match="killed"):
        loop.train(config, RunDir(tmp_path, config), die)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')
    resumed = train(config, tmp_path)
    assert resumed.reports[1][0] == 11 * BATCH
    assert_same_weights(whole, resumed)
    assert whole.metrics() == resumed.metrics()


@pytest.mark.slow
def test_training_under_pmap_resumes_to_the_bit(load, tmp_path):
    config = load(training__parallel="pmap")

    def stop(nimg, total, rate):
        if nimg == 10 * BATCH:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(loop.Preempted):
        loop.train(config, RunDir(tmp_path / "broken", config), stop)
    resumed = train(config, tmp_path / "broken")
    assert_same_weights(resumed, train(config, tmp_path / "whole"))


def test_training_a_finished_run_again_changes_nothing(whole):
    before = whole.metrics()
    reports = []
    loop.train(whole.config, whole.run, lambda *report: reports.append(report))
    assert reports == [] and whole.metrics() == before
    assert whole.run.status["state"] == "done"


def test_finished_run_says_done_and_how_much(whole):
    status = whole.run.status
    assert status["state"] == "done"
    assert status["nimg"] == status["total_nimg"] == TOTAL * BATCH
    # The first, at 0 images, comes before the step is compiled.
    assert [nimg for nimg, _, _ in whole.reports] == [
        step * BATCH for step in range(TOTAL + 1)
    ]
    provenance = json.loads((whole.run.path / "provenance.json").read_text())
    counted = count_params(whole.config.model.init(0))
    assert provenance["params"] == counted


def test_log_has_a_line_for_every_interval_with_the_rate_of_its_last_step(whole):
    records = whole.run.records("train")
    assert [r["step"] for r in records] == list(range(5, TOTAL + 1, 5))
    assert all(r["nimg"] == r["step"] * BATCH for r in records)
    assert all(r["nonfinite"] == 0 and r["grad_rms"] > 0 for r in records)
    opt = whole.config.optimizer
    for record in records:
        # Before the decay of t_ref = 250 steps: the ramp alone, images before the step.
        ramp = min((record["nimg"] - BATCH) / (opt.warmup.rampup_mimg * 1e6), 1)
        assert record["lr"] == pytest.approx(opt.alpha_ref * ramp, rel=1e-5)


def test_total_is_the_first_whole_step_that_reaches_the_duration(load):
    for duration, steps in [("0.00048", 30), ("0.000481", 31), ("0.000177", 12)]:
        config = load(training__duration_mimg=duration, optimizer__warmup__name="none")
        assert config.total_steps == steps


def test_every_tracked_profile_is_stored_at_every_interval(whole):
    refs = snapshots.list_snapshots(whole.run.snapshots)
    stored = {(ref.meta.nimg, ref.meta.profile.sigma_rel) for ref in refs}
    times = [step * BATCH for step in (10, 20, 30)]
    assert stored == {(nimg, sigma) for nimg in times for sigma in (0.05, 0.10)}
    assert len(refs) == 6
    assert {ref.meta.config_hash for ref in refs} == {whole.run.config_hash}
    assert {ref.meta.update_interval for ref in refs} == {BATCH}


def test_last_snapshots_hold_the_averages_of_the_checkpoint(whole):
    emas = whole.final_state().emas
    for name, profile in make_trainer(whole.config).profiles.items():
        (ref,) = [
            ref
            for ref in snapshots.list_snapshots(whole.run.snapshots)
            if ref.meta.nimg == TOTAL * BATCH and ref.meta.profile == profile
        ]
        stored = snapshots.flatten(snapshots.read(ref.path)[0])
        for leaf, array in snapshots.flatten(emas[name]).items():
            np.testing.assert_array_equal(stored[leaf], array)


@pytest.mark.slow
def test_averages_updated_seldom_are_brought_up_to_their_snapshots(load, tmp_path):
    seldom = train(load(ema__update_every="4"), tmp_path)
    state = seldom.final_state()
    latest = weight_norm.unprojected(state.params, state.opt_state)
    for sigma_rel in (0.05, 0.10):
        profile = ema.PowerProfile(sigma_rel)
        name = ema.SnapshotMeta(profile, TOTAL * BATCH, 1, "").filename
        stored = snapshots.flatten(snapshots.read(seldom.run.snapshots / name)[0])
        stale = snapshots.flatten(state.emas[f"power_{sigma_rel:g}"])
        # The last update was at step 28 of 30.
        weight = float(ema.power_weight(2, 30, profile.gamma))
        for leaf, now in snapshots.flatten(latest).items():
            expected = stale[leaf] + weight * (now - stale[leaf])
            np.testing.assert_allclose(stored[leaf], expected, rtol=1e-5, atol=1e-6)
        moved = "unet/out_conv/kernel"
        assert not np.allclose(stored[moved], stale[moved], rtol=1e-3)


@pytest.mark.slow
def test_a_run_keeps_the_snapshots_that_were_planned_resumed_or_not(load, tmp_path):
    fields = {
        "training__snapshot_mimg": str(2 * BATCH / 1e6),
        "training__checkpoint_mimg": str(6 * BATCH / 1e6),
        "ema__keep__name": "thinned",
        "ema__keep__count": "5",
        "ema__keep__shortest": "0.03",
        "ema__keep__longest": "0.2",
    }
    config = load(**fields)
    planned = averages.plan_of(config)
    assert 5 <= len(planned.times) < 15 == len(averages.plan_of(load(**fields | {
        "ema__keep__count": "15"})).times)  # fmt: skip
    assert averages.most_times(config) <= len(planned.times) + 3
    whole = train(config, tmp_path / "whole")
    with pytest.raises(loop.Preempted):
        run = RunDir(tmp_path / "resumed", config)

        def stop(nimg, total, rate):
            if nimg == 16 * BATCH:
                signal.raise_signal(signal.SIGINT)

        loop.train(config, run, stop)
    resumed = train(config, tmp_path / "resumed")
    found = [
        {s.meta.nimg for s in snapshots.list_snapshots(each.run.snapshots)}
        for each in (whole, resumed)
    ]
    assert found[0] == set(planned.times)
    assert max(each.error for each in plan.predict(planned, [0.03, 0.1, 0.2])) < 0.1
    # A signal makes a checkpoint of its own, where other snapshots may go.
    assert len(found[1]) <= len(found[0]) + 1 and max(found[1]) == TOTAL * BATCH


# Held-out loss


@pytest.fixture(scope="module")
def denoiser(load):
    config = load()
    return diffusion.Denoiser(config.model, config.loss.sigma_data)


@pytest.fixture(scope="module")
def heldout(load, denoiser):
    return HeldOut(denoiser, load())


def test_held_out_loss_is_the_same_twice_and_1_for_a_network_of_zeros(
    load, denoiser, heldout
):
    params = denoiser.model.init(0)  # its gains are zero
    loss = heldout.loss(params)
    assert heldout.loss(params) == loss
    other = HeldOut(denoiser, load())
    np.testing.assert_array_equal(other.noisy, heldout.noisy)
    assert loss == pytest.approx(1, abs=0.1)


def test_held_out_loss_falls_from_about_1_as_training_goes_on(whole):
    probes = whole.run.records("heldout")
    assert [probe["step"] for probe in probes] == [0, 15, 30]
    losses = [probe["loss_per_element"] for probe in probes]
    assert losses[0] == pytest.approx(1, abs=0.1)
    assert losses[0] > losses[1] > losses[2] and losses[2] < 0.9
    assert probes[0]["raw_loss_per_element"] == losses[0]
    assert probes[2]["raw_loss_per_element"] != losses[2]


def test_held_out_noise_levels_are_the_middles_of_equal_parts(heldout, load):
    config = load().evaluation
    ln_sigma = np.log(np.sort(heldout.sigma).astype(np.float64))
    # By the standard library's own inverse of the normal distribution.
    normal = statistics.NormalDist(config.P_mean, config.P_std)
    middles = [normal.inv_cdf((i + 0.5) / 40) for i in range(40)]
    np.testing.assert_allclose(ln_sigma, middles, atol=1e-5)


@pytest.mark.slow
def test_denoising_does_not_depend_on_how_the_rows_fall_into_batches(heldout, whole):
    params, denoise = whole.final_state().params, heldout.inference.denoise
    inputs = heldout.noisy, heldout.sigma, heldout.label
    together = denoise(params, *inputs)
    part = denoise(params, *(x[7:20] for x in inputs))
    np.testing.assert_allclose(part, together[7:20], rtol=1e-4, atol=1e-5)
    thrice = denoise(params, *(np.concatenate([x] * 3)[:100] for x in inputs))
    np.testing.assert_allclose(thrice[80:], together[:20], rtol=1e-4, atol=1e-5)


# Magnitudes


def test_magnitudes_of_a_hand_made_tree_are_max_and_mean_over_units():
    def kernel(*rms):
        """Two units of fan-in 9, of alternating sign: their RMS is their size."""
        signs = np.where(np.arange(9) % 2, 1.0, -1.0)
        return {"kernel": signs[:, None] * np.array(rms)}

    params = {
        "unet": {
            "enc_8x8_conv": kernel(100.0, 100.0),  # the input convolution: left out
            "enc_8x8_block0": {"conv0": kernel(1.0, 3.0), "linear": kernel(2.0)},
            "enc_8x8_block1": {"conv0": kernel(6.0), "gain": {"gain": np.float32(50)}},
            "enc_4x4_down": {"conv0": kernel(0.5)},
            "dec_4x4_in0": {"attention": {"qkv": kernel(4.0, 8.0)}},
            "embedding": {"noise0": kernel(70.0)},
            "out_conv": kernel(90.0),
        },
        "logvar": kernel(80.0),
    }
    assert dynamics.weight_magnitudes(params) == {
        "enc_8x8": {"max": 6.0, "mean": 3.0},
        "enc_4x4": {"max": 0.5, "mean": 0.5},
        "dec_4x4": {"max": 8.0, "mean": 6.0},
    }
    outputs = {
        "unet": {
            "enc_8x8_conv": {"output": (np.array([1e4]),)},
            "enc_8x8_block0": {
                "conv0": {"output": (np.array([4.0, 16.0]),)},
                "conv1": {"output": (np.array([36.0]),)},
            },
            "dec_8x8_block0": {"conv0": {"output": (np.array([0.25]),)}},
        }
    }
    assert dynamics.activation_magnitudes(outputs) == {
        "enc_8x8": {"max": 6.0, "mean": 4.0},
        "dec_8x8": {"max": 0.5, "mean": 0.5},
    }


def test_weights_of_config_g_stay_constant(whole):
    records = whole.run.records("dynamics")
    assert [record["step"] for record in records] == [0, 15, 30]
    for record in records:
        assert set(record["weights"]) == set(record["activations"])
        assert set(record["weights"]) == {"enc_8x8", "dec_8x8"}
        for place in record["weights"].values():
            assert place["max"] == pytest.approx(1, abs=3e-4)
            assert place["mean"] == pytest.approx(1, abs=3e-4)


@pytest.mark.slow
def test_weights_of_config_d_grow(load, tmp_path):
    records = train(load("d"), tmp_path).run.records("dynamics")
    for place in ("enc_8x8", "dec_8x8"):
        means = [record["weights"][place]["mean"] for record in records]
        assert 0.9 < means[0] < means[1] < means[2] and means[2] > 1.01 * means[0]


# Evaluation


def test_evaluation_reports_every_length_of_the_sweep(whole, evaluated):
    result = evaluated.result
    on_disk = json.loads((whole.run.path / "evaluation.json").read_text())
    assert on_disk == result
    sweep = result["sweep"]
    assert [point["sigma_rel"] for point in sweep] == [0.05, 0.08, 0.1, 0.12]
    assert result["best"] == min(sweep, key=lambda point: point["loss"])
    assert result["nimg"] == TOTAL * BATCH and result["traditional"] == []
    assert result["untrained_loss"] == pytest.approx(1, abs=0.1)
    assert result["best"]["loss"] < result["untrained_loss"]
    probe = whole.run.records("heldout")[-1]
    assert result["raw_loss"] == probe["raw_loss_per_element"]
    assert ("EMA lengths", 4, 4) in evaluated.reports
    assert ("images", 12, 12) in evaluated.reports


def test_stored_profiles_are_reported_exactly_and_others_with_their_error(
    whole, evaluated, heldout
):
    points = {point["sigma_rel"]: point for point in evaluated.result["sweep"]}
    for sigma_rel in (0.05, 0.10):
        point = points[sigma_rel]
        assert point["fit_error"] < 1e-7 and point["sum_abs"] == 1
        meta = snapshots.SnapshotMeta(
            ema.PowerProfile(sigma_rel), TOTAL * BATCH, BATCH, whole.run.config_hash
        )
        params, _ = snapshots.read(whole.run.snapshots / meta.filename)
        assert point["loss"] == pytest.approx(heldout.loss(params), rel=1e-6)
    for sigma_rel in (0.08, 0.12):
        assert points[sigma_rel]["fit_error"] > 1e-6
    # That of the last average is also what the run's own last probe found.
    probe = whole.run.records("heldout")[-1]
    assert points[0.10]["loss"] == pytest.approx(probe["loss_per_element"], rel=1e-5)


def test_distance_is_reported_beside_that_of_two_sets_of_real_images(evaluated):
    result = evaluated.result
    assert result["num_samples"] == 12
    assert 0 < result["pixel_frechet_floor"] < result["pixel_frechet"]


@pytest.mark.slow
def test_samples_come_from_the_best_length(load, whole, evaluated, denoiser):
    best = evaluated.result["best"]["sigma_rel"]
    params = posthoc.reconstruct(whole.run.snapshots, [best])[best].params
    recipe, size = evaluation.recipe(whole.config), whole.config.evaluation.batch_size
    images = Generator(denoiser, recipe, size)(params, range(12), np.arange(12) % 10)
    real = data.load_split(load().data, "test", 40)["image"]
    distance = frechet.pixel_frechet(images, real)
    assert evaluated.result["pixel_frechet"] == pytest.approx(distance, rel=1e-4)


@pytest.mark.slow
def test_evaluators_of_samples_measure_on_the_way_and_change_nothing(
    load, whole, denoiser, tmp_path
):
    done = train(load(training__evaluate_mimg="0.00024"), tmp_path)
    records = [r for r in done.metrics() if r["kind"] == "evaluation"]
    assert [record["nimg"] for record in records] == [240, 480]
    assert [r for r in done.metrics() if r not in records] == whole.metrics()
    meta = snapshots.SnapshotMeta(
        ema.PowerProfile(0.10), TOTAL * BATCH, BATCH, done.run.config_hash
    )
    params, _ = snapshots.read(done.run.snapshots / meta.filename)
    recipe, size = evaluation.recipe(done.config), done.config.evaluation.batch_size
    images = Generator(denoiser, recipe, size)(params, range(12), np.arange(12) % 10)
    real = data.load_split(load().data, "test", 40)["image"]
    wanted = frechet.pixel_frechet(images, real)
    assert records[-1]["pixel_frechet"] == pytest.approx(wanted, rel=1e-4)
    assert "untrained_loss" not in records[-1]  # which needs the run's snapshots
    pictures = sorted(path.name for path in tmp_path.glob("samples-*.png"))
    assert pictures == ["samples-000000000240.png", "samples-000000000480.png"]


def test_samples_are_a_grid_whose_rows_are_classes(whole, evaluated):
    with Image.open(whole.run.path / "samples.png") as image:
        # 12 samples of 10 classes: one column; an 8x8 digit and its frame, enlarged 8x.
        assert image.size == (10 * 8, 10 * 10 * 8) and image.mode == "L"


def test_evaluating_a_run_without_snapshots_says_to_train_first(load, tmp_path):
    with pytest.raises(ValueError, match="no snapshots yet; train it first"):
        evaluation.evaluate(load(), RunDir(tmp_path, load()))


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("network__resolution", "16", r"images of shape \(8, 8, 1\)"),
        ("network__num_classes", "5", "labels must be from 0 to 4"),
    ],
)
def test_a_network_that_does_not_fit_the_data_is_refused_before_training(
    load, tmp_path, field, value, sentence
):
    config = load(**{field: value})
    with pytest.raises(ValueError, match=sentence):
        HeldOut(diffusion.Denoiser(config.model, 0.5), config)


@pytest.mark.slow
def test_config_a_has_its_traditional_average_evaluated_beside_the_sweep(
    load, tmp_path
):
    a = train(load("a"), tmp_path)
    result = evaluation.evaluate(a.config, a.run)
    (traditional,) = result["traditional"]
    assert (traditional["halflife_mimg"],) == a.config.ema.halflives_mimg
    assert [point["sigma_rel"] for point in result["sweep"]] == [0.05, 0.08, 0.1, 0.12]
    # A short average is near the weights themselves.
    assert traditional["loss"] == pytest.approx(result["raw_loss"], rel=0.2)
    assert traditional["loss"] != result["raw_loss"]


@pytest.mark.slow
def test_no_file_is_left_half_written(whole, interrupted, evaluated):
    for each in (whole, interrupted):
        names = [f for _, _, files in os.walk(each.run.path) for f in files]
        assert not [n for n in names if n.endswith(".tmp") or str(os.getpid()) in n]


@pytest.mark.slow
def test_a_run_that_stops_early_is_evaluated_at_the_bits_of_its_best_snapshot(
    load, tmp_path, monkeypatch
):
    config = load(
        optimizer__warmup__name="none",
        training__patience_mimg="0.00015",
        training__probe_mimg="0.000048",  # 3 steps, and no snapshot due before
        training__snapshot_mimg="0.00048",
    )
    run = RunDir(tmp_path, config)
    # Known losses of the averages: the best at the second probe.
    losses = iter([1.0, 9.0, 0.9, 9.0, 0.5, 9.0, *[0.7, 9.0] * 9])
    monkeypatch.setattr(HeldOut, "loss", lambda self, params: next(losses))
    seen, snapshot = {}, loop._Loop._snapshot

    def note(self, state, step):
        fetched = {
            name: snapshots.flatten(jax.tree.map(np.asarray, average))
            for name, average in self.trainer.averages(state, step).items()
        }
        seen[step * BATCH] = fetched
        snapshot(self, state, step)

    monkeypatch.setattr(loop._Loop, "_snapshot", note)
    loop.train(config, run)
    monkeypatch.undo()
    status = run.status
    assert status["state"] == "done" and status["stopped_early"]
    assert status["nimg"] == status["total_nimg"] == 18 * BATCH
    assert status["best_nimg"] == 6 * BATCH
    # Stored: each best so far, and the end.
    stored = snapshots.list_snapshots(run.snapshots)
    assert sorted({s.meta.nimg for s in stored}) == [3 * BATCH, 6 * BATCH, 18 * BATCH]
    counted = sweeps.usable(run.snapshots, run.best_nimg)
    assert posthoc.last_nimg(counted) == 6 * BATCH
    restored = ema.reconstruct(counted, [0.05, 0.1])
    for sigma_rel, (params, _) in restored.items():
        best = seen[6 * BATCH][f"power_{sigma_rel:g}"]
        for name, array in snapshots.flatten(params).items():
            np.testing.assert_array_equal(array, best[name])
    result = evaluation.evaluate(config, RunDir(tmp_path, config))
    assert result["nimg"] == 6 * BATCH and result["raw_loss"] == 9.0
    assert is_done(tmp_path, TOTAL * BATCH)
    assert not is_done(tmp_path / "nowhere")
