"""sample.py: what its options mean, and that images are kept only where they are the same."""

import os
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import configs
from edm_jax import ema
from edm_jax.ema import snapshots
from edm_jax.evals import generation
from edm_jax.runs.directory import RunDir
from experiments import cli, sample

BATCH = 8  # one image for each of the simulated devices


def store(path, seed, **overrides):
    """A run that no training has seen: snapshots of random weights."""
    fields = {"network.channel_mult": "(1,)", **overrides}
    config = configs.load(f"{configs.letter_path('g')}:digits-tiny", fields)
    run = RunDir(path, config)
    params = config.model.init(seed)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda w: np.float32(rng.normal(1, 0.3)) if w.ndim == 0 else np.asarray(w),
        params,
    )
    for nimg in (320, 640):
        for sigma_rel in (0.05, 0.10):
            profile = ema.PowerProfile(sigma_rel)
            meta = ema.SnapshotMeta(profile, nimg, 16, run.config_hash)
            snapshots.write(run.snapshots, params, meta)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    return store(place / "one", 1), store(place / "other", 2)


@pytest.fixture
def take(runs, tmp_path, monkeypatch):
    """Calls sample.py on the first run, in 2 steps; returns what samples.npz holds."""

    def take(*arguments, out="out", run=runs[0].path):
        command = [f"--run={run}", f"--out={tmp_path / out}", "--steps=2", *arguments]
        monkeypatch.setattr(sys, "argv", ["sample", f"--batch={BATCH}", *command])
        cli.run(sample.main)
        with np.load(tmp_path / out / "samples.npz") as found:
            return dict(found)

    return take


@pytest.fixture
def made(monkeypatch):
    """The seeds of which images are made, batch by batch; a count of 0 interrupts."""
    seen, batches = [], generation.Generator.batches

    def counted(self, params, seeds, *rest):
        for i, images in enumerate(batches(self, params, seeds, *rest)):
            if seen[-1:] == ["stop after this"]:
                raise KeyboardInterrupt
            seen.append(list(seeds)[BATCH * i : BATCH * i + len(images)])
            if seen[:1] == ["once"]:
                seen.append("stop after this")
            yield images

    monkeypatch.setattr(generation.Generator, "batches", counted)
    return seen


@pytest.mark.slow
def test_images_of_before_are_kept_and_others_are_made(take, made, capsys):
    few, whole = take("--seeds=0-3"), take("--seeds=2-6", out="whole")
    made.clear()
    more = take("--seeds=2-6")
    assert made == [[4, 5, 6]]
    assert (
        "5 images are in" in (said := capsys.readouterr().out) and "2 of them" in said
    )
    np.testing.assert_array_equal(more["seed"], range(2, 7))
    np.testing.assert_array_equal(more["image"], whole["image"])
    np.testing.assert_array_equal(more["image"][:2], few["image"][2:])


@pytest.mark.slow
def test_an_interrupted_command_resumes_with_the_next_batch(take, made, tmp_path):
    made.append("once")
    with pytest.raises(SystemExit) as stop:
        take("--seeds=0-11")
    assert stop.value.code == 130 and not (tmp_path / "out" / "samples.npz").exists()
    made.clear()
    found = take("--seeds=0-11")
    assert made == [[8, 9, 10, 11]]
    made.clear()
    np.testing.assert_array_equal(
        found["image"], take("--seeds=0-11", out="whole")["image"]
    )
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "grid.png",
        "samples.npz",
    ]


@pytest.mark.slow
def test_targets_made_in_another_way_are_made_again(take, made, tmp_path):
    plain = take("--seeds=0-1", "--png")
    first = (tmp_path / "out" / "000000.png").read_bytes()
    again = take("--seeds=0-1", "--classes=7", "--subdirs")
    assert len(made) == 2 and again["label"].tolist() == [7, 7]
    assert np.abs(again["image"] - plain["image"]).max() > 0.1
    assert (tmp_path / "out" / "000000.png").read_bytes() == first
    take("--seeds=0-1", "--classes=7", "--png")  # of the present images
    assert len(made) == 2
    with Image.open(tmp_path / "out" / "000000.png") as image:
        pixels = np.clip(np.round(again["image"][0, ..., 0]), 0, 255)
        np.testing.assert_array_equal(np.asarray(image), pixels)
    assert (tmp_path / "out" / "000000" / "000001.png").exists()
    (tmp_path / "out" / "samples.npz").write_bytes(b"PK\x03\x04")
    np.testing.assert_array_equal(
        take("--seeds=0-1", "--classes=7")["image"], again["image"]
    )


def test_classes_are_the_seeds_one_several_in_turn_or_drawn():
    def labels(text, seeds):
        return list(sample._labels(text, seeds, 10).values())

    assert labels("", [3, 12]) == [3, 2]
    assert labels("4", [3, 12]) == [4, 4]
    assert labels("0,3,5-6", [0, 1, 2, 7]) == [0, 3, 5, 6]
    drawn = labels("random", list(range(500)))
    assert np.bincount(drawn, minlength=10).min() > 25
    assert labels("random", [499, 3]) == [drawn[499], drawn[3]]
    # Of those that the network was trained on.
    kept = (
        sample._labels("", [0, 1, 2], 10, (8, 3)),
        sample._labels("random", list(range(50)), 10, (8, 3)),
    )
    assert list(kept[0].values()) == [8, 3, 8] and set(kept[1].values()) == {8, 3}


