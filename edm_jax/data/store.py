"""TFDS data sets by name: found and built, or told what is there instead."""

import itertools
import os
import shlex
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edm_jax import files

if TYPE_CHECKING:
    from edm_jax.data.config import DataConfig

RECORD = "prepared.json"  # what conversion.py made a data set of
_ACCEPTED = (
    "The reader tfds reads TFDS data sets. data.name takes the name of one ('digits', "
    "'my_data:1.0.0') or the directory of a prepared one, where its dataset_info.json "
    "is; data.data_dir takes the directory that holds named ones. Pictures in folders, "
    "ZIPs of the original code and NumPy's files have readers of their own: set "
    "data.reader.name to images, original or numpy (docs/data.md)."
)


def prepare(data: "DataConfig") -> None:
    """Builds the data set where `data.data_dir` says, unless it is already there.

    TFDS writes to a directory of its own and renames it at the end, so several
    processes may call this at once: all but the first to finish discard their copy.

    Raises:
      ValueError: TFDS knows no data set of that name.
      FileNotFoundError: the data set is not there and could not be built.
    """
    builder = open_builder(data)
    if builder.data_path.exists():
        return
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    # Google's bucket holds TFRecord files only, which need TensorFlow.
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        builder.download_and_prepare(file_format="array_record", download_config=config)
    # Whatever the builder of an arbitrary data set raises, and the rename's own error.
    except Exception as error:
        if builder.data_path.exists():
            return
        causes = list(_causes(error))
        if any(isinstance(e, ImportError) and e.name == "tensorflow" for e in causes):
            raise FileNotFoundError(
                f"data set {data.name!r} is not at {builder.data_path}, and building it "
                "needs TensorFlow, which edm_jax does not install. Build it once in an "
                "environment of its own, then run the same command again: "
                f"{_build_elsewhere(builder, data.data_dir)}"
            ) from error
        raise FileNotFoundError(
            f"data set {data.name!r} is not at {builder.data_path} and could not be "
            f"built here ({type(causes[-1]).__name__}: {first_line(causes[-1])}). Mend "
            "that and run the same command again, or build it on another machine with "
            "TFDS's download_and_prepare(file_format='array_record') and set "
            "data.data_dir to the result."
        ) from error


def fingerprint(data: "DataConfig") -> dict[str, Any]:
    """What tells one prepared data set from another: version, sizes, bytes.

    Of what `conversion` made, also the fingerprint of the contents.
    """
    builder = open_builder(data)
    info = builder.info
    sizes = {name: split.num_examples for name, split in sorted(info.splits.items())}
    found = {"name": info.full_name, "examples": sizes, "bytes": info.dataset_size}
    if "contents" in (made := _record(Path(builder.data_path))):
        found["contents"] = made["contents"]
    return found


def made_of(data: "DataConfig") -> dict[str, Any]:
    """What `conversion` made a data set of; {} of others, and of other readers' data."""
    named = Path(data.data_dir, data.name).expanduser()
    found = _record(named).get("made_of", {})
    return found if isinstance(found, dict) else {}


def _record(place: Path) -> dict[str, Any]:
    path = place / RECORD
    is_there = "://" not in str(place) and path.is_file()
    return files.read_json(path) if is_there else {}


def open_builder(data: "DataConfig") -> Any:
    """Returns the TFDS builder of a data set, prepared or not.

    Raises:
      ValueError: `name` or `data_dir` is not what it must be, or holds what is no file.
    """
    import tensorflow_datasets as tfds

    from edm_jax.data import digits, photos  # noqa: F401  (registers them with TFDS)

    data_dir, own = os.path.expanduser(data.data_dir), Path(data.name).expanduser()
    for field, text in (("data_dir", data_dir), ("name", data.name)):
        if not text.isascii() and text.encode(errors="replace").decode() != text:
            raise ValueError(
                f"data.{field}={text!r} holds bytes that are not UTF-8, and TFDS reads no "
                "such path: rename the directory."
            )
    if os.path.isfile(data_dir):
        kind = _kind(Path(data_dir))
        raise ValueError(f"data.data_dir={data.data_dir!r} is {kind}. {_ACCEPTED}")
    if data.name and "://" not in data_dir + data.name:
        _check_files(own if own.is_dir() else Path(data_dir or _default_dir(), own))
    try:
        if data.name and (own / "dataset_info.json").is_file():
            return tfds.builder_from_directory(own)
        return tfds.builder(data.name, data_dir=data_dir or None)
    except Exception as error:  # TFDS raises many kinds
        raise ValueError(_refusal(data, own, error)) from error


