"""Malicious snapshot files: each is named and left out, whatever its header claims."""

import json
import os
import random
import threading

import numpy as np
import pytest
import xxhash
from small_snapshots import meta, tree

from edm_jax import ema
from edm_jax.ema import container, posthoc, rebuild, snapshots

DEEP = 100_000
SOUND = "power-0.050-000000001024.safetensors"


def write_raw(path, header, data=b"", seal=True):
    """A file with this header (a JSON text or a value) and, if it has a place, a checksum."""
    text = header if isinstance(header, bytes) else compact(header)
    blank = container._field(container.NO_DIGEST)
    if seal and blank in text:
        digest = xxhash.xxh3_64_hexdigest(text)
        text = text.replace(blank, container._field(digest))
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def compact(header):
    return json.dumps(header, separators=(",", ":")).encode()


def parts(path):
    """The header of a snapshot as a value, with a blank checksum, and its data."""
    raw = path.read_bytes()
    count = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + count])
    header["__metadata__"][container.CHECKSUM] = container.NO_DIGEST
    return header, raw[8 + count :]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = snapshots.write(tmp_path_factory.mktemp("sound"), tree(), meta(1024))
    return parts(path)


@pytest.fixture
def place(tmp_path):
    """A directory with one sound snapshot."""
    snapshots.write(tmp_path, tree(), meta(1024))
    return tmp_path


def left_out(directory):
    """The message on the only file that a reconstruction leaves out; strict refuses it."""
    request = rebuild.Request([(None, ema.PowerProfile(0.05))])
    job = rebuild.prepare(directory, request)
    assert [source.path.name for source in job.stored] == [SOUND]
    (damaged,) = job.left_out
    with pytest.raises(ema.Damaged) as caught:
        rebuild.prepare(directory, rebuild.Request(request.targets, strict=True))
    assert str(caught.value) == str(damaged)
    assert "\n" not in str(damaged) and str(damaged).isprintable()
    return str(damaged)


def words(**changed):
    return lambda header: header["__metadata__"].update(changed)


def entry(**changed):
    return lambda header: header["out_gain"].update(changed)


def profile(**fields):
    return words(profile=json.dumps(fields))


