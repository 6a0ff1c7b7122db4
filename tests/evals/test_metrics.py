"""Metrics by name, references in files, images of other codes; a tiny network stands in."""

import os
import pickle
import sys
import types
import zipfile

import damage_ways
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny_features
from PIL import Image
from tiny_features import WEIGHTS, tiny

from edm_jax.data.order import Uniform
from edm_jax.evals import evaluators, frechet, guided_sweeps, metrics
from edm_jax.evals.features import extraction, networks, references, sources
from edm_jax.evals.latents import NotDecoded
from edm_jax.models import pretrained
from experiments import cli, evaluate

rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (60, 4, 4, 3), np.uint8)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with the weights of the network that stands for EfficientNet-Lite0."""
    monkeypatch.setitem(networks.NETWORKS, "effnetlite0", tiny())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny_features.write(tmp_path)
    return tmp_path


@pytest.fixture
def command(place, monkeypatch, capsys):
    """Runs evaluate.py with these arguments in that directory; what it printed."""
    monkeypatch.chdir(place)

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["evaluate", *arguments, "--weights=."])
        cli.run(evaluate.main)
        return capsys.readouterr().out

    return command


def features(images):
    """What the network gives, in NumPy."""
    colours = (images.astype(np.float64) - 128) / 128
    return colours.mean(axis=(1, 2)) @ WEIGHTS["fc.weight"].T


def distance(a, b):
    return frechet.frechet_distance(
        *(frechet.gaussian_fit(features(x)) for x in (a, b))
    )


def write_folder(path, images):
    for i, image in enumerate(images):
        folder = path / f"{i // 25:02}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:04}.png")


def test_features_are_the_same_for_any_batch_and_devices(place):
    loaded = tiny().load(place / "tiny.safetensors")
    for size in (1, 7, 64):
        found = extraction.Extractor(loaded, size)(PIXELS).vectors
        np.testing.assert_allclose(found, features(PIXELS), atol=1e-5)
    gray = extraction.Extractor(loaded)(PIXELS[..., :1]).vectors
    equal = np.repeat(PIXELS[..., :1], 3, axis=-1)
    np.testing.assert_allclose(gray, features(equal), atol=1e-5)
    with pytest.raises(ValueError, match=r"not \(60, 4, 4, 2\)"):
        extraction.Extractor(loaded)(PIXELS[..., :2])


def test_a_folder_is_scored_against_images_statistics_and_sets(place, command):
    write_folder(place / "made", PIXELS[:40])
    np.savez(place / "real.npz", PIXELS[20:])  # as arr_0
    wanted = distance(PIXELS[:40], PIXELS[20:])
    score = "--images=made", "--metric=fd_effnetlite0"
    command(*score, "--reference=real.npz", "--json=a.json")
    found = evaluate.files.read_json(place / "a.json")
    assert found["fd_effnetlite0"] == pytest.approx(wanted, rel=1e-4)
    assert found["num_images"] == 40 and "fd_effnetlite0_at_infinity" in found
    for name in ("stats.npz", "stats.pkl"):
        write = "--images=real.npz", "--metric=fd_effnetlite0", f"--statistics={name}"
        out = command(*write)
        assert f"{name}: statistics of 40 images" in out
        out = command(*score, f"--reference={name}", "--json=b.json")
        assert "40 images is biased upwards" in out
        assert evaluate.files.read_json(place / "b.json") == pytest.approx(found)
    command(*score, "--reference=real.npz", "--num_images=13", "--json=c.json")
    sets = evaluate.files.read_json(place / "c.json")
    each = [distance(PIXELS[i:39:3], PIXELS[20:]) for i in range(3)]
    assert sets["fd_effnetlite0_draws"] == pytest.approx(each, rel=1e-4)
    assert sets["fd_effnetlite0_lowest"] == min(sets["fd_effnetlite0_draws"])
    assert sets["fd_effnetlite0_mean"] == pytest.approx(np.mean(each), rel=1e-4)
    assert "fd_effnetlite0" not in sets  # which of them it is, is always said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric=fd_effnet"], "Did you mean 'fd_effnetlite0'"),
        (["--reference=stats.npz", "--metric=kd_effnetlite0"], "only statistics"),
        (["--reference=wide.npz"], "statistics of 7 features, but the network gives 6"),
        (["--reference=fid.pkl"], "no statistics of 'fd_effnetlite0'. It has fid."),
        (["--reference=a.npz", "--num_images=61"], "between 2 and the 60 images"),
        (["--statistics=a.npz"], "Name either --reference"),
        (["--run=a"], "Name either --run or --images"),
        (["--images=one.npz"], "one.npz holds one image: metrics need two"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_scored_is_said_in_one_sentence(
    place, command, capsys, arguments, message
):
    np.savez(place / "a.npz", PIXELS)
    np.savez(place / "one.npz", PIXELS[:1])
    np.savez(place / "stats.npz", mu=np.zeros(6), sigma=np.eye(6))
    np.savez(place / "wide.npz", mu=np.zeros(7), sigma=np.eye(7))
    (place / "fid.pkl").write_bytes(pickle.dumps({"fid": {}}))
    defaults = "--images=a.npz", "--reference=a.npz", "--metric=fd_effnetlite0"
    given = [argument.partition("=")[0] for argument in arguments]
    rest = [d for d in defaults if d.partition("=")[0] not in given]
    with pytest.raises(SystemExit):
        command(*rest, *arguments)
    err = capsys.readouterr().err
    assert message in err.splitlines()[-1]


def test_references_of_the_original_code_and_of_pytorch_fid_are_read(tmp_path):
    mu, sigma = rng.standard_normal(3), np.diag([1.0, 2.0, 3.0])
    both = {"fid": {"mu": mu, "sigma": sigma}, "fd_dinov2": {"mu": -mu, "sigma": sigma}}
    for protocol in (2, 3, 4, 5):
        data = pickle.dumps(both, protocol=protocol)
        if protocol > 2:  # which stores bytes as text
            (tmp_path / "ref.pkl").write_bytes(data)
            found = references.read(tmp_path / "ref.pkl", "fd_dinov2").gaussian
            np.testing.assert_array_equal(found.mean, -mu)
            np.testing.assert_allclose(found.covariance, sigma, rtol=1e-14)
    np.savez(tmp_path / "ref.npz", mu=mu, sigma=sigma)
    found = references.read(tmp_path / "ref.npz", "fid").gaussian
    np.testing.assert_array_equal(found.mean, mu)
    references.write(tmp_path / "own.pkl", {"fid": found})
    own = pickle.loads((tmp_path / "own.pkl").read_bytes())
    np.testing.assert_allclose(own["fid"]["sigma"], sigma, rtol=1e-14)
    np.savez(tmp_path / "bad.npz", mu=mu, sigma=np.eye(2))
    with pytest.raises(ValueError, match="no mu and sigma that fit"):
        references.read(tmp_path / "bad.npz", "fid")


def test_features_of_a_known_set_are_computed_once(place):
    extract = extraction.Extractor(tiny().load(place / "tiny.safetensors"))
    calls = []

    def counted(images, on_progress):
        calls.append(len(images))
        return extract(images, on_progress)

    counted.digest = extract.digest
    same = {"data": {"name": "a"}, "split": "train"}
    first, again = (references.of_images("a", PIXELS, counted, same) for _ in range(2))
    np.testing.assert_array_equal(first.vectors, again.vectors)
    assert calls == [60]
    references.of_images("a", PIXELS, counted, same | {"split": "test"})
    for path in (place / "cache" / "edm_jax" / "features").iterdir():
        path.write_bytes(path.read_bytes()[:-9])  # damaged: made again
    references.of_images("a", PIXELS, counted, same)
    assert calls == [60, 60, 60]


def test_the_evaluator_scores_samples_against_the_whole_training_split(place):
    class Rows:
        shape = (4, 4, 3)

        def __len__(self):
            return 40

        def read(self, rows):
            return PIXELS[20:][rows], None

    reader = types.SimpleNamespace(
        open=lambda *_: Rows(), prepare=lambda _: None, fingerprint=lambda _: {"a": 1}
    )
    data = types.SimpleNamespace(
        name="d",
        train_split="train",
        reader=reader,
        raw_mean=(100.0,) * 3,
        raw_std=(50.0,) * 3,
        classes=(),
        sampling=Uniform(),
    )
    plain = types.SimpleNamespace(decoder=NotDecoded())
    samples = (PIXELS[:40].astype(np.float32) - 100) / 100
    subject = types.SimpleNamespace(
        config=types.SimpleNamespace(data=data, evaluation=plain),
        images=samples,
        on_progress=lambda *_: None,
    )
    found = evaluators.Learned(weights=str(place)).evaluate(subject)
    wanted = distance(PIXELS[:40], PIXELS[20:])
    assert found["fd_effnetlite0"] == pytest.approx(wanted, rel=1e-4)
    assert {
        "kd_effnetlite0",
        "precision_effnetlite0",
        "recall_effnetlite0",
    } < found.keys()
    swept = guided_sweeps.Given(subject.config, np.zeros(40))
    alone = evaluators.LearnedFrechet(weights=str(place))
    assert swept.measure(alone, "", samples) == found["fd_effnetlite0"]
    assert {"density_effnetlite0", "coverage_effnetlite0"} < found.keys()


def test_the_bias_is_told_with_the_number_of_images(capsys):
    evaluate._tell({"fid": 2.5, "fid_at_infinity": 2.0}, 1234)
    assert "fid of 1,234 images is biased upwards" in capsys.readouterr().out
    evaluate._tell({"fid": 2.5}, 50_000)
    assert capsys.readouterr().out == "fid: 2.5\n"


def test_pictures_of_one_set_must_be_alike(tmp_path):
    write_folder(tmp_path, PIXELS[:3])
    found = sources.open_path(tmp_path)
    np.testing.assert_array_equal(found[np.array([2, 0])], PIXELS[[2, 0]])
    Image.fromarray(PIXELS[0, :3]).save(tmp_path / "z.png")
    with pytest.raises(ValueError, match="z.png is 4 x 3 pixels, RGB, but .* 4 x 4"):
        found = sources.open_path(tmp_path)
        found[np.arange(4)]
    Image.fromarray(PIXELS[0]).convert("P").save(tmp_path / "z.png")
    with pytest.raises(ValueError, match="has the mode P"):
        found[np.arange(4)]
    ours = PIXELS[:2] + 0.4
    ours[0] = 300
    np.savez(tmp_path / "samples.npz", image=np.float32(ours), label=np.zeros(2))
    found = sources.open_path(tmp_path / "samples.npz")
    assert found.dtype == np.uint8 and found[0].min() == 255
    np.testing.assert_array_equal(found[1], PIXELS[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra.weight": np.zeros(1)}, "1 tensors that the network has no place for"),
        ({"fc.weight": np.zeros((6, 4))}, r"'fc.weight' of shape \(6, 4\)"),
        ({"fc.bias": np.full(6, np.nan)}, "'fc.bias', which is not finite"),
        ({"fc.bias": None}, "lacks 1 tensors, the first 'fc.bias'"),
    ],
    ids=["extra", "shape", "nan", "missing"],
)
def test_each_tensor_of_a_file_is_used_exactly_once(tmp_path, change, message):
    tensors = {k: v for k, v in (WEIGHTS | change).items() if v is not None}
    safetensors.numpy.save_file(tensors, tmp_path / "tiny.safetensors")
    with pytest.raises(ValueError, match=message):
        tiny().load(tmp_path / "tiny.safetensors")


def test_kernels_of_flax_are_taken_as_they_are(tmp_path):
    ours = {"fc": {"kernel": WEIGHTS["fc.weight"].T, "bias": WEIGHTS["fc.bias"]}}
    (tmp_path / "tiny.pickle").write_bytes(pickle.dumps(ours))
    params = tiny().load(tmp_path / "tiny.pickle").params
    np.testing.assert_array_equal(params["fc"]["kernel"], WEIGHTS["fc.weight"].T)


def test_weights_are_asked_for_by_name_and_others_are_refused(tmp_path):
    inception = networks.NETWORKS["inception"]
    with pytest.raises(FileNotFoundError, match="pt_inception-2015-12-05-6726825d.pth"):
        inception.find()
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        inception.find(tmp_path)
    there = tmp_path / "weights-inception-2015-12-05-6726825d.pth"
    there.write_bytes(b"something else")
    assert inception.find(tmp_path) == there
    with pytest.raises(ValueError, match="its SHA-256 begins with"):
        inception.load(there)
    theirs = {"AuxLogits.fc.weight": np.zeros((2, 2))}
    safetensors.numpy.save_file(theirs, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="torchvision's classification network"):
        inception.load(tmp_path / "a.safetensors")


def test_an_installed_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(networks.importlib.util, "find_spec", lambda _: None)
    wanted = r"pip install 'edm_jax\[metrics\]'"
    with pytest.raises(FileNotFoundError, match=wanted):
        networks.NETWORKS["effnetlite0"].find()


def test_batch_norm_is_its_formula():
    x = rng.standard_normal((2, 3, 3, 4)).astype(np.float32)
    names = "scale", "bias", "mean", "var"
    p = {k: rng.uniform(0.5, 2, 4).astype(np.float32) for k in names}
    found = pretrained.BatchNorm().apply({"params": p}, jnp.asarray(x))
    wanted = p["scale"] * (x - p["mean"]) / np.sqrt(p["var"] + 1e-3) + p["bias"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_metrics_are_called_by_their_networks():
    assert metrics.METRICS["fid"] == metrics.Metric("fd", "inception")
    assert metrics.METRICS["kid"] == metrics.Metric("kd", "inception")
    assert metrics.pick("fid, fid,pr_dinov2") == ["fid", "pr_dinov2"]
    assert not [name for name in metrics.METRICS if "fid" in name and name != "fid"]


@pytest.mark.parametrize("kind", ["bomb", "text", "pixels"])
def test_a_picture_that_pillow_refuses_is_named(place, command, capsys, kind):
    write_folder(place / "made", PIXELS[:20])
    path = place / "made" / "00" / "0003.png"
    bad = next(d for d in damage_ways.every(path, "png") if d.name == {
        "bomb": "claims_the_most", "text": "text_bomb", "pixels": "no_pixels"}[kind])  # fmt: skip
    bad.apply(path)
    np.savez(place / "real.npz", PIXELS)
    with pytest.raises(SystemExit) as stop:
        command("--images=made", "--metric=fd_effnetlite0", "--reference=real.npz")
    assert stop.value.code == 2
    assert "0003.png is " in capsys.readouterr().err.splitlines()[-1]


def test_statistics_that_are_not_numbers_are_refused_briefly(tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.zeros(3) * 1j, sigma=np.eye(3))
    with pytest.raises(ValueError, match="a.npz holds no mu and sigma.*complex"):
        references.read(tmp_path / "a.npz", "fid")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("mu.npy", b"\x93NUMPY\x01\x00\xff\x7f" + b"[" * 32767)
    with pytest.raises(ValueError, match="b.npz is not an archive") as refusal:
        references.read(tmp_path / "b.npz", "fid")
    assert len(str(refusal.value)) < 800


@pytest.mark.parametrize(
    "images",
    [PIXELS * 1j, PIXELS.astype(str), np.where(PIXELS, np.nan, 1.0)],
    ids=["complex", "texts", "nan"],
)
def test_arrays_that_are_no_images_are_refused_by_name(tmp_path, images):
    np.savez(tmp_path / "a.npz", images)
    with pytest.raises(ValueError, match="a.npz holds .* no pixels, or are not finite"):
        sources.open_path(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("arr_0.npy", b"")
    with pytest.raises(ValueError, match="b.npz is not an archive of arrays"):
        sources.open_path(tmp_path / "b.npz")


def test_a_file_too_large_for_statistics_is_not_read(tmp_path):
    for name in ("a.npz", "a.pkl"):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, 3 << 30)
        with pytest.raises(ValueError, match=f"{name} is too large for statistics"):
            references.read(tmp_path / name, "fid")
