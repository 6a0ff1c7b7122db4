"""Snapshots on disk: they are read as written, and damaged ones are named."""

import os

import numpy as np
import pytest
import safetensors.numpy
from small_snapshots import BATCH, meta, tree

from edm_jax import ema
from edm_jax.ema import container, snapshots


@pytest.fixture
def small_chunks(monkeypatch):
    """Checksums over 100 elements, so that small files have several."""
    monkeypatch.setattr(snapshots, "CHUNK", 100)


@pytest.mark.parametrize(
    ("dtype", "roundoff"),
    [("float32", 2.0**-24), ("float16", 2.0**-11), ("bfloat16", 2.0**-8)],
)
def test_a_snapshot_reads_back_as_it_was_rounded(
    tmp_path, small_chunks, dtype, roundoff
):
    path = snapshots.write(tmp_path, tree(), meta(dtype=dtype))
    params, header = snapshots.read(path)
    opened = snapshots.open_snapshot(path)
    assert header == meta(dtype=dtype) == opened.meta
    assert len(opened.digests) == 3
    assert header.unit_roundoff == roundoff
    flat, expected = snapshots.flatten(params), snapshots.flatten(tree())
    assert flat.keys() == expected.keys() == {"enc/conv/kernel", "out_gain"}
    for name, leaf in flat.items():
        assert leaf.dtype == np.float32
        assert leaf.shape == expected[name].shape
        np.testing.assert_allclose(leaf, expected[name], rtol=1.001 * roundoff)


def mixed_tree():
    """Weights that float16 holds exactly, and two that it does not, first and last."""
    rng = np.random.default_rng(1)
    half = rng.standard_normal((3, 3, 4, 8)).astype(np.float16)
    wide = rng.standard_normal(150).astype(np.float32)
    leaves = {"freqs": wide, "kernel": half, "phases": wide[::-1]}
    return {"a": leaves, "b": half[0], "freqs": wide[:7]}


EXACT = {"a/freqs", "a/phases", "freqs"}


def test_leaves_may_stay_float32_beside_shorter_ones(tmp_path, small_chunks):
    shorter = meta(dtype="float16")
    path = snapshots.write(tmp_path / "mixed", mixed_tree(), shorter, exact=EXACT)
    expected = snapshots.flatten(mixed_tree())
    params, header = snapshots.read(path)
    assert header == shorter and header.unit_roundoff == 2.0**-11
    flat = snapshots.flatten(params)
    for name, leaf in flat.items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, expected[name])
    # As the safetensors library sees them.
    for name, leaf in safetensors.numpy.load_file(path).items():
        assert leaf.dtype == (np.float32 if name in EXACT else np.float16)
        np.testing.assert_array_equal(leaf, expected[name])
    opened = snapshots.open_snapshot(path)
    elements = sum(leaf.size for leaf in expected.values())
    assert path.stat().length == opened.data_start + 2 * elements + 2 * 307
    for start in range(0, elements - 120, 13):  # across the borders between formats
        out = np.empty(120, opened.dtype)
        opened.read(start, out)
        whole = np.concatenate([flat[name].ravel() for name in sorted(flat)])
        np.testing.assert_array_equal(out, whole[start : start + 120])


def test_rebuilt_weights_do_not_depend_on_how_exactly_leaves_are_stored(
    tmp_path, small_chunks
):
    for nimg in range(1024, 9 * 1024, 1024):
        for sigma_rel in (0.05, 0.10):
            for name, exact, dtype in (
                ("mixed", EXACT, "float16"),
                ("wide", (), "float32"),
            ):
                header = meta(nimg, sigma_rel, dtype)
                snapshots.write(tmp_path / name, mixed_tree(), header, exact=exact)
    mixed, wide = (
        ema.reconstruct(tmp_path / name, [0.08], max_error=1)[0.08].params
        for name in ("mixed", "wide")
    )
    for name, leaf in snapshots.flatten(mixed).items():
        np.testing.assert_allclose(leaf, snapshots.flatten(wide)[name], rtol=1e-6)


def test_damage_to_any_byte_of_mixed_formats_is_found(tmp_path, small_chunks):
    header = meta(dtype="float16")
    path = snapshots.write(tmp_path, mixed_tree(), header, exact=EXACT)
    whole = path.read_bytes()
    start = snapshots.open_snapshot(path).data_start
    for place in range(start, len(whole), 29):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(bytes(changed))
        with pytest.raises(ema.Damaged, match="do not match their checksum"):
            snapshots.read(path)