def metadata(value):
    return lambda header: header.update({"__metadata__": value})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (metadata(7), "__metadata__ is not an object of texts"),
        (metadata([]), "__metadata__ is not an object of texts"),
        (metadata("text"), "__metadata__ is not an object of texts"),
        (metadata(None), "__metadata__ is not an object of texts"),
        (words(nimg=7), "__metadata__ is not an object of texts"),
        (words(header_checksum=[7]), "__metadata__ is not an object of texts"),
        (words(config_hash="[" * 201), "its config_hash has 201 characters"),
        (words(nimg="1" * 5000), "not a whole number"),
        (words(nimg="9" * 19), "fit in 64 bits"),
        (words(nimg="-1"), "not a whole number"),
        (words(nimg="NaN"), "not a whole number"),
        (words(nimg="1e3"), "not a whole number"),
        (words(nimg="0"), "at least 1 image"),
        (words(update_interval="0"), "at least 1 image"),
        (words(dtype="x" * 500), "choose one of float32"),
        (words(rounded="int8"), "choose one of float32"),
        (words(profile="[" * DEEP), "nested too deeply"),
        (words(profile="null"), "its profile is null"),
        (words(profile="[]"), "its profile is a list"),
        (words(profile='{"a": 1, "a": 2}'), "'a' twice"),
        (words(versions="[]"), "its versions is a list"),
        (words(ancestry="3"), "its ancestry is 3"),
        (words(checksums="{}"), "its checksums is an object"),
        (words(checksums="7"), "its checksums is 7"),
        (words(chunk="1" * 400), "not a whole number"),
        (words(format_version="5"), "reads formats 2 to 4: update edm_jax"),
        (words(format_version="1"), "2 to 4: read it with the edm_jax that wrote it"),
        (words(format_version="new\x1b[2J"), "read it with the edm_jax that wrote it"),
        (words(format="other"), "is not a snapshot of edm_jax"),
        (profile(kind=["power"], sigma_rel=0.05), "its profile is not one of power"),
        (profile(kind="power", sigma_rel="0.05"), "sigma_rel of its power profile"),
        (profile(kind="power", sigma_rel=True), "sigma_rel of its power profile"),
        (profile(kind="power", sigma_rel=[0.05]), "sigma_rel of its power profile"),
        (profile(kind="power", sigma_rel=float("nan")), "no power-function profile"),
        (profile(kind="power"), "fields of its power profile"),
        (profile(kind="power", sigma_rel=0.05, x=1), "fields of its power profile"),
        (profile(kind="function", name=7), "name of its function profile"),
        (profile(kind="function", name="f", function="os.system"), "fields of its"),
        (profile(kind="table", nimg="12", weight=[1, 2]), "nimg of its table"),
        (profile(kind="table", nimg=[[1], 2], weight=[1, 2]), "nimg of its table"),
        (profile(kind="uniform", start_nimg=0, stop_nimg="9"), "stop_nimg of its"),
        (entry(shape=[True]), "the entry of 'out_gain'"),
        (entry(shape=[1.0]), "the entry of 'out_gain'"),
        (entry(shape=[-1, -1]), "the entry of 'out_gain'"),
        (entry(shape=[2**62, 0], data_offsets=[0, 0]), "the entry of 'out_gain'"),
        (entry(shape=[10**30]), "beyond 64 bits"),
        (entry(shape=[1] * 200), "the entry of 'out_gain'"),
        (entry(shape="11"), "the entry of 'out_gain'"),
        (entry(shape=None), "the entry of 'out_gain'"),
        (entry(data_offsets=[0]), "the entry of 'out_gain'"),
        (entry(data_offsets=[-4, 0]), "the entry of 'out_gain'"),
        (entry(data_offsets=[False, 4]), "the entry of 'out_gain'"),
        (entry(data_offsets=[0, 2**62]), "the place of"),
        (entry(dtype=4), "the entry of 'out_gain'"),
        (entry(dtype="F8_E4M3"), "has the format 'F8_E4M3', not F32"),
        (entry(dtype="I32"), "do not match its dtype"),
        (lambda h: h.update({"a\x1b[2J\n": 1}), r"the entry of 'a\x1b[2J\n'"),
        (lambda h: h.update({"enc": h.pop("out_gain")}), "'enc' has an empty part"),
        (lambda h: h.update({"": h.pop("out_gain")}), "'' has an empty part"),
        (lambda h: h.update({"\ud800": h.pop("out_gain")}), "not valid Unicode"),
    ],
)
def test_a_hostile_header_is_left_out_and_told_in_one_line(
    place, sound, change, reason
):
    header, data = json.loads(json.dumps(sound[0])), sound[1]
    change(header)
    write_raw(place / "bad.safetensors", header, data)
    said = left_out(place)
    assert str(place / "bad.safetensors") in said
    assert reason in said and len(said) < 600


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"null",
        b"7",
        b'"text"',
        b"[" * DEEP + b"]" * DEEP,
        b'{"a":' * DEEP + b"1" + b"}" * DEEP,
        b'{"__metadata__":' + b"[" * DEEP,
        b'{"\xff": 1}',
        b'{"a": 1, "a": 2}',
        b'{"a": NaN}',
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda header: header[:20],
)
def test_a_header_that_does_not_describe_arrays_is_left_out(place, header):
    write_raw(place / "bad.safetensors", header, b"0000")
    assert "bad.safetensors" in left_out(place)


def test_a_name_with_control_characters_is_printed_as_escapes(place):
    (place / "\x1b[2Jbad\udcff.safetensors").write_bytes(b"")
    assert r"\x1b[2Jbad\udcff.safetensors" in left_out(place)


def make_pipe(path):
    os.mkfifo(path)