def _default_dir() -> str:
    """Where TFDS looks if it is not told."""
    return os.path.expanduser(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))


def _check_files(directory: Path) -> None:
    """Raises files.Damaged for a pipe and the like, which TFDS would wait for."""
    if not directory.is_dir():  # NAME:VERSION
        directory = directory.with_name(directory.name.partition(":")[0])
    for path in directory.rglob("*"):
        if not path.is_dir():
            files.open_regular(path).close()


def _refusal(data: "DataConfig", own: Path, error: Exception) -> str:
    """What a name is that TFDS does not open. Its own texts list all of its data sets."""
    import tensorflow_datasets as tfds

    place = data.data_dir or "its default directory"
    typed_as_path = os.sep in data.name[:2] or own.suffix in _FILES
    if isinstance(error, tfds.core.DatasetNotFoundError) and not own.exists():
        return (
            f"TFDS knows no data set {data.name!r}, and none is prepared in {place}; "
            "check data.name and data.data_dir."
        )
    if typed_as_path or (data.name and own.exists()):
        if not (own / "dataset_info.json").is_file():
            return f"data.name={data.name!r} is {_kind(own)}. {_ACCEPTED}"
    elif "Parsing builder name" in str(error):
        return f"data.name={data.name!r} is no name that TFDS allows. {_ACCEPTED}"
    return (
        f"TFDS cannot open data.name={data.name!r} in {place} "
        f"({type(error).__name__}: {first_line(error)})."
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what it was raised from, the outermost first."""
    while error is not None:
        yield error
        error = error.__cause__


def first_line(error: BaseException) -> str:
    """The beginning of an exception's text, where that is long."""
    return (str(error).strip().splitlines() or [""])[0][:300]


def _build_elsewhere(builder: Any, data_dir: str) -> str:
    """The shell command that builds a data set where `data_dir` says, with TensorFlow.

    In Python, because the command `tfds build` needs Apache Beam as well.
    """
    name, module = builder.name, type(builder).__module__
    if builder.builder_config is not None:
        name += f"/{builder.builder_config.name}"
    imports = "tensorflow_datasets as tfds"
    if not module.startswith("tensorflow_datasets."):
        imports = f"{module}, {imports}"
    place = f", data_dir={os.path.expanduser(data_dir)!r}" if data_dir else ""
    program = (
        f"import {imports}; tfds.builder({name!r}{place})"
        ".download_and_prepare(file_format='array_record')"
    )
    # Double quotes read better around the program's single ones, where they suffice.
    special = set('"$`\\!') & set(program)
    return (
        "python3 -m venv tfds-env && tfds-env/bin/pip install tensorflow "
        "tensorflow-datasets array_record && tfds-env/bin/python -c "
        + (shlex.quote(program) if special else f'"{program}"')
    )


_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_FILES = {".zip", ".npz", ".npy", ".tar", ".h5", ".hdf5", ".parquet"} | _PICTURES


def _kind(path: Path) -> str:
    """What a path is that is no data set: 'a directory of images'."""
    original = "in the original EDM2 code's form (with dataset.json)"
    if path.is_dir():
        inside = list(itertools.islice(path.rglob("*"), 1000))
        if (path / "dataset.json").is_file():
            return f"a directory {original}"
        for found in inside:
            if found.name == "dataset_info.json":
                return f"a directory above prepared data sets, such as {found.parent}"
        if any(found.suffix.lower() in _PICTURES for found in inside):
            return "a directory of images"
        return "a directory without a data set"
    if not path.exists():
        return "not there: no such file or directory"
    if path.suffix in (".npz", ".npy"):
        return "a NumPy file"
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            found = "dataset.json" in archive.namelist()
        return "a ZIP archive" + (f" {original}" if found else "")
    return "a file"
