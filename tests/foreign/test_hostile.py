"""Malicious and damaged files of other formats: one sentence each, and nothing is run."""

import io
import os
import pickle
import random
import struct
import tracemalloc
import zipfile
from pathlib import Path

import foreign_files
import pytest

from edm_jax import ema
from edm_jax.files import Damaged
from edm_jax.foreign import rebuild, series
from edm_jax.original import pickles

SAMPLES = {
    "torch": "timm/checkpoint-9.pth.tar",
    "legacy": "legacy/400.pth",
    "flax": "flax/400.msgpack",
    "safetensors": "safetensors/model-000400.safetensors",
}
LIMIT = 2**26  # bytes of memory for files of a few kB


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return foreign_files.unpack(tmp_path_factory.mktemp("packages"))


def refusal(path):
    """The sentence that a file is refused with, '' if it is read; within bounds."""
    tracemalloc.start()
    try:
        layout = series.read(path)
        layout.averaging(tuple(layout.arrays))
        for name in layout.arrays:
            layout.read(name)
    except ValueError as error:
        said = str(error)
        assert "\n" not in said and said.isprintable() and len(said) < 600, said
        assert str(path) in said
        return said
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < LIMIT
    return ""


class Bomb:
    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def archive(members, compression=zipfile.ZIP_STORED):
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", compression) as to:
        for name, data in members.items():
            to.writestr(name, data)
    return raw.getvalue()


def tensor_pickle(numel=6, shape=(2, 3), strides=(3, 1), storage="FloatStorage"):
    """data.pkl of {'w': tensor}, as torch.save writes it."""
    numbers = [pickle.dumps(x, 2)[2:-1] for x in (0, shape, strides)]
    claim = (
        b"(X\x07\0\0\0storagectorch\n"
        + storage.encode()
        + b"\nX\x01\0\0\x000X\x03\0\0\0cpu"
    )
    claim += pickle.dumps(numel, 2)[2:-1] + b"tQ"
    inside = claim + b"".join(numbers) + b"\x89ccollections\nOrderedDict\n)R"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + inside + b"tR"
    return b"\x80\x02}X\x01\0\0\0w" + call + b"s."


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare"])
def test_code_in_a_pickle_is_not_run(tmp_path, kind):
    bomb = Bomb()
    bomb.mark = tmp_path / "run"
    evil = pickle.dumps({"w": bomb}, 2)
    head = b"".join(
        pickle.dumps(x, 2)
        for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    )
    data = {"zip": archive({"a/data.pkl": evil}), "legacy": head + evil, "bare": evil}[
        kind
    ]
    path = tmp_path / "evil.pt"
    path.write_bytes(data)
    assert "names the global" in refusal(path) or kind == "bare" and refusal(path)
    assert not bomb.mark.exists()


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"a/data.pkl": tensor_pickle(), "a/data/0": b"\0" * 24}, ""),
        ({"a/data.pkl": tensor_pickle(), "a/data/0": b"\0" * 20}, "claims 6 numbers"),
        ({"a/data.pkl": tensor_pickle()}, "lacks the storage"),
        (
            {"a/data.pkl": tensor_pickle(shape=(3, 3)), "a/data/0": b"\0" * 24},
            "beyond its",
        ),
        (
            {"a/data.pkl": tensor_pickle(strides=(0, 1)), "a/data/0": b"\0" * 24},
            "beyond",
        ),
        (
            {"a/data.pkl": tensor_pickle(10**18), "a/data/0": b"\0" * 24},
            "claims 10000000",
        ),
        ({"a/data.pkl": tensor_pickle(storage="X"), "a/data/0": b"\0" * 24}, "torch.X"),
        ({"a/data.pkl": b"\x80\x02" + b"]" * 10 + b"."}, "stops half way"),
        ({"a/data.pkl": b"\x80\x02" + b"(" * 20_000}, "more than 10000 operations"),
        ({"a/data.pkl": b"\x80\x02]q\0h\0a."}, "no floating-point"),
        ({"a/other": b""}, "without data.pkl"),
    ],
)
def test_claims_of_an_archive_are_checked(tmp_path, members, words, monkeypatch):
    monkeypatch.setattr(pickles, "CHECKPOINT_OPERATIONS", 10_000)
    path = tmp_path / "x.pt"
    path.write_bytes(archive(members))
    assert words in refusal(path)


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(archive({"a/data.pkl": b"\0" * 2**24}, zipfile.ZIP_DEFLATED))
    assert "compressed" in refusal(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x81" + b"\xa1a\x81" * 10_000, "nested too deeply"),
        (b"\xdf" + struct.pack(">I", 2**32 - 1) + b"\xa1a\x01", "ends too early"),
        (b"\x81\xa1a\xdd" + struct.pack(">I", 2**31) + b"\x01" * 5_000, "too early"),
        (
            b"\x81\xa1a\xc7\x0b\x01\x93\x91\xce\xff\xff\xff\xff\xa7float32\xc4\x00",
            "shape",
        ),
        (b"\x82\xa1a\x01\xa1a\x02", "not different"),
        (b"\x81\xa1a\xdb" + struct.pack(">I", 2**30), "text is too long"),
        (b"\x81\xa1a\x01\x00", "more or other things"),
        (b"\x81\xa1a\xc1", "no value begins with 0xc1"),
    ],
)
def test_claims_of_msgpack_are_checked(tmp_path, data, words):
    path = tmp_path / "x.msgpack"
    path.write_bytes(data)
    assert words in refusal(path)


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize("kind", SAMPLES)
def test_any_damage_is_one_sentence(place, tmp_path, kind):
    sound = (place / SAMPLES[kind]).read_bytes()
    path, rng = tmp_path / Path(SAMPLES[kind]).name, random.Random(0)
    said = set()
    for case in range(150):
        data = bytearray(sound)
        if case % 3 == 0:
            del data[rng.randrange(len(data)) :]
        else:
            for _ in range(1 + case % 4):
                data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        said.add(refusal(path))
    assert len(said) > 5


