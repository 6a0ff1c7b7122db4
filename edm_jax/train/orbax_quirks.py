"""Workarounds for faults in Orbax and TensorStore."""

import contextlib
import functools
import gc
import hashlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

# Orbax reads names with these characters as patterns; TensorStore reads a backslash as a
# slash, and cannot open names that are not UTF-8.
_SPECIAL = re.compile(r"[*?\[\]\\\ud800-\udfff]")


def write_small_arrays_once() -> None:
    """Makes replicas share the writing of large arrays only, and stores no shardings.

    Orbax would split every array into one part per device. Small parts take several
    times the space on disk, and longer to write.
    """
    handler = ocp.type_handlers.ArrayHandler(
        min_slice_bytes_for_replica_parallel=2**20, enable_write_sharding_file=False
    )
    absl_log = logging.getLogger("absl")  # warns that a handler is replaced
    level = absl_log.level
    absl_log.setLevel(logging.ERROR)
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
    absl_log.setLevel(level)


def plain_path(directory: Path) -> Path:
    """The directory, or a link to it if Orbax would misread its name."""
    if not _SPECIAL.search(os.fspath(directory)):
        return directory
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    link = Path(tempfile.gettempdir()) / f"edm_jax-{os.getuid()}-{digest}"
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):  # another process of this run made it
        link.symlink_to(directory)
    if not link.is_symlink() or os.readlink(link) != os.fspath(directory):
        raise OSError(f"{link} exists but is not a link to {directory}: remove it.")
    return link


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Silences Orbax and its libraries during a read; the caller reports a failure."""
    _ignore_stragglers()
    loggers = [
        logging.getLogger(n) for n in ("absl", "asyncio", "orbax", "tensorstore")
    ]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL + 1)
    try:
        yield
    except Exception as error:
        error.__traceback__ = None  # it holds the tasks that wait for other reads
        gc.collect()
        raise
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


@functools.cache
def _ignore_stragglers() -> None:
    """Hides errors of other reads, whose event loop Orbax closes after one read fails."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
        dropped = code is not None and "orbax" in code.co_filename
        if not dropped and "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    sys.unraisablehook = hook
    words = "exception was never retrieved", "was destroyed but it is pending"
    logging.getLogger("asyncio").addFilter(
        lambda record: not any(word in record.getMessage() for word in words)
    )