def make_loop(path):
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_pipe, "is a named pipe, not a file"),
        (make_loop, "cannot be read"),
        (lambda path: path.mkdir(), "is a directory, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
        (lambda path: path.symlink_to("gone"), "There is no snapshot"),
        (lambda path: path.write_bytes(b""), "0 bytes"),
    ],
)
def test_anything_but_a_readable_file_is_left_out_at_once(place, make, reason):
    make(place / "bad.safetensors")
    assert reason in left_out(place)
    bad = place / "bad.safetensors"
    with pytest.raises((ema.Damaged, FileNotFoundError), match="bad.safetensors"):
        snapshots.read(bad)  # as sample.py does with --weights


@pytest.mark.parametrize("how", ["removed", "pipe", "cut", "other"])
def test_a_snapshot_swapped_while_it_is_read_is_left_out(tmp_path, how):
    stored = tmp_path / "in"
    for nimg in (1024, 2048, 3072):
        for sigma_rel in (0.05, 0.10):
            snapshots.write(stored, tree(nimg), meta(nimg, sigma_rel))
    request = rebuild.Request([(None, ema.PowerProfile(0.07))], max_error=1e9)
    job = rebuild.prepare(stored, request)
    bad = stored / "power-0.050-000000002048.safetensors"
    data = bad.read_bytes()
    bad.unlink()
    if how == "pipe":
        os.mkfifo(bad)
    elif how != "removed":
        bad.write_bytes(data[:-8] if how == "cut" else data[:-8] + bytes(8))
    told = []
    again, _ = rebuild.run(
        stored,
        request,
        tmp_path / "out",
        on_damage=lambda e, _: told.append(e),
        job=job,
    )
    assert [each.path.name for each in again.left_out] == [bad.name]
    assert again.left_out == told
    with pytest.raises(ema.Damaged, match=bad.name):
        rebuild.run(
            stored,
            rebuild.Request(request.targets, max_error=1e9, strict=True),
            tmp_path / "strict",
            job=job,
        )


LEAVES = [
    None, True, -1, 0, 1, 2**62, 10**30, 0.5, float("nan"), float("inf"), "", "F32",
    "F64", "power", "\ud800", "\x1b[2J", "a/b", "/", [], {}, [0, 4], [[]], [True], {"": 1},
    "9" * 400, "[" * 5000, "null", "{}", "[]", '{"kind": "power"}', "2", "3",
]  # fmt: skip


