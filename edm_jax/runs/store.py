"""Run directories on an object store (gs://, s3://), each worked on in a copy here.

Everything else knows files. A command brings the copy up to date, works in it, and sends
what it has changed; a training run also sends every half minute. `store.json` on the store
is written last, and lists the files that belong together, so that whoever reads it sees no
half-sent checkpoint. Claims are as in `edm_jax.runs.claims`: objects claims/NNNN.json, made
on condition that there is none of that name, which the store grants to one machine only.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from edm_jax import files
from edm_jax.runs import claims
from edm_jax.runs.provenance import utc_now

MANIFEST = "store.json"
SCHEMA = 1
_INDEX = ".store.json"  # in the copy: what of it is on the store
_OWN = (_INDEX, ".lock", "claims/")  # parts of a copy that stay here
SCHEMES = "gs", "s3"
LARGE = "checkpoints/", "snapshots/"
SEND_EVERY_S = 30.0

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StoredRun:
    """A run directory at `url`, and the directory here that holds its copy."""

    url: str

    @classmethod
    def of(cls, text: str) -> "StoredRun":
        """An address that a user typed.

        Raises:
            ValueError: It names no run on an object store.
        """
        scheme, _, rest = text.rstrip("/").partition("://")
        if scheme not in SCHEMES or "/" not in rest or "//" in rest:
            listed = " or ".join(f"{name}://BUCKET/RUN" for name in SCHEMES)
            raise ValueError(f"{text!r} is not an address such as {listed}.")
        return cls(f"{scheme}://{rest}")

    def __str__(self) -> str:
        return self.url

    @property
    def here(self) -> Path:
        """The copy, in a directory of the same last two names, as studies read them."""
        digest = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        parts = PurePosixPath(self.url.partition("://")[2]).parts[-2:]
        return files.cache_home() / "runs" / digest / Path(*parts)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @property
    def _fs(self) -> Any:
        return _file_system(self.url)[0]

    @property
    def _root(self) -> str:
        return _file_system(self.url)[1].rstrip("/")

    def exists(self) -> bool:
        """Whether a run was ever sent there."""
        return bool(self._manifest())

    def pull(self, without: tuple[str, ...] = ()) -> Path:
        """Brings the copy up to date with the store.

        What this machine has trained since it last sent, as after a crash, stays, unless
        another machine has trained the run in the meantime; so does the copy of a run in
        training here. Results of other commands stay in any case.

        Args:
            without: Directories to leave out, such as 'checkpoints/'.

        Returns:
            The copy.
        """
        manifest = self._manifest()
        with self._locked():
            if not claims.is_free(self.here):
                return self.here
            index = self._index()
            known, listed = index.get("files", {}), manifest.get("files", {})
            is_ahead = index.get("revision") == manifest.get("revision")
            if not is_ahead:
                # Of a course of training that another machine has overtaken.
                for name in set(_names(self.here)) - set(listed):
                    if name in known or name.startswith(LARGE):
                        (self.here / name).unlink(missing_ok=True)
                _remove_empty(self.here)
            for name, (size, tag) in sorted(listed.items()):
                place = self.here / name
                stamp, [*before, old] = _stamp(place), known.get(name, [None])
                is_ours = stamp is not None and (
                    old == tag or (is_ahead and stamp != before)
                )
                if name.startswith(without) or is_ours:
                    continue
                self._fetch(name, place, size)
                known[name] = [*(_stamp(place) or ()), tag]
            found = {name: each for name, each in known.items() if name in listed}
            self._write_index(found, manifest.get("revision"))
        return self.here

    def push(self, owns: bool = False) -> bool:
        """Sends what has changed here since it was sent; False if nothing has.

        Args:
            owns: Whether this process trains the run: then what it has removed here is
                removed there, checkpoints and snapshots too.
        """
        with self._locked():
            index = self._index()
            known = index.get("files", {})
            # Checkpoints first: what a resumed run finds beside one is then no older.
            present: dict[str, list[Any]] = {}
            for of_checkpoints in (True, False):
                for name in _names(self.here):
                    if name.startswith("checkpoints/") == of_checkpoints:
                        with contextlib.suppress(FileNotFoundError):
                            present[name] = self._send(name, known.get(name))
            # The trainer may have removed a checkpoint while it was sent.
            missing = {n for n in {**known, **present} if not _stamp(self.here / n)}
            gone = {name for name in missing if owns or not name.startswith(LARGE)}
            kept = {n: each for n, each in (known | present).items() if n not in gone}
            if kept == known:
                return False
            # Of what others have sent since, only the files changed here are replaced.
            sent = {
                name: each
                for name, each in kept.items()
                if each != known.get(name) or (owns and name.startswith(LARGE))
            }
            manifest = self._manifest()  # now: sending may have taken minutes
            listed = dict(manifest.get("files", {}))
            listed |= {name: [size, tag] for name, (size, _, tag) in sent.items()}
            listed = {name: each for name, each in listed.items() if name not in gone}
            revision = manifest.get("revision")
            if owns or revision is None:
                revision = uuid.uuid4().hex
                index["revision"] = revision
            stored = {"schema": SCHEMA, "revision": revision, "files": listed}
            self._fs.pipe_file(self._path(MANIFEST), json.dumps(stored).encode())
            for name in gone:
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm_file(self._path(name))
            self._write_index(kept, index.get("revision"))
        return True

    @contextlib.contextmanager
    def training(self, by: str, on_loss: Callable[[str], None]) -> Iterator[Path]:
        """Claims the run, and keeps the store up to date while the block runs.

        Args:
            by: The holder's name in messages to others.
            on_loss: Called in a thread, with a sentence, if another machine takes the run.

        Raises:
            ValueError: Another process trains it.
            OSError: The last changes cannot be sent.
        """
        claim = self._claim(by)
        stop = threading.Event()
        # Two, since sending a checkpoint may take longer than a claim lasts.
        renews = threading.Thread(
            target=self._renew, args=(claim, stop, on_loss), daemon=True
        )
        sends = threading.Thread(target=self._send_often, args=(stop,), daemon=True)
        renews.start()
        try:
            self.pull()
            sends.start()
            try:
                yield self.here
            finally:
                stop.set()
                sends.join()
                self._send_last()
        finally:
            stop.set()
            renews.join()
            with contextlib.suppress(Exception):
                self._put_claim(claim, outcome="ended", end_time=utc_now())

    def _send_last(self) -> None:
        try:
            self.push(owns=True)
        except Exception as error:  # libraries of stores raise errors of their own
            raise OSError(
                f"{self.url} cannot be written ({error}); all is in {self.here}, and the "
                "same command sends it."
            ) from error

    def _renew(
        self,
        claim: dict[str, Any],
        stop: threading.Event,
        on_loss: Callable[[str], None],
    ) -> None:
        while not stop.wait(claim["expiry_s"] / 6):
            with contextlib.suppress(Exception):  # a store that is away for a moment
                if self._latest()[0] != claim["number"]:
                    on_loss(f"{self.url} was taken over; this process stops.")
                    return
                self._put_claim(claim)

    def _send_often(self, stop: threading.Event) -> None:
        was_told = False
        while not stop.wait(SEND_EVERY_S):
            try:
                self.push(owns=True)
                was_told = False
            except Exception as error:  # noqa: BLE001
                if not was_told:
                    _log.warning(
                        "%s cannot be written (%s); retrying.", self.url, error
                    )
                was_told = True

    def _claim(self, by: str, expiry_s: float = claims.EXPIRY_S) -> dict[str, Any]:
        number, latest, modified = self._latest()
        fields = claims.new_fields(by, expiry_s)

        def age_s() -> float:
            # By the store's clock, since machines' clocks may differ.
            probe = self._path(f"claims/.{fields['id']}")
            self._fs.pipe_file(probe, b"")
            now = self._fs.modified(probe)
            self._fs.rm_file(probe)
            return (now - modified).total_seconds()

        if number and (held := claims.held_by(latest, age_s)):
            raise ValueError(claims.refusal(self.url, held))
        fields["number"] = number + 1
        path, value = self._claim_path(number + 1), json.dumps(fields).encode()
        try:
            self._fs.pipe_file(path, value, mode="create")
        except FileExistsError:
            latest = self._latest()[1]
            raise ValueError(claims.refusal(self.url, latest)) from None
        return fields

    def _put_claim(self, claim: dict[str, Any], **more: Any) -> None:
        value = json.dumps(claim | more).encode()
        self._fs.pipe_file(self._claim_path(claim["number"]), value)

    def _claim_path(self, number: int) -> str:
        return self._path(f"claims/{number:04}.json")

    def _latest(self) -> tuple[int, dict[str, Any], Any]:
        """The last claim's number, fields and time; 0, {} and None without one."""
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(self._path("claims"), detail=False)
        except FileNotFoundError:
            found = []
        stems = (PurePosixPath(path).name.removesuffix(".json") for path in found)
        number = max((int(stem) for stem in stems if stem.isdecimal()), default=0)
        if not number:
            return 0, {}, None
        path = self._claim_path(number)
        try:
            fields = files.parse_json(self._fs.cat_file(path))
        except ValueError:
            fields = {}
        return (
            number,
            fields if isinstance(fields, dict) else {},
            self._fs.modified(path),
        )

    def _manifest(self) -> dict[str, Any]:
        """{} where no run was sent yet."""
        self._fs.invalidate_cache()
        try:
            found = files.parse_json(self._fs.cat_file(self._path(MANIFEST)))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise ValueError(f"{self.url}/{MANIFEST} is damaged ({error}).") from None
        listed = found.get("files") if isinstance(found, dict) else None
        if not isinstance(listed, dict) or not all(
            itertools.starmap(_is_sound, listed.items())
        ):
            raise ValueError(f"{self.url}/{MANIFEST} is damaged: it lists no files.")
        if found.get("schema") != SCHEMA:
            raise ValueError(
                f"{self.url}/{MANIFEST} was written by another version of edm_jax."
            )
        return found

    def _fetch(self, name: str, place: Path, size: int) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".{place.name}.partial")
        try:
            self._fs.get_file(self._path(name), str(partial))
            found = partial.stat().st_size
            if found < size:
                raise ValueError(
                    f"{self.url}/{name} has {found:,} bytes of the {size:,} in {MANIFEST}."
                )
            partial.replace(place)
        finally:
            partial.unlink(missing_ok=True)

    def _send(self, name: str, known: list[Any] | None) -> list[Any]:
        """[size, mtime in ns, tag] of what is on the store now.

        Raises:
            FileNotFoundError: The file was removed in the meantime.
        """
        place = self.here / name
        if not (stamp := _stamp(place)):
            raise FileNotFoundError(place)
        if known and known[:2] == stamp:
            return known
        self._fs.put_file(str(place), self._path(name))
        return [*stamp, uuid.uuid4().hex]

    def _index(self) -> dict[str, Any]:
        try:
            return files.read_json(self.here / _INDEX)
        except (FileNotFoundError, files.Damaged):
            return {}

    def _write_index(self, found: dict[str, Any], revision: Any) -> None:
        files.write_json(self.here / _INDEX, {"revision": revision, "files": found})

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Lets one process or thread of this machine at a time change the copy's index."""
        self.here.mkdir(parents=True, exist_ok=True)
        with (self.here / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def stored_runs(url: str) -> list[StoredRun]:
    """The run at `url`, or those of the study there, by name."""
    fs, root = _file_system(url)
    fs.invalidate_cache()
    url = url.rstrip("/")
    if fs.exists(f"{root.rstrip('/')}/{MANIFEST}"):
        return [StoredRun(url)]
    try:
        names = sorted(PurePosixPath(each).name for each in fs.ls(root, detail=False))
    except FileNotFoundError:
        names = []
    places = (StoredRun(f"{url}/{name}") for name in names)
    return [run for run in places if run.exists()]


def _file_system(url: str) -> tuple[Any, str]:
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ImportError(f"{url}: {error}") from None


def _names(here: Path) -> list[str]:
    """A copy's files, but for those that stay here or are being written."""
    found = []
    for directory, inner, names in os.walk(here):
        # As Orbax names a checkpoint that is not complete.
        inner[:] = [name for name in inner if "-tmp" not in name]
        base = Path(directory).relative_to(here).as_posix()
        found += [name if base == "." else f"{base}/{name}" for name in names]
    return sorted(name for name in found if _is_sent(name))


def _is_sent(name: str) -> bool:
    last = PurePosixPath(name).name
    return not (name.startswith(_OWN) or last.endswith((".partial", ".tmp")))


def _is_sound(name: str, entry: Any) -> bool:
    """Whether an entry of a manifest names a file inside the run, and its size and tag."""
    path = PurePosixPath(name)
    is_inside = bool(path.name) and not path.is_absolute() and ".." not in path.parts
    if not (
        is_inside and _is_sent(name) and isinstance(entry, list) and len(entry) == 2
    ):
        return False
    return isinstance(entry[0], int) and isinstance(entry[1], str)


def _stamp(path: Path) -> list[int] | None:
    """[size, mtime in ns]; None where there is no such file."""
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _remove_empty(here: Path) -> None:
    for directory, _, _ in os.walk(here, topdown=False):
        if Path(directory) != here:
            with contextlib.suppress(OSError):
                Path(directory).rmdir()
