"""Files that others may have damaged, and files written whole or not at all."""

import errno
import os

import pytest

from edm_jax import files
from edm_jax.files import Damaged


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"{", "not valid JSON"),
        (b"[1]", "holds a list"),
        (b"null", "holds null"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}", "nested too deeply"),
        (b'{"a": 1' + b"0" * 400 + b"}", "beyond 64 bits"),
        (b'{"a": "\\ud800"}', "not valid Unicode"),
        (b'{"a": "\xff"}', "not valid Unicode"),
    ],
)
def test_what_is_not_a_json_object_is_damaged(tmp_path, raw, reason):
    path = tmp_path / "status.json"
    path.write_bytes(raw)
    with pytest.raises(Damaged, match=reason) as caught:
        files.read_json(path)
    assert str(path) in str(caught.value)


def test_valid_json_reads_as_it_was_written(tmp_path):
    value = {"a": [1, 2.5, None, True, "é😀"], "b": {}}
    files.write_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json") == value
    assert files.parse_json(b'"\\ud83d\\ude00"') == "😀"  # a whole pair is a character
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_file_name_that_is_not_unicode_leaves_the_json_readable(tmp_path):
    files.write_json(tmp_path / "a.json", {"data_dir": os.fsdecode(b"/a/\xff")})
    assert files.read_json(tmp_path / "a.json") == {"data_dir": "/a/?"}


def test_a_pipe_or_a_directory_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, kind in (("pipe", "a named pipe"), ("folder", "a directory")):
        with pytest.raises(Damaged, match=f"is {kind}, not a file"):
            files.read_bytes(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        files.read_bytes(tmp_path / "absent")


def test_a_file_beyond_the_limit_is_not_read(tmp_path):
    (tmp_path / "long").write_bytes(b"x" * 11)
    assert files.read_bytes(tmp_path / "long", limit=11) == b"x" * 11
    with pytest.raises(Damaged, match="11 bytes, at most 10"):
        files.read_bytes(tmp_path / "long", limit=10)


def test_a_full_disk_leaves_the_old_file_and_names_it(small_disk):
    path = small_disk / "status.json"
    files.write_text(path, "old")
    with pytest.raises(OSError) as caught:
        files.write_bytes(path, b"x" * 2_000_000)
    assert caught.value.errno == errno.ENOSPC and files.is_full(caught.value)
    assert caught.value.filename == str(path)
    assert path.read_text() == "old" and list(small_disk.iterdir()) == [path]


def test_control_characters_are_printed_as_escapes():
    assert files.printable("a\x1b[31m\nb\ud800é") == "a\\x1b[31m\\nb\\ud800é"
