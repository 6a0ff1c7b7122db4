"""A series of another code's files: what each one is, and when it was stored."""

import dataclasses
import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edm_jax.files import Damaged, PathLike, open_regular, read_json
from edm_jax.foreign import flax_files, packages, safetensors_files, torch_files
from edm_jax.foreign.kernels import Kernel
from edm_jax.foreign.layout import Layout, Source
from edm_jax.foreign.packages import PACKAGES, Settings

SIDECAR = "averages.json"
_NOTHING = Settings()
_SUFFIXES = (".pt", ".pth", ".ckpt", ".tar", ".bin", ".safetensors", ".msgpack")
_NUMBER = re.compile(r"(?<![\d.])\d{1,15}(?![\d])")


@dataclass(frozen=True)
class Stored:
    """A file: its averaged arrays, their time, and what they are an average of."""

    time: int
    kernel: Kernel
    source: Source

    @property
    def path(self) -> Path:
        return self.source.layout.path


@dataclass(frozen=True)
class Series:
    """Files in the order of their times, and what was left out.

    Attributes:
        format: the package, an entry of `PACKAGES`.
    """

    format: str
    stored: Sequence[Stored]
    left_out: Sequence[Damaged]
    place: Path  # what they lie below


def open_series(place: PathLike, said: Settings = _NOTHING) -> Series:
    """Finds the files that a directory or a pattern names, and reads what they are.

    averages.json in the directory says what the flags do not.

    Raises:
        FileNotFoundError: there are none.
        ValueError: they are of several packages, or something about them must be said.
        Damaged: none of them can be read.
    """
    root, paths = find(place)
    beside = root / SIDECAR
    if beside.is_file():
        stated = packages.sidecar(beside)
        mine = {k: v for k, v in vars(said).items() if v not in (None, "")}
        said = dataclasses.replace(stated, **mine)
    layouts: list[Layout] = []
    left_out: list[Damaged] = []
    for path in paths:
        try:
            layouts.append(read(path))
        except Damaged as error:
            left_out.append(error)
    if not layouts:
        raise left_out[0]
    names = {packages.told(layout, said): layout for layout in layouts}
    if len(names) > 1:
        which = ", ".join(f"{layout.path} of {name}" for name, layout in names.items())
        raise ValueError(
            f"The files are of different formats ({which}): name one series."
        )
    [name] = names
    package, stored = PACKAGES[name], []
    times = _times(root, layouts, name, said)
    for layout, time in zip(layouts, times, strict=True):
        chosen = layout.averaging(tuple(package.averaged(layout, said)))
        stored.append(Stored(time, package.kernel(layout, time, said), Source(chosen)))
    stored.sort(key=lambda each: (each.time, each.path.name))
    _check(stored)
    return Series(name, stored, left_out, root)


def read(path: Path) -> Layout:
    """The layout of one file, by its contents; raises Damaged."""
    if path.is_dir():
        return _folder(path)
    start = read_start(path)
    if start.startswith((torch_files.ZIP, torch_files.LEGACY)):
        return torch_files.read(path)
    if start[8:9] == b"{":
        return _with_config(safetensors_files.read(path))
    if start[:1] in (b"\xde", b"\xdf") or b"\x80" < start[:1] < b"\x90":
        return flax_files.read(path)
    raise Damaged(
        path,
        "is not a file of torch.save, safetensors or Flax's msgpack: name files of weights.",
    )


def read_start(path: Path) -> bytes:
    """The first bytes of a regular file."""
    with open_regular(path) as file:
        return file.read(32)


def _folder(path: Path) -> Layout:
    from edm_jax.foreign import orbax_files

    return orbax_files.read(path)


def _with_config(layout: Layout) -> Layout:
    """A safetensors file with what config.json of diffusers says beside it."""
    config = layout.path.parent / "config.json"
    if not config.is_file():
        return layout
    found = read_json(config)
    if "optimization_step" not in found:
        return layout
    return dataclasses.replace(layout, values={**layout.values, **found})


def find(place: PathLike) -> tuple[Path, list[Path]]:
    """The directory that files lie below, and the files; raises FileNotFoundError."""
    text = os.path.expanduser(os.fspath(place))
    if "://" in text:
        raise ValueError(f"{text} is on an object store: copy the files here first.")
    path = Path(text)
    if path.is_dir():
        root, found = path, _inside(path)
    elif path.exists():
        root, found = path.parent, [path]
    else:
        plain = [part for part in path.parts if not glob.has_magic(part)]
        root = Path(*plain) if plain else Path()
        for i, part in enumerate(path.parts):
            if glob.has_magic(part):
                root = Path(*path.parts[:i]) if i else Path()
                break
        found = [Path(name) for name in glob.glob(text)]
    found = [each for each in found if each.name != SIDECAR and each.name[0] != "."]
    if not found:
        raise FileNotFoundError(f"There are no files of weights at {text}.")
    return root, sorted(found)


def _inside(path: Path) -> list[Path]:
    files = [each for each in path.iterdir() if each.name.endswith(_SUFFIXES)]
    if files:
        return files
    from edm_jax.foreign import orbax_files

    return [each for each in path.iterdir() if orbax_files.is_checkpoint(each)]


def _times(
    root: Path, layouts: Sequence[Layout], format: str, said: Settings
) -> list[int]:
    """The time of each file: as said, as it states itself, or the number in its name."""
    names = [os.path.relpath(layout.path, root) for layout in layouts]
    if said.files is not None:
        missing = [name for name in names if name not in said.files]
        if missing:
            raise ValueError(
                f"{SIDECAR} gives no time for {missing[0]}: add it to files."
            )
        return [said.files[name] for name in names]
    if said.time is not None:
        return [_by_pattern(said.time, name) for name in names]
    stated = [PACKAGES[format].time(layout, said) for layout in layouts]
    if None not in stated:
        return [time for time in stated if time is not None]
    numbers = [_NUMBER.findall(name) for name in names]
    if any(len(found) != 1 for found in numbers):
        raise ValueError(
            f"{names[0]} does not tell its time: add a pattern of the files' names, such "
            "as --time='step{time}.pt', or averages.json with files."
        )
    return [int(found[0]) for found in numbers]


def _by_pattern(pattern: str, name: str) -> int:
    if pattern.count("{time}") != 1:
        raise ValueError(f"--time={pattern!r} must contain {{time}} once.")
    before, after = (
        re.escape(part).replace(r"\*", ".*") for part in pattern.split("{time}")
    )
    found = re.fullmatch(rf"(?:.*/)?{before}(\d{{1,15}}){after}", name)
    if found is None:
        raise ValueError(f"--time={pattern!r} does not match {name}.")
    return int(found[1])


def _check(stored: Sequence[Stored]) -> None:
    """Raises ValueError unless the files hold the same weights at different times."""
    kinds: dict[object, list[Stored]] = {}
    for each in stored:
        kinds.setdefault(each.source.layout.form, []).append(each)
    if len(kinds) > 1:
        odd = min(kinds.values(), key=len)[0]
        raise ValueError(
            f"{odd.path} holds weights of other names, shapes or orders than the files "
            "beside it: name one series."
        )
    seen: dict[tuple[int, Kernel], Stored] = {}
    for each in stored:
        other = seen.setdefault((each.time, each.kernel), each)
        if other is not each:
            raise ValueError(
                f"{other.path} and {each.path} are both at {each.time}: name one of them."
            )
        if each.time < 1:
            raise ValueError(
                f"{each.path} is at {each.time}: leave it out of the series."
            )
