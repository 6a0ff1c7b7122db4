"""Reads files that may be damaged, and writes files whole or not at all."""

import argparse
import contextlib
import errno
import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

PathLike = str | os.PathLike[str]
LIMIT_BYTES = 1 << 30  # of a file that is read whole
DEPTH = 50  # of nested JSON values, to stay far from Python's recursion limit
SOURCE_BYTES = 1 << 20  # of a Python file
_LONGEST = 500  # characters quoted from an error

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Damaged(ValueError):
    """A file has the wrong contents: `path` names the file, `reason` says what is wrong."""

    def __init__(self, path: PathLike, reason: str):
        super().__init__(printable(f"{os.fspath(path)} {reason}"))
        self.path, self.reason = path, reason


def open_regular(path: PathLike) -> IO[bytes]:
    """Opens a regular file for reading, and never blocks, even on a named pipe.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: it is not a regular file, or it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged(path, f"cannot be read ({error.strerror}).") from error
    if kind := kind_of(descriptor):
        os.close(descriptor)
        raise Damaged(path, f"is {kind}, not a file.")
    return open(descriptor, "rb")


def kind_of(descriptor: int) -> str:
    """What an open file is, such as 'a directory'; '' for a regular file."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return ""
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "special")


class NoPath(argparse.ArgumentTypeError, ValueError):
    """What a user typed is not a path in a file system."""


def user_path(text: str) -> Path:
    """A path that a user typed, for argparse's `type`; ~ is the home directory."""
    if not text:
        raise NoPath("the path is empty: name one")
    if why := no_object_store(text):
        raise NoPath(why)
    return Path(os.path.expanduser(text))


def no_object_store(text: str) -> str:
    """Why gs://... is not a path in a file system; '' if it is one."""
    if "://" not in text:
        return ""
    return (
        f"{text!r} is on an object store, which this does not take: mount the bucket, "
        "and name the path there"
    )


def read_bytes(path: PathLike, limit: int = LIMIT_BYTES) -> bytes:
    """Reads a regular file.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: it is not a regular file, cannot be read, or is larger than `limit`.
    """
    with open_regular(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                reason = f"is too large: {size:,} bytes, at most {limit:,} are allowed."
                raise Damaged(path, reason)
            return file.read()
        except OSError as error:
            raise Damaged(path, f"cannot be read ({error.strerror}).") from error


def parse_json(raw: bytes, unique: bool = False) -> Any:
    """Parses JSON.

    Raises:
        ValueError: it is not JSON, or would break code that uses it: deep nesting, whole
            numbers beyond 64 bits, invalid Unicode; with `unique`, a repeated name.
    """
    try:
        value = _DECODERS[unique].decode(raw.decode())
        if raw.count(b"[") + raw.count(b"{") > DEPTH and _is_deep(value):
            raise RecursionError
        if b"\\ud" in raw.lower():  # an escape that may stand for half a character
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeError:
        raise ValueError("its text is not valid Unicode") from None
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEPTH + 1):
        inner = (v.values() if isinstance(v, dict) else v for v in level)
        level = [each for v in inner for each in v if isinstance(each, dict | list)]
    return bool(level)


def _whole(text: str) -> int:
    if len(text) > 20 or abs(value := int(text)) >= 2**63:
        raise ValueError("it holds a number beyond 64 bits")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it holds {name[:60]!r} twice")
    return found


_DECODERS = [  # repeated names allowed, and refused
    json.JSONDecoder(parse_int=_whole, object_pairs_hook=pairs)
    for pairs in (None, _unique)
]


def read_json(path: PathLike) -> dict[str, Any]:
    """Reads a file that holds a JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: it cannot be read, or holds something else.
    """
    return json_object(path, read_bytes(path))


def json_object(path: PathLike, raw: bytes) -> dict[str, Any]:
    """Parses a file's bytes as a JSON object; raises Damaged if they are anything else."""
    if not raw.strip():
        raise Damaged(path, "is damaged: it is empty.")
    try:
        value = parse_json(raw)
    except ValueError as error:
        raise Damaged(path, f"is damaged: it is not valid JSON ({error}).") from None
    if isinstance(value, dict):
        return value
    raise Damaged(path, f"is damaged: it holds {json_kind(value)}, not a JSON object.")


def json_kind(value: Any) -> str:
    """Describes a JSON value in words, such as 'a list'."""
    kinds = {list: "a list", str: "a text", dict: "an object", type(None): "null"}
    return kinds.get(type(value)) or str(value).lower()


def run_python(path: PathLike) -> dict[str, Any]:
    """Runs a user's Python file and returns the names that it defines.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: it cannot be read, or it raises an error.
    """
    source = read_bytes(path, SOURCE_BYTES)
    names: dict[str, Any] = {"__name__": Path(path).stem, "__file__": os.fspath(path)}
    with blamed_on(path):
        code = compile(source, os.fspath(path), "exec", dont_inherit=True)
        exec(code, names)  # noqa: S102  the user's own code
    return names


@contextlib.contextmanager
def blamed_on(path: PathLike) -> Iterator[None]:
    """Turns an error or exit in a user's code into Damaged, which names the file."""
    try:
        yield
    except (Exception, SystemExit) as error:
        said = f"fails: {type(error).__name__}: {short(error)}"
        raise Damaged(path, said) from error


def short(error: object) -> str:
    """What an error says, cut where it quotes too much."""
    said = str(error)
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}…"


def write_bytes(path: PathLike, data: bytes) -> None:
    """Writes a file whole or not at all; an OSError names the file."""
    directory, name = os.path.split(os.fspath(path))
    # Always the same name, so that the next write replaces what a kill leaves behind.
    temporary = os.path.join(directory, f".{name}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException as error:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        if isinstance(error, OSError):
            raise named(error, path) from None
        raise


def named(error: OSError, path: PathLike) -> OSError:
    """A system error that names the file it happened to."""
    if not error.errno:
        return error
    return OSError(error.errno, os.strerror(error.errno), os.fspath(path))


def write_text(path: PathLike, text: str) -> None:
    """Writes a text as UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(
    path: PathLike,
    value: Mapping[str, Any],
    default: Callable[[Any], Any] | None = None,
) -> None:
    """Writes a JSON object whole or not at all; `default` converts other types.

    File names that are not UTF-8 get a ? for each such byte: `read_json` needs Unicode.
    """
    text = json.dumps(value, indent=1, default=default, ensure_ascii=False)
    write_bytes(path, f"{text}\n".encode(errors="replace"))


def cache_home() -> Path:
    """Where what can be made again is kept."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return home / "edm_jax"


def is_full(error: OSError) -> bool:
    """Whether an error says that a disk or a quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def human(count: float) -> str:
    """Bytes with a decimal unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def few(sentences: Sequence[object], what: str, most: int = 5) -> list[str]:
    """The first of many sentences, and how many more `what` there are."""
    rest = len(sentences) - most
    if rest < 2:  # a line about one more would save nothing
        return [str(each) for each in sentences]
    return [*map(str, sentences[:most]), f"{rest:,} more {what}."]


def printable(text: str) -> str:
    """Escapes control characters, which could act on a terminal."""
    return "".join(
        c
        if c.isprintable()
        else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )
