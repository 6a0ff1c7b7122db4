"""Checkpoints are restored bit for bit, or refused as damaged; never a wrong number."""

import functools
import itertools
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from edm_jax.train import checkpoint, parallel
from edm_jax.train.checkpoint import Checkpoints
from edm_jax.train.step import TrainState

EXTRA = {"unlogged": [{"loss": 0.1 + 0.2}], "monitor": {"grown": [], "best": None}}


def toy_state(step):
    """A little of everything: every bit pattern that a float32 can have, and counts."""
    rng = np.random.default_rng(step)
    odd = np.array(
        # quiet and signalling NaN, -0, the smallest denormals, infinities
        [0x7FC00001, 0x7F800001, 1 << 31, 1, (1 << 31) + 1, 0x7F800000, 0xFF800000, 0],
        np.uint32,
    )

    def bits(*shape):
        return rng.integers(0, 2**32, shape, np.uint32).view(np.float32)

    return TrainState(
        np.int32(step),
        np.array([2**32 - 1, step], np.uint32),
        {"a": {"kernel": bits(64, 64), "bias": odd.view(np.float32), "gain": bits()}},
        (np.int32(-step), {"mu": bits(3, 64)}),
        {"power_0.1": {"kernel": bits(24, 8)}},
    )


def sharding(layout, leaf):
    if layout == "one device":
        return SingleDeviceSharding(jax.devices()[3])
    mesh = parallel.make_mesh(jax.devices())
    axes = [i for i, size in enumerate(leaf.shape) if size % 8 == 0]
    spread = layout == "sharded" and axes
    spec = PartitionSpec(*[None] * axes[0], "shards") if spread else PartitionSpec()
    return NamedSharding(mesh, spec)


LAYOUTS = ["one device", "replicated", "sharded"]


def laid_out(state, layout):
    return jax.tree.map(lambda x: jax.device_put(x, sharding(layout, x)), state)


def shapes_of(state, layout="replicated"):
    def struct(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(layout, x))

    return jax.tree.map(struct, state)


def store(path, *steps, layout="replicated", **options):
    checkpoints = Checkpoints(path, **options)
    for step in steps:
        checkpoints.save(step, laid_out(toy_state(step), layout), EXTRA)
    checkpoints.close()


def restore(path, layout="replicated", **options):
    checkpoints = Checkpoints(path, **options)
    try:
        return checkpoints.restore(shapes_of(toy_state(0), layout))
    finally:
        checkpoints.close()


def names(path):
    return sorted(place.name for place in path.iterdir())