def test_only_mixed_formats_need_a_newer_reader(tmp_path):
    for exact, version in (((), "2"), (EXACT, "3")):
        header = meta(dtype="float16")
        path = snapshots.write(tmp_path, mixed_tree(), header, exact=exact)
        words = container.read_header(path).words
        assert words["format_version"] == version


def test_the_safetensors_library_reads_a_snapshot(tmp_path):
    path = snapshots.write(tmp_path, tree(), meta())
    arrays = safetensors.numpy.load_file(path)
    expected = snapshots.flatten(tree())
    assert arrays.keys() == expected.keys()
    for name, leaf in arrays.items():
        np.testing.assert_array_equal(leaf, expected[name].astype(np.float32))
    with safetensors.safe_open(path, framework="np") as file:
        assert file.metadata()["nimg"] == "4096"


def test_a_snapshot_knows_its_libraries_and_a_coarser_format_it_went_through(tmp_path):
    path = snapshots.write(tmp_path, tree(), meta(rounded="float16"))
    found = snapshots.open_snapshot(path).meta
    assert {"python", "numpy", "jax"} <= found.versions.keys()
    assert found.versions["numpy"] == np.__version__
    assert found.unit_roundoff == 2.0**-11


@pytest.mark.parametrize(
    ("profile", "name"),
    [
        (ema.PowerProfile(0.05), "power-0.050-000000065536"),
        (ema.PowerProfile(0.0504), "power-0.0504-000000065536"),
        (ema.TraditionalProfile(50, 0.05), "traditional-50.000-000000065536"),
        (ema.UniformProfile(1024, 2048), "uniform-1024-2048-000000065536"),
        (ema.UniformProfile(1024), "uniform-1024-000000065536"),
        (ema.FunctionProfile("late half"), "function-late-half-000000065536"),
    ],
)
def test_the_file_name_tells_profile_and_nimg(tmp_path, profile, name):
    wanted = ema.SnapshotMeta(profile, 65536, BATCH, "c0ffee")
    path = snapshots.write(tmp_path, tree(), wanted)
    assert path.name == name + ".safetensors"
    assert snapshots.open_snapshot(path).meta == wanted


def test_tables_of_other_weights_have_other_names():
    labels = {ema.TableProfile((0, 5), (1, w)).label for w in (1, 2, 2.5)}
    assert len(labels) == 3 and all(label.startswith("table-") for label in labels)


def test_the_header_and_not_the_name_says_what_a_snapshot_is(tmp_path):
    path = snapshots.write(tmp_path, tree(), meta(nimg=1024))
    path.rename(tmp_path / "a.safetensors")
    snapshots.write(tmp_path, tree(), meta(nimg=512))
    found = snapshots.list_snapshots(tmp_path)
    assert [each.meta.nimg for each in found] == [512, 1024]


def test_weights_keep_their_order_when_stored_from_a_transposed_view(tmp_path):
    kernel = np.arange(6.0).reshape(2, 3).T
    path = snapshots.write(tmp_path, {"kernel": kernel}, meta())
    np.testing.assert_array_equal(snapshots.read(path)[0]["kernel"], kernel)


@pytest.mark.parametrize("failing", ["fsync", "replace", "pwrite"])
def test_an_interrupted_write_leaves_the_directory_as_it_was(
    tmp_path, monkeypatch, failing
):
    path = snapshots.write(tmp_path, tree(), meta())
    before = path.read_bytes()

    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space"):
        snapshots.write(tmp_path, tree(scale=2.0), meta())
    monkeypatch.undo()
    assert snapshots.list_snapshots(tmp_path)[0].path == path
    assert path.read_bytes() == before
    # What was left half-written is no obstacle.
    snapshots.write(tmp_path, tree(scale=2.0), meta())
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_others_may_read_a_snapshot_where_the_umask_lets_them(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    path = snapshots.write(tmp_path, tree(), meta())
    assert os.stat(path).st_mode == plain.stat().st_mode


@pytest.mark.parametrize("size", [0, 5, 100, 1500, -1])
def test_a_truncated_snapshot_is_named(tmp_path, size):
    path = snapshots.write(tmp_path, tree(), meta())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ema.Damaged, match=f"{path.name} is damaged"):
        snapshots.list_snapshots(tmp_path)


