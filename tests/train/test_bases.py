"""A run that starts from weights: which, how they are recorded, and what is refused."""

import json
import os
import signal
import time

import jax
import numpy as np
import pytest
from driven_run import BATCH, Driven
from oracle_original import denoise
from pickle_writer import snapshot as pickle_snapshot
from pickle_writer import tree as pickle_tree
from shared_steps import shared_steps
from trained_base import run, trained_base

import configs
from edm_jax import ema, original, tree
from edm_jax.diffusion import Denoiser
from edm_jax.ema import rebuild, snapshots
from edm_jax.optim import weight_norm
from edm_jax.original import mapping
from edm_jax.train import bases, step
from experiments import cli, train

STEPS, MORE = 40, 24
TUNED = f"--config.training.duration_mimg={MORE * BATCH / 1e6}"


def run_train(monkeypatch, *command):
    run(train, monkeypatch, *command)


@pytest.fixture(scope="module", autouse=True)
def _steps_are_shared():
    with shared_steps():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run of 40 steps with snapshots after 20 and 40."""
    return trained_base(tmp_path_factory.mktemp("base"), STEPS)


def of(path, **fields):
    """The base's config, to start from `path`."""
    fields = {"name": "weights", "source": str(path)} | fields
    start = {f"training.start.{k}": str(v) for k, v in fields.items()}
    return configs.changed(cli.recorded_config(path), start)


def flat(params):
    return {k: np.asarray(v) for k, v in tree.flatten(params).items()}


def equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], name)


@pytest.mark.slow
def test_a_run_starts_from_the_average_that_is_named_as_reconstruction_makes_it(base):
    stored = base / "snapshots"
    for sigma_rel, expected in ((0, 0.1), (0.07, 0.07)):
        begun = bases.begin(of(base, sigma_rel=sigma_rel))
        made = ema.reconstruct(stored, [expected])[expected].params
        params, averages = begun.initial(seed=0)
        equal(flat(params), flat(weight_norm.project(made)))
        assert averages is None
        assert begun.record["nimg"] == STEPS * BATCH and begun.before_nimg == 0
        assert len(begun.record["loaded"]) == len(flat(made))
    # A snapshot is taken as it is, and with a length names the time.
    path = stored / f"power-0.050-{20 * BATCH:012}.safetensors"
    config = of(base, source=path)
    params, _ = bases.begin(config).initial(0)
    equal(flat(params), flat(weight_norm.project(snapshots.read(path)[0])))
    begun = bases.begin(of(base, source=path, sigma_rel=0.08))
    made = ema.reconstruct(stored, [0.08], 20 * BATCH)[0.08].params
    equal(flat(begun.initial(0)[0]), flat(weight_norm.project(made)))
    assert begun.record["nimg"] == 20 * BATCH


@pytest.mark.slow
def test_fine_tuning_is_recorded_resumes_and_refuses_a_changed_base(
    monkeypatch, caplog, base, tmp_path
):
    run = tmp_path / "tuned"
    command = [f"--init_from={base}:0.08", f"--run={run}", TUNED]
    run_train(monkeypatch, *command)
    record = json.loads((run / "base.json").read_text())
    assert record["profile"] == {"kind": "power", "sigma_rel": 0.08}
    assert [os.path.basename(each["path"]) for each in record["files"]] == [
        path.name
        for path in sorted(
            (base / "snapshots").iterdir(), key=lambda p: (p.name[-20:], p.name)
        )
    ]
    last = snapshots.list_snapshots(run / "snapshots")[-1].meta
    assert last.base["checksum"] == record["checksum"]
    assert last.base["source"] == str(base) and last.before_nimg == 0
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["base"] == last.base
    losses = [
        json.loads(line)
        for line in (run / "metrics.jsonl").read_text().splitlines()
        if '"heldout"' in line
    ]
    before = [
        json.loads(line)
        for line in (base / "metrics.jsonl").read_text().splitlines()
        if '"heldout"' in line
    ]
    assert losses[0]["raw_loss_per_element"] < before[0]["raw_loss_per_element"]

    again = [*command[:2], f"--config.training.duration_mimg={30 * BATCH / 1e6}"]
    again.append("--allow=training.duration_mimg")
    path = run.parent / record["files"][0]["path"]
    whole, stat = path.read_bytes(), os.stat(path)
    try:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ValueError, match=r"has changed since .* --allow=base"):
            run_train(monkeypatch, *again)
        path.write_bytes(whole)  # another time, the same contents
        run_train(monkeypatch, *again)
        path.rename(f"{path}.away")
        run_train(monkeypatch, *again)
        assert "is gone; the run resumes from its own checkpoint" in caplog.text
    finally:
        path.write_bytes(whole)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert json.loads((run / "base.json").read_text()) == record


