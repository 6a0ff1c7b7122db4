"""Claims about folders and ZIPs that are read in place."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edm_jax import files
from edm_jax.data.members import PICTURES, Zip, open_members

CONTENTS = {f"{i % 3:05d}/img{i:08d}.npy": bytes([i]) * (i + 1) for i in range(9)}


def packed(path, contents=CONTENTS, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, raw in reversed(contents.items()):
            archive.writestr(name, raw)
    return str(path)


def all_of(members):
    return {
        bytes(name).decode(): members.read(i) for i, name in enumerate(members.names)
    }


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "set"
    for name, raw in CONTENTS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(raw)
    return root


def test_a_folder_and_a_zip_of_it_hold_the_same_in_the_order_of_names(folder, tmp_path):
    for path in (str(folder), packed(tmp_path / "set.zip")):
        members = open_members(path, (".npy",))
        assert all_of(members) == CONTENTS
        assert members.names.tolist() == sorted(name.encode() for name in CONTENTS)


def test_hidden_files_are_passed_over_and_others_counted(folder):
    for name in (".hidden.npy", "notes.txt", ".cache/a.npy", "__MACOSX/a.npy"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    members = open_members(str(folder), (".npy",))
    assert (len(members.names), members.ignored) == (9, 1)
    assert members.extra("notes.txt") == b"" and members.extra("none") is None


def test_links_are_followed_but_not_in_circles(folder, tmp_path):
    away = tmp_path / "away"
    away.mkdir()
    (away / "x.npy").write_bytes(b"x")
    (folder / "linked").symlink_to(away)
    (folder / "circle").symlink_to(folder)
    members = open_members(str(folder), (".npy",))
    assert b"linked/x.npy" in members.names.tolist()
    assert len(members.names) < 25


@pytest.mark.parametrize("name", ["größe 猫.npy", "b\udcff.npy"])
def test_any_name_that_a_file_has_is_read(tmp_path, name):
    (tmp_path / name).write_bytes(b"1")
    members = open_members(str(tmp_path), (".npy",))
    assert members.read(0) == b"1"


def test_sizes_and_places_beyond_4_gb_are_read_from_the_zip64_fields(tmp_path):
    # A sparse file: 4.5 GB of zeros before the second member.
    path = tmp_path / "large.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"first")
        archive.fp.seek(9 << 29)
        archive.start_dir = 9 << 29
        archive.writestr("b.npy", b"second")
    assert os.stat(path).st_blocks * 512 < 1e6
    assert all_of(Zip(str(path), (".npy",))) == {"a.npy": b"first", "b.npy": b"second"}


def test_a_name_that_looks_like_an_entry_does_not_confuse(tmp_path):
    contents = {"PK\1\2" + "x" * 60 + ".npy": b"1", "b.npy": b"2"}
    assert all_of(Zip(packed(tmp_path / "a.zip", contents), (".npy",))) == contents


def test_what_cannot_be_read_in_place_is_refused_with_what_to_do(tmp_path):
    def refused(path, why):
        with pytest.raises(files.Damaged, match=why):
            open_members(str(path), (".npy",))

    deflated = packed(tmp_path / "d.zip", compression=zipfile.ZIP_DEFLATED)
    refused(deflated, r"is compressed \(member .*zip -0 -r")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no files that end with .npy")
    (tmp_path / "text.zip").write_text("no archive")
    refused(tmp_path / "text.zip", "no ZIP archive")
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("a.npy", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.npy", b"2")
    refused(tmp_path / "twice.zip", "holds a.npy twice")
    with pytest.raises(FileNotFoundError, match="check data.name"):
        open_members(str(tmp_path / "none"), (".npy",))


def test_a_zip_cut_anywhere_is_refused(tmp_path):
    whole = Path(packed(tmp_path / "a.zip")).read_bytes()
    cut = tmp_path / "cut.zip"
    for length in range(0, len(whole), 7):
        cut.write_bytes(whole[:length])
        with pytest.raises(files.Damaged):
            Zip(str(cut), (".npy",))


def test_a_damaged_member_is_refused_by_its_checksum(tmp_path):
    path = packed(tmp_path / "a.zip")
    raw = bytearray(Path(path).read_bytes())
    place = raw.index(b"\7\7\7")
    raw[place] ^= 1
    Path(path).write_bytes(raw)
    members = Zip(path, (".npy",))
    bad = members.names.tolist().index(b"00001/img00000007.npy")
    with pytest.raises(ValueError, match="its checksum is another"):
        members.read(bad)
    assert members.read(bad - 1) == CONTENTS["00001/img00000004.npy"]


def test_fingerprints_tell_contents_apart(folder, tmp_path):
    one = open_members(packed(tmp_path / "1.zip"), (".npy",)).fingerprint()
    same = open_members(packed(tmp_path / "2.zip"), (".npy",)).fingerprint()
    name = next(iter(CONTENTS))
    other = packed(tmp_path / "3.zip", CONTENTS | {name: b"\1"})
    assert one == same != open_members(other, (".npy",)).fingerprint()
    before = open_members(str(folder), (".npy",)).fingerprint()
    (folder / name).write_bytes(b"longer")
    assert before != open_members(str(folder), (".npy",)).fingerprint()


def test_the_index_is_arrays(tmp_path):
    members = open_members(packed(tmp_path / "a.zip"), (".npy",))
    held = [v for v in vars(members).values() if isinstance(v, list | dict)]
    assert all(len(each) == 0 for each in held)
    assert isinstance(members.names, np.ndarray)


def test_which_members_of_a_zip_count_is_told_by_their_names(tmp_path):
    counted = [b".git/c.png", b"A.PNG", b"_x.png", b"y/_MACOSX.jpeg"]
    others = ["__MACOSX/._a.png", "x/.b.png", "x/__MACOSX.png", "notes.txt", "png"]
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.mkdir("folder.png")
        for name in [*others, *map(bytes.decode, counted)]:
            archive.writestr(name, b"")
    found = open_members(str(path), PICTURES)
    assert found.names.tolist() == counted and found.ignored == len(others)
