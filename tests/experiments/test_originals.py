"""Snapshots of the original code in the commands."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import oracle_original
import pickle_writer
import pytest

import configs
from edm_jax import original
from edm_jax.diffusion.noise_levels import NoiseLevels
from edm_jax.diffusion.samplers import Heun, initial_noise
from edm_jax.ema import snapshots
from edm_jax.original import mapping
from experiments import cli, evaluate, originals, reconstruct, sample

DIGITS = f"{configs.letter_path('g')}:digits"
TINY = f"{DIGITS}-tiny"


def run(monkeypatch, main, *arguments):
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    cli.run(main)


def refused(monkeypatch, capsys, main, *arguments):
    """The sentence in which a command refuses."""
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, main, *arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert printed.startswith("command: ")
    return printed


NET = original.OriginalNetwork(
    resolution=8,
    channels=1,
    num_classes=10,
    model_channels=16,
    channel_mult=(1, 2),
    blocks_per_level=1,
    attention_resolutions=(4,),
)


def mapped(tensors):
    return mapping.to_params(tensors, mapping.fit(tensors, NET))


@pytest.fixture
def pickles(tmp_path):
    """Snapshots of the original code, of one small network at two times."""
    rng = np.random.default_rng(0)
    tensors = {}
    for kimg in (1048, 2097):
        for std in (0.05, 0.10):
            made = {
                slot.name: rng.standard_normal(slot.shape).astype(np.float16)
                for slot in mapping.slots(NET)
            }
            # Gains of 1 make sampling chaotic.
            gains = [name for name, leaf in made.items() if not leaf.ndim]
            made |= dict.fromkeys(gains, np.float16(0.25))
            name = f"edm2-digits-{kimg:07d}-{std:.3f}.pkl"
            tensors[name] = made
            data = pickle_writer.snapshot(pickle_writer.tree(made))
            (tmp_path / name).write_bytes(data)
    return tmp_path, tensors


def test_the_originals_snapshots_are_rebuilt_like_others(
    monkeypatch, capsys, pickles, tmp_path
):
    directory, tensors = pickles
    monkeypatch.chdir(tmp_path)
    command = [f"--run={directory}", f"--config={DIGITS}", "--sigma_rel=0.05,0.07"]
    run(monkeypatch, reconstruct.main, *command)
    made = tmp_path / "runs" / "original-edm2-digits"
    config = json.loads((made / "config.json").read_text())
    assert config["network"]["attention_resolutions"] == [4]
    (stored,) = made.glob("reconstructed/power-0.050-*")
    params, meta = snapshots.read(stored)
    assert meta.nimg == 2097152
    expected = mapped(tensors["edm2-digits-0002097-0.050.pkl"])
    assert jax.tree.all(jax.tree.map(np.array_equal, params, expected))
    # What they lost as float16 is not forgotten.
    assert "rounding 2.1e-04" in capsys.readouterr().out.splitlines()[0]
    run(monkeypatch, reconstruct.main, *command)
    assert "Copying" not in capsys.readouterr().err


def test_a_pickle_added_or_replaced_is_taken_over(
    monkeypatch, capsys, pickles, tmp_path
):
    directory, tensors = pickles
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some").mkdir()
    names = sorted(tensors)
    for name in names[:2]:
        (directory / name).rename(tmp_path / "some" / name)
    command = [f"--run={tmp_path}/some", f"--config={DIGITS}", "--sigma_rel=0.05"]
    run(monkeypatch, reconstruct.main, *command)
    for name in names[2:]:
        (directory / name).rename(tmp_path / "some" / name)
    run(monkeypatch, reconstruct.main, *command)
    made = tmp_path / "runs" / "original-edm2-digits"
    assert len(list(made.glob("snapshots/*"))) == 4
    assert len(list(made.glob("reconstructed/*"))) == 2  # at the end of each time
    other = {name: leaf + np.float16(1) for name, leaf in tensors[names[2]].items()}
    data = pickle_writer.snapshot(pickle_writer.tree(other))
    (tmp_path / "some" / names[2]).write_bytes(data)
    run(monkeypatch, reconstruct.main, *command)
    (stored,) = made.glob("reconstructed/power-0.050-*2097152*")
    expected = mapped(other)
    found = snapshots.read(stored)[0]
    assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))


def test_a_network_that_no_workload_has_asks_for_its_config(
    monkeypatch, capsys, pickles, tmp_path
):
    monkeypatch.chdir(tmp_path)
    directory, _ = pickles
    for path in directory.glob("*.pkl"):
        if "0001048-0.050" not in path.name:
            path.unlink()
    tensors = {
        slot.name: np.ones(slot.shape, np.float16)
        for slot in mapping.slots(original.OriginalNetwork(8, 2, 3, 16, (1,), 1, ()))
    }
    (path,) = directory.glob("*.pkl")
    path.write_bytes(pickle_writer.snapshot(pickle_writer.tree(tensors)))
    said = refused(
        monkeypatch, capsys, reconstruct.main, f"--run={path}", "--sigma_rel=0.05"
    )
    assert "8x8x2, 3 classes" in said and "--config=" in said


def test_a_pickle_that_cannot_be_trusted_is_refused_by_name(
    monkeypatch, capsys, pickles, tmp_path
):
    directory, _ = pickles
    monkeypatch.chdir(tmp_path)
    bad = directory / "edm2-digits-0001048-0.050.pkl"
    bad.write_bytes(b"\x80\x04cos\nsystem\n(Vecho\ntR.")
    command = [f"--run={directory}", f"--config={DIGITS}", "--sigma_rel=0.05"]
    said = refused(monkeypatch, capsys, reconstruct.main, *command)
    assert bad.name in said and "do not trust this file" in said


def test_snapshots_of_two_networks_are_not_mixed(
    monkeypatch, capsys, pickles, tmp_path
):
    directory, _ = pickles
    monkeypatch.chdir(tmp_path)
    (directory / "edm2-other-0001048-0.050.pkl").write_bytes(b"")
    command = [f"--run={directory}", "--sigma_rel=0.05"]
    said = refused(monkeypatch, capsys, reconstruct.main, *command)
    assert "edm2-digits, edm2-other" in said and "edm2-digits-*.pkl" in said


@pytest.mark.slow
def test_one_pickle_is_sampled_and_evaluated_as_the_original_layout_says(
    monkeypatch, capsys, pickles, tmp_path
):
    directory, tensors = pickles
    monkeypatch.chdir(tmp_path)
    name = "edm2-digits-0002097-0.100.pkl"
    command = [f"--run={directory / name}", f"--config={TINY}"]
    more = "--seeds=0-3", "--steps=6", f"--out={tmp_path}/samples"
    run(monkeypatch, sample.main, *command, *more)
    found = np.load(tmp_path / "samples" / "samples.npz")
    # The last step of the sampler returns the denoised image: follow it in the original
    # layout with an independent network.
    noise = initial_noise([0, 1, 2, 3], (8, 8, 1))

    def denoise(x, sigma):
        label = np.eye(10)[[0, 1, 2, 3]]
        image, _ = oracle_original.denoise(
            tensors[name], np.asarray(x).transpose(0, 3, 1, 2), np.asarray(sigma), label
        )
        return image.transpose(0, 2, 3, 1)

    levels = NoiseLevels(6).sigmas()
    shape = jax.ShapeDtypeStruct(noise.shape, np.float32)

    def traced(x, sigma):
        return jax.pure_callback(
            lambda *inputs: np.float32(denoise(*inputs)), shape, x, sigma
        )

    expected = Heun().sample(traced, noise * levels[0], levels, jnp.zeros((4, 2)))
    config = configs.load(TINY)
    raw = np.asarray(expected) / 0.5 * config.data.raw_std[0] + config.data.raw_mean[0]
    np.testing.assert_allclose(found["image"], raw, atol=0.02)
    run(monkeypatch, evaluate.main, *command)
    run_dir = tmp_path / "runs" / f"original-{name.removesuffix('.pkl')}"
    result = json.loads((run_dir / "evaluation.json").read_text())
    assert [point["sigma_rel"] for point in result["sweep"]] == [0.1]
    assert "held-out loss" in capsys.readouterr().out


def test_snapshots_at_0_images_are_left_out(monkeypatch, capsys, pickles, tmp_path):
    directory, _ = pickles
    monkeypatch.chdir(tmp_path)
    names = [f"edm2-digits-0000000-{std}.pkl" for std in ("0.050", "0.100")]
    for name in names:
        (directory / name).write_bytes(b"never read")
    command = [f"--config={DIGITS}", "--sigma_rel=0.07"]
    run(monkeypatch, reconstruct.main, f"--run={directory}", *command)
    captured = capsys.readouterr()
    (line,) = [x for x in captured.err.splitlines() if x.startswith("Left out")]
    assert all(name in line for name in names) and "stored at 0 images" in line
    assert "power-0.070-000002097152.safetensors" in captured.out
    only = f"--run={directory}/edm2-digits-0000000-*.pkl"
    for each in (only, f"--run={directory / names[0]}"):
        said = refused(monkeypatch, capsys, reconstruct.main, each, *command)
        assert "holds no average" in said and "Name later ones" in said


def test_other_pickles_in_a_directory_are_left_out(
    monkeypatch, capsys, pickles, tmp_path
):
    directory, _ = pickles
    monkeypatch.chdir(tmp_path)
    (directory / "statistics.pkl").write_bytes(b"never read")
    command = [f"--config={DIGITS}", "--sigma_rel=0.07"]
    run(monkeypatch, reconstruct.main, f"--run={directory}", *command)
    assert "Left out: statistics.pkl (not named PREFIX" in capsys.readouterr().err
    named = f"--run={directory}/statistics.pkl"
    said = refused(monkeypatch, capsys, reconstruct.main, named, *command)
    assert "statistics.pkl does not give its time and EMA length" in said
    foreign = f"--run={directory}/stat*.pkl"
    said = refused(monkeypatch, capsys, reconstruct.main, foreign, *command)
    assert "holds no snapshot named PREFIX-KIMG" in said


@pytest.mark.parametrize(
    ("name", "found"),
    [("a[1]-*.pkl", ["a[1]-x.pkl"]), ("a[1]-x.pkl", ["a[1]-x.pkl"]), ("", None)],
)
def test_a_path_is_a_path_and_a_star_a_pattern(tmp_path, name, found):
    directory = tmp_path / "run [?]"
    directory.mkdir()
    for each in ("a[1]-x.pkl", "a1-x.pkl"):
        (directory / each).write_bytes(b"")
    names = [path.name for path in original.find(directory / name)]
    assert names == (found or ["a1-x.pkl", "a[1]-x.pkl"])


def test_what_is_kept_its_size_and_its_removal_are_told(
    monkeypatch, capsys, pickles, tmp_path
):
    directory, _ = pickles
    monkeypatch.chdir(tmp_path)
    command = [f"--run={directory}", f"--config={DIGITS}", "--sigma_rel=0.07"]
    run(monkeypatch, reconstruct.main, *command)
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "Kept" in x]
    made = tmp_path / "runs" / "original-edm2-digits"
    copies = [path.stat().st_size for path in made.glob("snapshots/*")]
    # Two bytes a weight, as in the pickles: no more than those take.
    assert sum(copies) < sum(path.stat().st_size for path in directory.glob("*.pkl"))
    assert f"4 snapshots, {originals.human(sum(copies))}," in line
    assert line.endswith("to remove them: rm -r runs/original-edm2-digits")
    # A copy that was removed is made again.
    next(made.glob("snapshots/*")).unlink()
    run(monkeypatch, reconstruct.main, *command)
    assert len(list(made.glob("snapshots/*"))) == 4


def test_settings_reach_the_runs_config(monkeypatch, pickles, tmp_path):
    directory, tensors = pickles
    monkeypatch.chdir(tmp_path)
    (name, *_) = tensors
    tree = pickle_writer.tree(
        tensors[name],
        channels_per_head=16,
        sigma_data=1.0,
        clip_act=None,
        concat_balance=0.25,
        use_fp16=False,
        dropout=0.125,
    )
    (directory / name).write_bytes(pickle_writer.snapshot(tree))
    made = originals.take_over(directory / name, [directory / name], DIGITS)
    config = json.loads((made / "config.json").read_text())
    network = config["network"]
    assert config["loss"]["sigma_data"] == 1.0
    assert (network["head_channels"], network["clamp"]) == (16, np.inf)
    assert (network["cat_balance"], network["dropout"]) == (0.25, 0.125)
    assert network["compute_dtype"] == "float32"


def test_networks_of_other_settings_are_not_mixed(
    monkeypatch, capsys, pickles, tmp_path
):
    directory, tensors = pickles
    monkeypatch.chdir(tmp_path)
    name = max(tensors)
    tree = pickle_writer.tree(tensors[name], clip_act=None)
    (directory / name).write_bytes(pickle_writer.snapshot(tree))
    command = [f"--run={directory}", f"--config={DIGITS}", "--sigma_rel=0.05"]
    said = refused(monkeypatch, capsys, reconstruct.main, *command)
    assert f"{name} holds another network than the files beside it" in said


def test_pickles_of_another_network_under_the_same_name_ask_for_a_removal(
    monkeypatch, capsys, pickles, tmp_path
):
    directory, tensors = pickles
    monkeypatch.chdir(tmp_path)
    command = [f"--run={directory}", f"--config={DIGITS}", "--sigma_rel=0.05"]
    run(monkeypatch, reconstruct.main, *command)
    for name, each in tensors.items():
        tree = pickle_writer.tree(each, clip_act=None)
        (directory / name).write_bytes(pickle_writer.snapshot(tree))
    said = refused(monkeypatch, capsys, reconstruct.main, *command)
    assert "network.clamp is 256.0 there" in said
    assert "`rm -r runs/original-edm2-digits`" in said