@pytest.mark.slow
def test_a_guide_is_a_run_or_a_snapshot_and_weight_1_is_none(take, runs):
    plain = take("--seeds=0-1")["image"]
    other = take("--seeds=0-1", run=runs[1].path, out="other")["image"]
    last = max(runs[1].snapshots.iterdir())
    for guide in (runs[1].path, last):
        found = take("--seeds=0-1", f"--guide={guide}", "--guidance=1.0")["image"]
        np.testing.assert_allclose(found, plain, rtol=1e-3, atol=1e-2)
        alone = take("--seeds=0-1", f"--guide={guide}", "--guidance=0")["image"]
        np.testing.assert_allclose(alone, other, rtol=1e-3, atol=1e-2)
    strong = take("--seeds=0-1", f"--guide={last}", "--guidance=2")["image"]
    assert np.abs(strong - plain).max() > 0.1
    beside = take("--seeds=0-1", f"--guide={last}", "--guidance=2", "--interval=1,2")[
        "image"
    ]
    np.testing.assert_allclose(beside, plain, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--guidance=2"], "--guidance needs a guide"),
        (["--guide=RUN"], "needs its strength"),
        (["--guide=RUN", "--guidance=1:2"], "two or more of SIGMA:STRENGTH"),
        (["--guide=unconditional", "--guidance=2"], "without loss.label_dropout"),
        (["--preset=img512_s_cgf"], "Did you mean 'img512_s_cfg'"),
        (["--preset=img512_s_cfg"], "in the paper the unconditional XS"),
        (["--guide=RUN", "--guidance=2", "--interval=3,1"], "must be LOW,HIGH"),
        (["--guide=nowhere", "--guidance=2"], "not a run directory"),
        (["--classes=10"], "has 10 classes, from 0"),
        (["--sampler=heum"], "Did you mean 'heun'"),
        (["--sampler=stochastic_heun,s_chrun=1"], "Did you mean 's_churn'"),
        (["--sampler=euler", "--churn=1"], "exclude one another"),
        (["--sigma_min=100"], "must be below sigma_max"),
    ],
)
def test_invalid_settings_are_refused(take, runs, capsys, arguments, sentence):
    arguments = [each.replace("RUN", str(runs[1].path)) for each in arguments]
    with pytest.raises(SystemExit) as stop:
        take(*arguments)
    assert stop.value.code == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert sentence in said


@pytest.mark.slow
def test_a_guide_of_other_classes_is_refused(take, tmp_path, capsys):
    guide = store(tmp_path / "guide", 0, **{"network.num_classes": "5"})
    with pytest.raises(SystemExit):
        take(f"--guide={guide.path}", "--guidance=2")
    assert "has 5 classes, and the run has 10" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("where", [-3, 8], ids=["weights", "header"])
def test_a_damaged_snapshot_is_left_out_and_named(take, tmp_path, capsys, where):
    run = store(tmp_path / "run", 1)
    damaged = min(run.snapshots.iterdir())
    data = bytearray(damaged.read_bytes())
    data[where] ^= 0xFF
    damaged.write_bytes(bytes(data))
    found = take("--seeds=0-1", "--sigma_rel=0.08", "--force", run=run.path)
    assert len(found["image"]) == 2
    (said,) = {s for s in capsys.readouterr().err.splitlines() if "Left out: " in s}
    assert os.fspath(damaged) in said


@pytest.mark.slow
def test_a_network_that_has_seen_hidden_classes_guides_itself(take, tmp_path):
    run = store(tmp_path / "run", 1, **{"loss.label_dropout": "0.1"}).path
    guide = ["--guide=unconditional", "--seeds=0-1"]
    plain = take("--seeds=0-1", run=run)["image"]
    same = take(*guide, "--guidance=1", run=run)["image"]
    np.testing.assert_allclose(same, plain, rtol=1e-3, atol=1e-2)
    # At w = 0 no class is told at all.
    first, second = (
        take(*guide, "--guidance=0", f"--classes={c}", run=run)["image"] for c in (2, 5)
    )
    np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-2)
    strong = take(*guide, "--guidance=0.01:1,1:3", run=run)["image"]
    assert np.abs(strong - plain).max() > 0.1


def test_a_preset_fills_in_what_the_command_line_does_not_say():
    words = ["--run=x", "--preset=img512_s_interval", "--guide=y", "--guidance=3"]
    options = sample._parser().parse_args([*words, "--sigma_rel=0.1"])
    assert sample._take_preset(options) is None
    assert (options.guidance, options.interval) == ("3", "0.28,2.90")
    assert (options.sigma_rel, options.guide_sigma_rel) == (0.1, 0.025)
    options = sample._parser().parse_args(["--run=x", "--preset=edm_imagenet64"])
    assert sample._take_preset(options).s_churn == 40 and options.steps == 256
