"""No damaged file makes a command crash, hang, stay silent, or lose another file."""

import dataclasses
import os

import damage
import damage_worker
import pytest
from damage import READERS, UNDAMAGED, Case
from damage_ways import Damage


@pytest.fixture(scope="module")
def worker(base):
    made = damage.Worker(base)
    yield made
    made.close()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("damage") / "base"


@pytest.fixture(scope="module")
def chosen(base, worker):
    del worker  # it makes the base
    return damage.sampled(damage.cases(base))


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.command)
def test_a_damaged_file_is_named_and_no_other_is_lost(reader, chosen, worker):
    mine = [case for case in chosen if case.reader is reader]
    assert len(mine) > 3 and any(case.damage is UNDAMAGED for case in mine)
    wrong = [f"{case.name}: {why}" for case, why in worker.run(mine) if why]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_every_way_damages_the_file_and_spares_other_names_of_it(
    base, worker, tmp_path
):
    del worker  # it makes the base
    seen = set()
    for case in damage.cases(base):
        original = min(base.glob(case.file or "nothing"), default=None)
        key = case.reader.reads.get(case.file), case.damage.name
        if not original or not original.is_file() or key in seen:
            continue
        seen.add(key)
        data = original.read_bytes()
        (tmp_path / "file").write_bytes(data)
        os.link(tmp_path / "file", tmp_path / "other name")
        case.damage.apply(tmp_path / "file")
        same = not case.damage.make and (tmp_path / "file").read_bytes() == data
        assert not same or not case.damage.plain, case.name
        assert (tmp_path / "other name").read_bytes() == data
        for path in tmp_path.iterdir():
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    assert len(seen) > 1000


READER = dataclasses.replace(READERS[0], reads={}, writes=("run/new",), quiet=())
CASE = Case(READER, "run/sub/status.json", Damage("emptied", plain=True))


@pytest.mark.parametrize(
    ("code", "text", "wrong"),
    [
        (0, "Left out: status.json is empty.", ""),
        (2, "command: run/sub/status.json is empty.", ""),
        (2, "command: Expecting value: line 1 column 1", "without naming"),
        (2, "status.json\ncommand: Something else.", "without naming"),
        (1, "status.json", "status 1"),
        (0, "Traceback (most recent call last):\nstatus.json", "traceback"),
        (0, "status.json\x1b[2J", "control character"),
        (0, "status.json" * 1000, "11,000 characters"),
        (0, "/a/b.py:12: RuntimeWarning: overflow\nstatus.json", "warnings"),
    ],
)
def test_the_judge_sees_what_is_wrong(code, text, wrong):
    found = damage_worker.judge([CASE], code, text)
    assert wrong in found and bool(wrong) == bool(found)


def test_silence_is_no_answer_to_what_must_be_noticed():
    assert not damage_worker.is_named(CASE, "all is well")
    assert damage_worker.is_named(CASE, "status.json is empty")
    page = "<td>a-seed0</td> ... <td>b-seed0</td><td>status.json is empty</td>"
    assert damage_worker.is_named(CASE, page, "study/b-seed0")
    assert not damage_worker.is_named(CASE, page, "study/a-seed0")


def test_a_lost_or_changed_file_is_found(tmp_path):
    for name in ("kept", "new", "sub/status.json"):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text(name)
    before = damage.contents(tmp_path)
    assert damage.lost(CASE, 0, before, damage.contents(tmp_path)) == ""
    (tmp_path / "run" / "new").write_text("written")
    assert damage.lost(CASE, 0, before, damage.contents(tmp_path)) == ""
    (tmp_path / "run" / "new").unlink()
    assert damage.lost(CASE, 0, before, damage.contents(tmp_path)) == "run/new"
    (tmp_path / "run" / "new").write_text("written")
    (tmp_path / "run" / "kept").write_text("changed")
    assert damage.lost(CASE, 0, before, damage.contents(tmp_path)) == "run/kept"
    (tmp_path / "run" / "kept").write_text("kept")
    (tmp_path / "run" / "sub" / "status.json").unlink()
    gone = damage.contents(tmp_path)
    assert damage.lost(CASE, 2, before, gone) == "run/sub/status.json"


def test_what_a_command_raises_or_prints_by_any_way_is_caught(monkeypatch):
    with damage_worker.captured() as printed:
        print("by Python")
        os.write(2, b"by another")
    assert printed() == "by Python\nby another"
    hang = damage_worker.Hang
    with pytest.raises(hang), damage_worker.timed(0.01):
        while True:
            pass