def assert_is_step(found, step):
    """Asserts equality with that state, bit for bit."""
    assert found.step == step
    leaves = jax.tree_util.tree_leaves_with_path(toy_state(step))
    for (name, a), b in zip(leaves, jax.tree.leaves(found.state), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), name


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Checkpoints of steps 10 and 20; not to be changed."""
    path = tmp_path_factory.mktemp("stored") / "checkpoints"
    store(path, 10, 20)
    return path


@pytest.fixture
def pair(stored, tmp_path):
    """A copy of these that may be changed."""
    return shutil.copytree(stored, tmp_path / "checkpoints")


def files_of(path, step=20):
    places = sorted((path / str(step)).rglob("*"))
    return [place.relative_to(path) for place in places if place.is_file()]


def flip(place, at):
    data = bytearray(place.read_bytes())
    data[at // 8] ^= 1 << at % 8
    place.write_bytes(data)


# What comes back


def test_nothing_is_restored_where_nothing_was_saved(tmp_path):
    assert restore(tmp_path / "checkpoints") is None


def test_a_state_and_its_extra_fields_come_back_bit_for_bit(stored):
    found = restore(stored)
    assert_is_step(found, 20)
    assert {name: found.extra[name] for name in EXTRA} == EXTRA
    assert isinstance(found.state, TrainState) and isinstance(
        found.state.opt_state, tuple
    )


@pytest.mark.parametrize("saved", LAYOUTS)
@pytest.mark.parametrize("wanted", LAYOUTS)
def test_a_state_is_restored_into_another_layout_to_the_bit(tmp_path, saved, wanted):
    store(tmp_path, 10, layout=saved)
    found = restore(tmp_path, layout=wanted)
    assert_is_step(found, 10)
    for wish, leaf in zip(
        jax.tree.leaves(shapes_of(toy_state(0), wanted)),
        jax.tree.leaves(found.state),
        strict=True,
    ):
        assert leaf.sharding == wish.sharding
    if wanted == "sharded":
        assert found.state.params["a"]["kernel"].addressable_data(5).shape == (8, 64)


def test_the_same_step_is_written_once(pair):
    before = {file: (pair / file).stat().st_mtime_ns for file in files_of(pair)}
    checkpoints = Checkpoints(pair)
    state = checkpoints.restore(shapes_of(toy_state(0))).state
    checkpoints.save(20, state, {})  # another `extra` would show
    checkpoints.save(30, state, EXTRA)
    checkpoints.save(30, state, {})
    checkpoints.close()
    assert {file: (pair / file).stat().st_mtime_ns for file in files_of(pair)} == before
    assert {*EXTRA} < restore(pair).extra.keys()


@pytest.mark.parametrize("parts", [1, 3])
def test_the_last_are_kept_and_the_first_at_or_after_every_multiple(tmp_path, parts):
    # Also where the run was resumed in between.
    for steps in np.array_split(range(8, 80, 8), parts):
        store(tmp_path, *steps.tolist(), keep=2, keep_every=20.0)
    assert names(tmp_path) == ["24", "40", "64", "72"]


def test_without_a_multiple_only_the_last_are_kept(tmp_path):
    store(tmp_path, 1, 2, 3, 4, keep=3)
    assert names(tmp_path) == ["2", "3", "4"]


# Damage


def empty(place):
    place.write_bytes(b"")


def cut_in_half(place):
    place.write_bytes(place.read_bytes()[: place.stat().st_size // 2])


def cut_off_the_last_byte(place):
    place.write_bytes(place.read_bytes()[:-1])


def overwrite_with_zeros(place):
    place.write_bytes(bytes(place.stat().st_size))


def flip_a_bit(place, seed):
    flip(place, int(np.random.default_rng(seed).integers(8 * place.stat().st_size)))


def passed_over(path, caplog):
    """Whether step 20 was skipped for 10; in both cases state and files are correct."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger=checkpoint.__name__):
        found = restore(path)
    said = [r.getMessage() for r in caplog.records if r.name == checkpoint.__name__]
    assert_is_step(found, found.step)
    assert {name: found.extra[name] for name in EXTRA} == EXTRA
    if found.step == 20:
        assert said == [] and names(path) == ["10", "20"]
        return False
    (sentence,) = said
    assert str(path / "20") in sentence and "is damaged" in sentence
    assert names(path) == ["10", "20.damaged"]
    return True


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        empty,
        cut_in_half,
        cut_off_the_last_byte,
        overwrite_with_zeros,
        lambda place: place.unlink(),
        *(functools.partial(flip_a_bit, seed=seed) for seed in range(2)),
    ],
)
def test_whatever_happens_to_one_file_no_wrong_number_comes_back(
    stored, tmp_path, caplog, damage
):
    results = {}
    for number, file in enumerate(files_of(stored)):
        path = shutil.copytree(stored, tmp_path / str(number))
        damage(path / file)
        results[str(file)] = passed_over(path, caplog)
    assert len(results) > 10 and any(results.values()), results


def test_a_header_that_lacks_any_key_is_damaged(stored, tmp_path, caplog):
    text = (stored / "20/extra/metadata").read_text()
    for key in ("text", "sha256", "checksums"):
        path = shutil.copytree(stored, tmp_path / key)
        assert text.count(f'"{key}"') == 1
        changed = text.replace(f'"{key}"', f'"{key[:-1]}_"')
        (path / "20/extra/metadata").write_text(changed)
        assert passed_over(path, caplog)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["20", "20/state", "20/extra", "20/state/d"])
def test_a_checkpoint_of_which_a_folder_was_emptied_is_passed_over(pair, caplog, part):
    for place in (pair / part).iterdir():
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    assert passed_over(pair, caplog)