def test_every_flipped_bit_is_noticed(tmp_path, small_chunks):
    path = snapshots.write(tmp_path, tree(), meta())
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.choice(len(whole), 300, replace=False):
        torn = bytearray(whole)
        torn[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(torn)
        with pytest.raises(ema.Damaged, match=path.name):
            snapshots.read(path)


def test_a_scan_tells_snapshots_from_other_files(tmp_path):
    good = snapshots.write(tmp_path, tree(), meta(1024))
    torn = snapshots.write(tmp_path, tree(), meta(2048))
    torn.write_bytes(torn.read_bytes()[:-4])
    safetensors.numpy.save_file({"a": np.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "notes.txt").write_text("not looked at")
    listing = snapshots.scan(tmp_path)
    assert [each.path for each in listing.snapshots] == [good]
    assert sorted(each.path.name for each in listing.damaged) == [
        "other.safetensors",
        torn.name,
    ]


def test_directories_and_dangling_links_are_left_out(tmp_path):
    snapshots.write(tmp_path, tree(), meta(1024))
    (tmp_path / "directory.safetensors").mkdir()
    (tmp_path / "nowhere.safetensors").symlink_to(tmp_path / "gone")
    listing = snapshots.scan(tmp_path)
    assert len(listing.snapshots) == 1
    assert sorted(each.path.name for each in listing.damaged) == [
        "directory.safetensors",
        "nowhere.safetensors",
    ]


@pytest.mark.parametrize(
    "header",
    ["[" * 100_000, '{"a":{"dtype":"F32","shape":[1e400],"data_offsets":[0,4]}}'],
)
def test_a_hostile_header_is_named(tmp_path, header):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"0000")
    with pytest.raises(ema.Damaged, match="bad.safetensors is "):
        snapshots.open_snapshot(path)


def test_a_foreign_safetensors_file_is_named(tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(2)}, path)
    with pytest.raises(ema.Damaged, match="other.safetensors is not a snapshot"):
        snapshots.read(path)


def rewrite(path, **words):
    """The same file with other metadata in its header, and a matching checksum."""
    header = container.read_header(path)
    data = path.read_bytes()[header.data_start :]
    text = container.encode(header.table, header.formats, header.words | words)
    path.write_bytes(text + data)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("nimg", "many", "damaged snapshot header"),
        ("profile", '{"kind": "cosine"}', "damaged snapshot header"),
        ("profile", '{"kind": "power", "sigma_rel": 0.5}', "damaged snapshot header"),
        ("checksums", "[]", "checksums for chunks of another size"),
        ("dtype", "float16", "damaged snapshot header"),
        ("format_version", "1", "has snapshot format 1"),
        ("format", "other", "is not a snapshot"),
    ],
)
def test_an_invalid_header_is_named(tmp_path, key, value, message):
    path = snapshots.write(tmp_path, tree(), meta())
    rewrite(path)
    assert snapshots.read(path)[1] == meta()
    rewrite(path, **{key: value})
    with pytest.raises(ema.Damaged, match=path.name) as error:
        snapshots.open_snapshot(path)
    assert message in str(error.value)


def test_missing_places_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no directory of snapshots"):
        snapshots.list_snapshots(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no snapshot at"):
        snapshots.read(tmp_path / "none.safetensors")


def test_what_cannot_be_stored_is_refused(tmp_path):
    with pytest.raises(ValueError, match="too large for float16"):
        snapshots.write(tmp_path, {"w": np.array([1e6])}, meta(dtype="float16"))
    with pytest.raises(ValueError, match="contain '/'"):
        snapshots.write(tmp_path, {"a/b": np.zeros(2)}, meta())
    with pytest.raises(ValueError, match="have the name .__metadata__"):
        snapshots.write(tmp_path, {"__metadata__": np.zeros(2)}, meta())
    with pytest.raises(ValueError, match="w holds complex128"):
        snapshots.write(tmp_path, {"w": np.zeros(2, complex)}, meta())
    with pytest.raises(ValueError, match="choose one of float32"):
        meta(dtype="int8")
    with pytest.raises(ValueError, match="at least 1 image"):
        meta(nimg=0)
    assert not list(tmp_path.iterdir())


def test_snapshots_live_on_an_object_store_as_well(bucket, small_chunks):
    for nimg in (1024, 2048):
        for sigma_rel in (0.05, 0.10):
            snapshots.write(f"{bucket}/snapshots", tree(nimg), meta(nimg, sigma_rel))
    found = snapshots.list_snapshots(f"{bucket}/snapshots")
    assert [each.meta.nimg for each in found] == [1024, 1024, 2048, 2048]
    params = ema.reconstruct(f"{bucket}/snapshots", [0.1])[0.1].params
    expected = tree(2048)["enc"]["conv"]["kernel"].astype(np.float32)
    np.testing.assert_array_equal(params["enc"]["conv"]["kernel"], expected)