def mutate(rng, value):
    """The value with one change at any depth."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(list(value))
        action = rng.random()
        if action < 0.1:
            return {k: v for k, v in value.items() if k != name}
        if action < 0.2:
            odd = rng.choice(["", "a/b", "\x00", "\ud800", "enc", "n" * 999])
            return value | {odd: value[name]}
        return value | {name: mutate(rng, value[name])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        i = rng.randrange(len(value))
        return [*value[:i], mutate(rng, value[i]), *value[i + 1 :]]
    if isinstance(value, str) and value[1:2] == '"' and rng.random() < 0.7:
        return json.dumps(mutate(rng, json.loads(value)))
    return rng.choice(LEAVES)


@pytest.mark.slow
def test_random_changes_of_a_header_raise_damaged_and_nothing_else(tmp_path, sound):
    path, survived = tmp_path / "bad.safetensors", 0
    for seed in range(1500):
        rng = random.Random(seed)
        header, data = sound
        for _ in range(rng.randint(1, 3)):
            header = mutate(rng, header)
        text = compact(header)
        if rng.random() < 0.2:
            text = bytearray(text)
            text[rng.randrange(len(text))] = rng.randrange(256)
        write_raw(path, bytes(text), data, seal=rng.random() < 0.95)
        try:
            params, found = snapshots.read(path)
            # What is accepted can be used as any other.
            posthoc.from_files(
                [snapshots.open_snapshot(path)], [(found.nimg, found.profile)]
            )
            assert snapshots.flatten(params) and found.filename
            survived += 1
        except ema.Damaged as error:
            assert str(error).isprintable() and len(str(error)) < 2000, seed
        except ValueError as error:
            # A sound header that does not serve: of another profile, or a reconstruction.
            assert "reconstruct" in str(error), (seed, error)
    assert 10 < survived < 750  # of most headers something is wrong


def test_listing_snapshots_never_waits_for_a_pipe(place):
    make_pipe(place / "bad.safetensors")
    done = threading.Thread(target=snapshots.scan, args=(place,), daemon=True)
    done.start()
    done.join(10)
    assert not done.is_alive()


@pytest.mark.parametrize(
    "note",
    [
        b"", b"null", b"[]", b"7", b"\xff", b"[" * DEEP, b'{"job": 1}', b'{"job": "J"}',
        b'{"job": "J", "chunks": []}', b'{"job": "J", "chunks": {"x": 1}}',
        b'{"job": "J", "chunks": {"0": {"0": "0000000000000000"}}}',
    ],
)  # fmt: skip
def test_a_damaged_journal_is_ignored(tmp_path, monkeypatch, note):
    for sigma_rel in (0.05, 0.10):
        snapshots.write(tmp_path / "in", tree(), meta(1024, sigma_rel))
    request = rebuild.Request([(None, ema.PowerProfile(0.07))], max_error=1e9)
    job, (path,) = rebuild.run(tmp_path / "in", request, tmp_path / "out")
    whole = path.read_bytes()
    # As a kill leaves it: the partial file is there in full length, its data is not.
    path.rename(path.with_name(f".{path.name}.partial"))
    path.with_name(f".{path.name}.partial").write_bytes(bytes(len(whole)))
    key = rebuild.Journal(job.metas, path.parent)._key.encode()
    journal = path.with_name(".reconstruct.journal.partial")
    journal.write_bytes(note.replace(b'"J"', b'"' + key + b'"'))
    rebuild.run(tmp_path / "in", request, tmp_path / "out")
    assert path.read_bytes() == whole
    snapshots.read(path)


@pytest.mark.parametrize("name", ["journal", "partial"])
def test_a_pipe_with_the_name_of_a_partial_file_is_not_waited_for(tmp_path, name):
    snapshots.write(tmp_path / "in", tree(), meta(1024))
    request = rebuild.Request([(None, ema.PowerProfile(0.05))])
    (tmp_path / "out").mkdir()
    if name == "journal":
        os.mkfifo(tmp_path / "out" / ".reconstruct.journal.partial")
        rebuild.run(tmp_path / "in", request, tmp_path / "out")
        return
    os.mkfifo(tmp_path / "out" / f".{SOUND}.partial")
    with pytest.raises(ValueError, match="is a named pipe, not a file: remove it"):
        rebuild.run(tmp_path / "in", request, tmp_path / "out")


@pytest.mark.parametrize(
    "ancestry",
    ["{}", '{"inputs": 3}', '{"inputs": [3]}', '{"inputs": [{"coefficient": "x"}]}'],
)
def test_an_output_with_a_false_ancestry_is_made_again(tmp_path, ancestry):
    snapshots.write(tmp_path / "in", tree(), meta(1024))
    request = rebuild.Request([(None, ema.PowerProfile(0.05))])
    _, (path,) = rebuild.run(tmp_path / "in", request, tmp_path / "out")
    whole = path.read_bytes()
    header, data = parts(path)
    header["__metadata__"]["ancestry"] = ancestry
    write_raw(path, header, data)
    rebuild.run(tmp_path / "in", request, tmp_path / "out")
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", ["lr=0.1 [big]", "a*b", "what?", "{x}"])
def test_a_directory_is_a_path_and_not_a_pattern(tmp_path, name):
    for place, value in ((name, 1.0), ("aXb", 2.0), ("whatX", 3.0), ("lr=0.1 b", 4.0)):
        snapshots.write(tmp_path / place, {"w": np.full(3, value)}, meta())
    (found,) = snapshots.list_snapshots(tmp_path / name)
    assert snapshots.read(found.path)[0]["w"][0] == 1.0
    request = rebuild.Request([(None, ema.PowerProfile(0.05))])
    _, (path,) = rebuild.run(tmp_path / name, request, tmp_path / name / "out")
    assert snapshots.read(path)[0]["w"][0] == 1.0