def test_a_damaged_orbax_checkpoint_is_named(place, tmp_path):
    import shutil

    bad = tmp_path / "160"
    shutil.copytree(place / "orbax/160", bad)
    meta = bad / "default/_METADATA"
    sound = meta.read_text()
    meta.write_text(sound.replace("'kernel'", "'k'").replace('"kernel"', '"k"'))
    assert "lacks 'dense.k'" in refusal(bad)
    meta.write_text(sound.replace('"kernel"', '"../../../k"'))
    assert "outside of its directory" in refusal(bad)
    meta.write_text("[]")
    assert "not a JSON object" in refusal(bad)


def test_what_is_no_file_of_weights_is_left_out_and_named(place, tmp_path):
    for path in (place / "plain").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "ckpt_999.pt").write_bytes(b"not weights")
    os.mkfifo(tmp_path / "ckpt_1000.pt")
    found = series.open_series(tmp_path)
    assert len(found.stored) == 10
    names = {error.path.name for error in found.left_out}
    assert names == {"ckpt_999.pt", "ckpt_1000.pt"}


def test_nothing_is_left_behind_where_weights_are_not_finite(place, tmp_path):
    inputs, out = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    for path in (place / "plain").iterdir():
        (inputs / path.name).write_bytes(path.read_bytes())
    layout = series.read(inputs / "ckpt_200.pt")
    with open(layout.path, "r+b") as file:
        file.seek(layout.arrays["model.0.weight"].offset)
        file.write(b"\x00\x00\xc0\x7f")
    job = rebuild.prepare(
        series.open_series(inputs), [(None, ema.UniformProfile(0))], 10
    )
    with pytest.raises(
        ValueError, match=r"ckpt_200.pt holds weights that are not finite"
    ):
        rebuild.run(job, out)
    assert not list(out.iterdir())


def test_files_of_other_weights_are_not_averaged_together(place, tmp_path):
    for path in (place / "legacy").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "440.pth").write_bytes(
        (place / "timm/checkpoint-9.pth.tar").read_bytes()
    )
    with pytest.raises(ValueError, match="different formats"):
        series.open_series(tmp_path)
    (tmp_path / "440.pth").write_bytes((place / "plain/ckpt_400.pt").read_bytes())
    with pytest.raises(ValueError, match=r"440.pth holds weights of other names"):
        series.open_series(tmp_path, series.Settings(time="{time}.pth"))
    with pytest.raises(Damaged):
        series.open_series(Path("/dev/null"))