@pytest.mark.slow
def test_a_fine_tune_that_was_killed_ends_in_the_same_bits(base, tmp_path):
    tuned = [f"--init_from={base}:0.08", "--config.training.start.ema=continue"]
    runs = []
    for name in ("whole", "killed"):
        run = tmp_path / name
        command = run, base.parent / "tfds", 30, *tuned
        if name == "killed":
            process = Driven(*command)
            while not (run / "checkpoints" / "12").exists():
                assert process.poll() is None, process.finish()
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.finish()
        status, _, said = Driven(*command).finish()
        assert status == 0, said
        stored = snapshots.list_snapshots(run / "snapshots")
        runs.append({s.path.name: s.checksum for s in stored})
    assert runs[0] == runs[1] and runs[0]


@pytest.mark.slow
def test_an_average_that_continues_is_that_of_one_run_over_both(base):
    """Of a weight whose whole history is known, by the sum that defines its average."""
    config = of(base, ema="continue")
    begun = bases.begin(config)
    assert begun.before_nimg == STEPS * BATCH
    _, averages = begun.initial(0)
    for name, profile in config.ema.profiles().items():
        path = base / "snapshots" / f"{profile.label}-{STEPS * BATCH:012}.safetensors"
        equal(flat(averages[name]), flat(snapshots.read(path)[0]))
    # beta of steps 1 to n, given the images before, telescopes into the power function.
    gamma, before, n = ema.PowerProfile(0.1).gamma, 37.5, 20
    weight = step.power_ema_weight(gamma, 1, before)
    history, average = np.linspace(1, 3, n), 5.0
    for i, theta in enumerate(history):
        average += float(weight(np.int32(i))) * (theta - average)
    ends = (before + np.arange(n + 1)) / (before + n)
    shares = np.diff(ends ** (gamma + 1))
    expected = 5.0 * ends[0] ** (gamma + 1) + shares @ history
    assert average == pytest.approx(expected, rel=1e-5)


def test_snapshots_of_a_continued_clock_are_rebuilt_on_that_clock(tmp_path):
    """theta(tau) = tau^3, whose power-function average at t is (g + 1) / (g + 4) t^3."""
    before = 2**20

    def store(place, sigma_rel, nimg, base):
        profile = ema.PowerProfile(sigma_rel)
        time = (before + nimg) / 2**20
        mean = (profile.gamma + 1) / (profile.gamma + 4) * time**3
        meta = ema.SnapshotMeta(profile, nimg, 1, "c0ffee", base=base)
        snapshots.write(place, {"w": np.full(4, mean)}, meta)

    for base in ({"before_nimg": before}, None):
        place = tmp_path / str(base is None)
        for nimg in range(2**16, 2**20 + 1, 2**16):
            store(place, 0.05, nimg, base)
            store(place, 0.10, nimg, base)
        profile = ema.PowerProfile(0.08)
        expected = 2**3 * (profile.gamma + 1) / (profile.gamma + 4)
        made = ema.reconstruct(place, [profile])[profile]
        assert made.solution.nimg == 2**20 + (before if base else 0)
        error = abs(made.params["w"][0] - expected)
        assert error < 1e-3 if base else error > 1e-2
    request = rebuild.Request([(None, ema.PowerProfile(0.08))])
    _, [path] = rebuild.run(tmp_path / "False", request, tmp_path / "made")
    meta = snapshots.open_snapshot(path).meta
    assert (meta.nimg, meta.before_nimg) == (2**20, before)
    with pytest.raises(ValueError, match="clock"):
        ema.SnapshotMeta(profile, 1, 1, "", base={"before_nimg": -1})


@pytest.mark.slow
def test_the_original_codes_weights_compute_the_same_here(monkeypatch, tmp_path):
    net = original.OriginalNetwork(8, 1, 10, 16, (1, 2), 1, (4,))
    rng = np.random.default_rng(0)
    tensors = {
        slot.name: rng.standard_normal(slot.shape).astype(np.float16)
        for slot in mapping.slots(net)
    }
    path = tmp_path / "tiny-0000001-0.050.pkl"
    path.write_bytes(pickle_snapshot(pickle_tree(tensors)))
    fields = {f"network.{k}": str(v) for k, v in vars(net).items()}
    fields |= {"training.start.name": "weights", "training.start.source": str(path)}
    config = configs.load(f"{configs.letter_path('g')}:digits-tiny", fields)
    begun = bases.begin(config)
    assert begun.record["nimg"] == 1024 and begun.record["files"][0]["checksum"]
    params, _ = begun.initial(0)
    x = rng.standard_normal((2, 8, 8, 1)).astype(np.float32)
    sigma, label = np.array([0.3, 2.0], np.float32), np.array([3, 7])
    ours = jax.jit(Denoiser(config.model, 0.5))(params, x, sigma, label).image
    theirs, _ = denoise(tensors, x.transpose(0, 3, 1, 2), sigma, np.eye(10)[label])
    np.testing.assert_allclose(ours, theirs.transpose(0, 2, 3, 1), atol=2e-3)