@pytest.mark.slow
def test_a_bit_flipped_in_an_array_is_always_noticed(tmp_path, caplog):
    stored = tmp_path / "stored"
    store(stored, 10, 20, layout="one device")  # several would store it in parts
    # Random bits do not compress: the array lies in a file as it is, maybe in two.
    array = toy_state(20).params["a"]["kernel"].tobytes()
    starts = {f: (stored / f).read_bytes().find(array) for f in files_of(stored)}
    starts = {file: start for file, start in starts.items() if start >= 0}
    assert starts
    reasons = []
    for bit in np.random.default_rng(0).choice(8 * len(array), 40, replace=False):
        path = shutil.copytree(stored, tmp_path / str(bit))
        for file, start in starts.items():
            flip(path / file, 8 * start + int(bit))
        assert passed_over(path, caplog)
        reasons.append("does not match its checksum" in caplog.text)
    # The store itself does not see them all.
    assert any(reasons)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["lr=0.1 [big]? a\\b 50%", "a*b", "[a]", "\udcff (no UTF-8)"]
)
def test_the_name_of_a_directory_is_not_a_pattern(tmp_path, caplog, name):
    store(tmp_path / "aXb" / "checkpoints", 30)  # what 'a*b' would match
    path = tmp_path / name / "checkpoints"
    store(path, 10, 20)
    assert_is_step(restore(path), 20)
    assert names(path) == ["10", "20"] and caplog.text == ""
    assert sorted(place.name for place in tmp_path.iterdir()) == sorted({name, "aXb"})
    (path / "20" / "state" / "_METADATA").unlink()
    assert_is_step(restore(path), 10)
    assert names(path) == ["10", "20.damaged"] and str(path / "20") in caplog.text
    assert "edm_jax-" not in caplog.text


def unreadable_header(pair, monkeypatch):
    place = pair / "20" / "extra" / "metadata"
    place.unlink()
    place.symlink_to(place)  # as a file without permission, but for root too
    return "Too many levels of symbolic links"


def unreadable_array(pair, monkeypatch):
    place = next(p for p in (pair / "20" / "state" / "d").iterdir())
    place.unlink()
    place.symlink_to(place)
    return "Too many levels of symbolic links"


def raising(error):
    def arrange(pair, monkeypatch):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "restore", fail)
        return str(error)

    return arrange


@pytest.mark.slow
@pytest.mark.parametrize(
    "arrange",
    [
        unreadable_header,
        unreadable_array,
        raising(MemoryError("out of memory")),
        raising(ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes")),
        raising(OSError(24, "Too many open files")),
        raising(ValueError("PERMISSION_DENIED: ... [OS error 13: Permission denied]")),
    ],
)
def test_a_checkpoint_is_not_set_aside_for_what_is_not_its_own(
    pair, monkeypatch, caplog, arrange
):
    reason = arrange(pair, monkeypatch)
    with pytest.raises(OSError, match="does not seem damaged") as error:
        restore(pair)
    assert str(pair / "20") in str(error.value) and reason[:30] in str(error.value)
    assert names(pair) == ["10", "20"] and "damaged" not in caplog.text


def test_a_checkpoint_removed_meanwhile_is_not_damaged(pair, monkeypatch):
    original = checkpoint.Checkpoints._read

    def read(self, step, shapes):
        shutil.rmtree(pair / "20")
        return original(self, step, shapes)

    monkeypatch.setattr(checkpoint.Checkpoints, "_read", read)
    with pytest.raises(OSError, match="removed in the meantime"):
        restore(pair)
    assert names(pair) == ["10"]


@pytest.mark.parametrize("file", ["extra/metadata", "_CHECKPOINT_METADATA"])
def test_a_pipe_in_a_checkpoint_is_not_waited_for(pair, caplog, file):
    place = pair / "20" / file
    place.unlink()
    os.mkfifo(place)
    assert passed_over(pair, caplog)


@pytest.mark.slow
def test_damaged_checkpoints_cost_one_line_each_and_nothing_of_the_libraries(tmp_path):
    script = """
import numpy as np, jax, sys, shutil
from test_checkpoint import Checkpoints, TrainState, shapes_of, EXTRA, laid_out, Path
rng = np.random.default_rng(0)
weights = {f"w{i}": rng.standard_normal((64, 64), np.float32) for i in range(100)}
state = TrainState(np.int32(1), np.zeros(2, np.uint32), weights, (), {"e": weights})
path = Path(sys.argv[1])
checkpoints = Checkpoints(path)
for step in (10, 20):
    checkpoints.save(step, laid_out(state, "replicated"), EXTRA)
checkpoints.close()
for step in (10, 20):
    for place in (path / str(step) / "state").rglob("*"):
        if place.is_file() and "METADATA" not in place.name:
            place.write_bytes(b"")
    (path / str(step) / "_CHECKPOINT_METADATA").write_bytes(b'{"custom": "' + bytes(99))
try:
    Checkpoints(path).restore(shapes_of(state))
except ValueError as error:
    print(error, file=sys.stderr)
"""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])
    }
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "checkpoints")],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    lines = done.stderr.splitlines()
    assert len(lines) == 3, done.stderr
    assert "/20 is damaged" in lines[0] and "/10 is damaged" in lines[1]
    assert lines[2].startswith("All checkpoints in")
    assert len(done.stderr) < 2000


