"""The command edm-ema, as it is where only NumPy and safetensors are installed."""

import subprocess
import sys
from pathlib import Path

import foreign_files
import numpy as np
import pytest
import xxhash
from small_snapshots import BATCH

from edm_jax import ema
from edm_jax.ema import hashing, rebuild
from edm_jax.foreign import cli, series

ROOT = Path(__file__).parents[2]
ABSENT = [
    "etils",
    "fsspec",
    "ml_dtypes",
    "threadpoolctl",
    "xxhash",
    "jax",
    "flax",
    "orbax",
    "tensorstore",
    "rich",
    "absl",
    "ml_collections",
    "scipy",
    "matplotlib",
    "yaml",
    "torch",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return foreign_files.unpack(tmp_path_factory.mktemp("packages"))


def run(*arguments):
    """A command's status, where only NumPy and safetensors can be imported."""
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({ABSENT}));"
        "from edm_jax.foreign.cli import main; sys.exit(main())"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_checksums_without_xxhash_are_the_same():
    data = np.random.default_rng(0).bytes(70_000)
    for count in [*range(260), *range(1000, 1100), 2047, 2048, 2049, 4096, len(data)]:
        mine = hashing.xxh3_64_hexdigest(data[:count])
        assert mine == xxhash.xxh3_64_hexdigest(data[:count]), count
    parts = hashing.xxh3_64()
    for start in range(0, len(data), 777):
        parts.update(data[start : start + 777])
    assert parts.hexdigest() == xxhash.xxh3_64_hexdigest(data)
    parts.reset()
    assert parts.hexdigest() == xxhash.xxh3_64_hexdigest(b"")


@pytest.mark.slow
def test_numpy_alone_rebuilds_this_packages_snapshots_to_the_same_bytes(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(1, 5):
        for s in (0.05, 0.1):
            meta = ema.SnapshotMeta(ema.PowerProfile(s), 1024 * i, BATCH, "c0ffee")
            tree = {
                "a": {"b": rng.standard_normal((40, 50))},
                "c": rng.standard_normal(3),
            }
            ema.write_snapshot(tmp_path / "snapshots", tree, meta)
    done = run("reconstruct", tmp_path, "--sigma_rel=0.08", "--force")
    assert done.returncode == 0, done.stderr
    [mine] = (tmp_path / "reconstructed").iterdir()
    request = rebuild.Request([(None, ema.PowerProfile(0.08))], max_error=9)
    _, [path] = rebuild.run(tmp_path / "snapshots", request, tmp_path / "whole")
    assert np.array_equal(
        ema.read_snapshot(mine)[0]["c"], ema.read_snapshot(path)[0]["c"]
    )
    assert mine.stat().st_size > 8000


@pytest.mark.slow
def test_numpy_alone_reconstructs_files_of_pytorch(place, tmp_path):
    done = run(
        "reconstruct",
        place / "bfloat16",
        "--sigma_rel=0.2",
        "--profile=uniform:100",
        f"--out={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*.pt"))) == 2
    done = run("info", place / "orbax")
    assert done.returncode == 2 and "pip install tensorstore" in done.stderr
    done = run("info", "s3://bucket/x")
    assert done.returncode == 2 and "object store" in done.stderr


def test_weights_are_converted_there_and_back(place, tmp_path, capsys):
    first = place / "plain/ckpt_400.pt"
    alone, again = tmp_path / "alone.safetensors", tmp_path / "again.msgpack"
    assert cli.main(["convert", str(first), str(alone)]) == 0
    layout = series.read(alone)
    assert layout.read("turned").shape == (2, 3)
    like = ["--like", str(place / "timm/checkpoint-0.pth.tar")]
    assert cli.main(["convert", str(alone), str(tmp_path / "timm.pth.tar"), *like]) == 0
    assert cli.main(["compare", str(tmp_path / "timm.pth.tar"), str(alone)]) == 0
    assert "relative distance 0.000e+00, of 4 arrays" in capsys.readouterr().out
    # A tied or turned array is found by any of its names.
    narrow = place / "safetensors/model-000400.safetensors"
    back = ["convert", str(narrow), str(tmp_path / "x.pt"), "--like", str(first)]
    assert cli.main(back) == 0
    assert (tmp_path / "x.pt").read_bytes() == first.read_bytes()
    other = ["--like", str(place / "flax/400.msgpack")]
    assert cli.main(["convert", str(alone), str(again), *other]) == 2
    assert "has no 'dense.kernel'" in capsys.readouterr().err
    assert not again.exists() and not list(tmp_path.glob(".*"))


def test_distances_are_those_of_the_numbers(place, capsys):
    pair = [str(place / f"safetensors/model-{n:06d}.safetensors") for n in (200, 400)]
    assert cli.main(["compare", *pair]) == 0
    a, b = (foreign_files.walk.weights()[n] for n in (200, 400))
    wanted = np.linalg.norm(a - b) / np.linalg.norm(b)
    assert f"relative distance {wanted:.3e}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["info", "/nowhere"], "There are no files of weights at /nowhere."),
        (["reconstruct", "PLACE/plain"], "No target: add one"),
        (["reconstruct", "PLACE/plain", "--sigma_rel=0.05"], "use --force"),
        (
            ["reconstruct", "PLACE/plain", "--sigma_rel=0.3"],
            "no power-function profile",
        ),
        (["reconstruct", "PLACE/plain", "--sigma_rel=.2", "--nimg=9"], "no file at 9"),
        (
            ["reconstruct", "PLACE/plain", "--sigma_rel=.2", "--out=PLACE/plain/."],
            "holds the files themselves",
        ),
        (["convert", "PLACE/plain/ckpt_40.pt", "x.pt"], "does not end in .safetensors"),
        (["compare", "PLACE/plain/ckpt_40.pt", "PLACE"], "not an Orbax checkpoint"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(place, capsys, arguments, words):
    assert cli.main([each.replace("PLACE", str(place)) for each in arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_a_plan_is_made_and_proposed_before_training(capsys):
    assert cli.main(["plan", "100000", "--sigma_rel=0.05,0.1,0.2", "--files=16"]) == 0
    said = capsys.readouterr().out
    assert "sigma_rel 0.05, 0.1 stored 16 times in float32: 128 bytes" in said
    [stored] = [line for line in said.splitlines() if line.startswith("  0.050 ")]
    assert float(stored.split()[1]) < 1e-12  # a length that is stored itself
    assert cli.main(["plan", "100000", "--sigma_rel=0.05,0.2", "--propose"]) == 0
    proposed = capsys.readouterr().out
    errors = [float(line.split()[1]) for line in proposed.splitlines()[3:]]
    assert errors and max(errors) <= 0.1
    assert cli.main(["plan", "0"]) == 2
    assert "must be 1 or more" in capsys.readouterr().err


def test_info_says_what_the_files_are_and_can_express(place, capsys):
    series_of = [str(place / "ema_pytorch"), "--tracked=0.05,0.28", "--update_every=5"]
    assert cli.main(["info", *series_of]) == 0
    said = capsys.readouterr().out
    assert "20 files of ema-pytorch" in said and "gamma 16.97, every 5" in said
    assert "0.20        1.3e-02" in said