@pytest.mark.slow
def test_training_is_refused_while_all_checkpoints_are_damaged(pair):
    for step in ("10", "20"):
        (pair / step / "state" / "_METADATA").unlink()
    before = len(list(pair.rglob("*")))
    # Not from the start: not the first time, nor when it is tried again.
    for _ in range(3):
        with pytest.raises(ValueError, match=f"All checkpoints in {pair} are damaged"):
            restore(pair)
    assert names(pair) == ["10.damaged", "20.damaged"]
    assert len(list(pair.rglob("*"))) == before
    for place in pair.iterdir():
        shutil.rmtree(place)
    assert restore(pair) is None


def test_a_file_where_a_checkpoint_is_due_is_damaged_and_not_overlooked(pair):
    for step in ("10", "20"):
        shutil.rmtree(pair / step)
        (pair / step).write_text("text")
    with pytest.raises(ValueError, match=f"All checkpoints in {pair} are damaged"):
        restore(pair)
    assert names(pair) == ["10.damaged", "20.damaged"]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to(path)])
def test_a_file_in_place_of_the_checkpoints_is_refused_by_name(tmp_path, make):
    make(tmp_path / "checkpoints")
    with pytest.raises(OSError, match="/checkpoints is not a directory"):
        Checkpoints(tmp_path / "checkpoints")


@pytest.mark.slow
def test_a_damaged_one_is_set_aside_and_its_step_can_be_saved_again(pair):
    for attempt in ("20.damaged", "20.damaged1", "20.damaged2"):
        (pair / "20" / "state" / "_METADATA").unlink()
        checkpoints = Checkpoints(pair)
        assert_is_step(checkpoints.restore(shapes_of(toy_state(0))), 10)
        checkpoints.save(20, laid_out(toy_state(20), "replicated"), EXTRA)
        checkpoints.close()
        assert_is_step(restore(pair), 20)
        assert attempt in names(pair)
    shutil.rmtree(pair / "20.damaged")
    (pair / "20" / "state" / "_METADATA").unlink()
    assert_is_step(restore(pair), 10)
    assert "20.damaged" in names(pair) and "20.damaged2" in names(pair)


# The first is when the checkpoints are opened.
@pytest.mark.parametrize("call", [2, 3])
def test_a_checkpoint_that_one_process_finds_damaged_is_skipped_by_all(pair, call):
    calls = itertools.count(1)
    found = restore(pair, agree=lambda value: [value, float(next(calls) == call)])
    assert_is_step(found, 10)
    assert names(pair) == ["10", "20.damaged"]


def test_a_checkpoint_that_a_kill_left_half_written_is_ignored(pair):
    shutil.copytree(pair / "20", pair / "30.orbax-checkpoint-tmp")
    shutil.rmtree(pair / "30.orbax-checkpoint-tmp" / "state")
    assert_is_step(restore(pair), 20)
    store(pair, 30)
    assert_is_step(restore(pair), 30)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda s: s._replace(opt_state=(*s.opt_state, s.step)), "opt_state"),
        (lambda s: s._replace(emas={"power_0.05": s.emas["power_0.1"]}), "emas"),
        (lambda s: s._replace(params={"a": {**s.params["a"], "gain": s.key}}), "gain"),
        (lambda s: s._replace(step=s.step.astype(np.float32)), "step"),
    ],
)
def test_a_state_of_another_layout_is_refused_and_nothing_is_set_aside(
    pair, change, name
):
    checkpoints = Checkpoints(pair)
    with pytest.raises(ValueError, match=rf"{name}.* differs\): train with"):
        checkpoints.restore(shapes_of(change(toy_state(0))))
    checkpoints.close()
    assert names(pair) == ["10", "20"]
    assert_is_step(restore(pair), 20)


# A full disk


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 20_000])
def test_a_full_disk_is_one_sentence_and_loses_no_earlier_checkpoint(small_disk, room):
    path, filler = small_disk / "checkpoints", small_disk / "filler"
    store(path, 10)
    filler.write_bytes(b"0" * (shutil.disk_usage(small_disk).free - room))
    sentence = (
        rf"could not be written to {path} \(No space left on device\); the last complete "
        r"one: step 10\. Free some space"
    )
    for when in ("close", "check", "next save"):
        # keep: the one before would go as soon as this one were whole.
        checkpoints = Checkpoints(path, keep=1)
        assert_is_step(checkpoints.restore(shapes_of(toy_state(0))), 10)
        with pytest.raises(OSError, match=sentence):
            checkpoints.save(20, laid_out(toy_state(20), "replicated"), EXTRA)
            deadline = time.monotonic() + 10
            while when == "check" and time.monotonic() < deadline:
                checkpoints.check()
            if when == "next save":
                checkpoints.save(30, laid_out(toy_state(30), "replicated"), EXTRA)
            if when != "check":
                checkpoints.close()
        try:
            checkpoints.close()  # as the loop does, whatever was raised
        except OSError as error:
            assert "could not be written" in str(error)
        assert_is_step(restore(path), 10)
    filler.unlink()
    store(path, 20, 30)
    assert_is_step(restore(path), 30)


def test_checking_for_errors_does_not_wait_for_the_save(tmp_path):
    large = {"kernel": np.zeros((2048, 2048), np.float32)}
    state = laid_out(toy_state(10)._replace(params=large), "one device")
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(10, state, EXTRA)
    checkpoints.check()
    assert "10" not in names(tmp_path)  # as it is once it is whole
    checkpoints.close()
    checkpoints.check()
    assert names(tmp_path) == ["10"]


# The checksum


def checksum(array):
    return int(checkpoint._checksum(jnp.asarray(array)))


def test_the_checksum_has_not_changed_since_todays_checkpoints_were_written():
    def mix(x):
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
            x = (x ^ x >> shift) * factor % 2**32
        return x

    array = np.random.default_rng(0).standard_normal((3, 5, 7)).astype(np.float32)
    words = enumerate(array.ravel().view(np.uint32).tolist())
    expected = sum(mix(word ^ mix(place)) for place, word in words) % 2**32
    assert checksum(array) == expected
    assert expected == 3963510205


@pytest.mark.parametrize("bit", [0, 22, 31])
def test_the_checksum_sees_every_word(bit):
    array = np.zeros((4, 6), np.uint32)
    sums = {checksum(array)}
    for place in np.ndindex(array.shape):
        changed = array.copy()
        changed[place] = 1 << bit
        sums.add(checksum(changed))
    assert len(sums) == 1 + array.size


@pytest.mark.parametrize("apart", [1, 256, 2**16])
@pytest.mark.parametrize("pair_of_values", [(1.0, -1.0), (1.0, 2.0), (0.0, -0.0)])
def test_the_checksum_sees_two_words_exchanged(apart, pair_of_values):
    array = np.full(2**16 + 1, 3.0, np.float32)
    array[[0, apart]] = pair_of_values
    other = array.copy()
    other[[0, apart]] = pair_of_values[::-1]
    assert checksum(array) != checksum(other)


def test_the_checksum_sees_all_signs_lost():
    array = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    sums = {checksum(x) for x in (array, -array, np.abs(array), -np.abs(array))}
    assert len(sums) == 4


def test_the_checksum_does_not_depend_on_the_layout():
    one, *others = (
        checkpoint._checksums(laid_out(toy_state(7), layout)) for layout in LAYOUTS
    )
    assert len(set(one)) == len(one)
    assert all(other == one for other in others)
