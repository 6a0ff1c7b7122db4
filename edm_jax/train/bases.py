"""The run or snapshot that a run's weights start from, and the record of it.

RUN/base.json says which files the weights came from, with their checksums, and what was
loaded, adapted, initialized and dropped. It is written before the first step; a resumed
run compares the files with it.
"""

import dataclasses
import functools
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from etils import epath

from edm_jax import fields, files, original, tree
from edm_jax.ema import posthoc, snapshots
from edm_jax.ema.combine import Tree
from edm_jax.ema.container import is_local
from edm_jax.ema.grammar import AnyProfile, to_fields
from edm_jax.ema.profiles import PowerProfile
from edm_jax.ema.snapshots import Snapshot
from edm_jax.evals import sweeps
from edm_jax.models.unet import Params
from edm_jax.optim import chain
from edm_jax.original import Original
from edm_jax.runs import directory, schema
from edm_jax.train import transplant
from edm_jax.train.config import RunConfig
from edm_jax.train.starts import Weights

_log = logging.getLogger(__name__)
RECORD = "base.json"
_SCHEMA = 1
# Of the record, what snapshots of an adapter also say.
ADAPTED = ("adapter", "weights")
_DEFAULT = PowerProfile(0.1)
# Fields that a fine-tune may change without another function of the same weights.
_OWN = re.compile(
    r"network\.(resolution|channels|num_classes|attention_resolutions|init|zero_last"
    r"|dropout|dropout_resolutions|compute_dtype|half_precision|matmul_precision)$"
)
_SAME = re.compile(r"network\.|loss\.sigma_data$|data\.raw_(mean|std)$")


@dataclasses.dataclass(frozen=True)
class Source:
    """Stored averages of one network, of which `profile` at `nimg` is wanted.

    Attributes:
        own: the file that holds it; None where it is to be rebuilt.
        stored: snapshots, or those of the original code.
        before_nimg: images of the averages' clock before `nimg` counts from 0.
        fields: the config of its run, if known.
    """

    own: Snapshot | Original | None
    stored: Sequence[Snapshot | Original]
    profile: AnyProfile
    nimg: int
    before_nimg: int
    fields: dict[str, Any] | None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        first = self.own or self.stored[0]
        if isinstance(first, Snapshot):
            return dict(first.table)
        return {k: v.shape for k, v in snapshots.flatten(first.params()).items()}

    def weights(self, profiles: Sequence[AnyProfile]) -> list[dict[str, Any]]:
        """The average of each profile, {leaf: array}.

        Raises:
            ValueError: the stored averages cannot express a profile, or are damaged.
        """
        rest = [each for each in profiles if not self._holds(each)]
        made = dict(zip(rest, self._rebuilt(rest), strict=True)) if rest else {}
        found = {k: snapshots.flatten(v) for k, v in made.items()}
        if self.own is not None:
            found[self.profile] = snapshots.flatten(_read(self.own))
        return [found[each] for each in profiles]

    def check(self, profiles: Sequence[AnyProfile]) -> None:
        """Raises ValueError if the snapshots cannot express a profile; reads no weights."""
        rest = [each for each in profiles if not self._holds(each)]
        ours = [each for each in self.stored if isinstance(each, Snapshot)]
        if rest and any(each.meta.ancestry is not None for each in ours):
            raise ValueError(
                f"{ours[0].name} is a reconstruction, and training.start.ema='continue' "
                "takes up the averages that a run tracked: name the run or a snapshot "
                "of it."
            )
        if rest and ours:
            posthoc.from_files(ours, [(float(self.nimg), each) for each in rest])

    def inputs(self, profiles: Sequence[AnyProfile]) -> list[Snapshot | Original]:
        """The files behind these averages."""
        if all(map(self._holds, profiles)):
            return [] if self.own is None else [self.own]
        return list(self.stored)

    def _holds(self, profile: AnyProfile) -> bool:
        return self.own is not None and profile == self.profile

    def _rebuilt(self, profiles: Sequence[AnyProfile]) -> list[Params]:
        targets = [(float(self.nimg), each) for each in profiles]
        ours = [each for each in self.stored if isinstance(each, Snapshot)]
        if ours:
            return posthoc.in_memory(posthoc.from_files(ours, targets))
        theirs = [each for each in self.stored if isinstance(each, Original)]
        stored = [
            (float(each.nimg), PowerProfile(each.sigma_rel), Tree(each.path, params))
            for each, params in zip(theirs, map(_read, theirs), strict=True)
        ]
        return posthoc.in_memory(posthoc.make_plan(stored, targets))


def find(start: Weights, nimg: int | None = None) -> Source:
    """Finds the averages that a start names; reads headers only.

    Args:
        start: a config's `training.start`.
        nimg: the time of a run's averages; None is the last one.

    Raises:
        FileNotFoundError: there are none.
        ValueError: they are damaged, or of another kind.
    """
    if why := files.no_object_store(start.source):
        raise ValueError(f"training.start.source={why}.")
    path = Path(os.path.expanduser(start.source))
    if (path / "config.json").exists():
        return _of_run(path, start, nimg)
    if path.suffix == ".safetensors":
        return _of_snapshot(path, start)
    if path.suffix == ".pkl" or path.is_dir():
        return _of_originals(path, start, nimg)
    raise FileNotFoundError(
        f"training.start.source={start.source!r} is no run directory, no snapshot "
        "(.safetensors), and no snapshots of the original code (.pkl)."
    )


def _of_run(path: Path, start: Weights, nimg: int | None) -> Source:
    recorded = _config(path)
    place = directory.snapshot_place(path, recorded["training"]["snapshot_dir"])
    last = nimg or directory.read_status(path).get("best_nimg")
    stored = sweeps.usable(place, last)
    if not stored:
        raise ValueError(f"{path} has no snapshots yet: train it first.")
    profiles = {each.meta.profile for each in stored}
    only = next(iter(profiles)) if len(profiles) == 1 else _DEFAULT
    profile = PowerProfile(start.sigma_rel) if start.sigma_rel else only
    nimg = posthoc.last_nimg(stored) or stored[-1].meta.nimg
    return _source(stored, profile, nimg, recorded)


def _of_snapshot(path: Path, start: Weights) -> Source:
    snapshot = snapshots.open_snapshot(path)
    run = path.absolute().parent.parent
    recorded = _config(run) if (run / "config.json").exists() else None
    wanted = PowerProfile(start.sigma_rel) if start.sigma_rel else snapshot.meta.profile
    if wanted == snapshot.meta.profile or snapshot.meta.ancestry is not None:
        if wanted != snapshot.meta.profile:
            raise ValueError(
                f"{path} is a reconstruction of {snapshot.meta.profile.label}: leave out "
                "the sigma_rel, or name a snapshot of the run."
            )
        meta = snapshot.meta
        beside = [] if meta.ancestry is not None else _beside(path, meta.nimg)
        stored = beside or [snapshot]
        return Source(snapshot, stored, wanted, meta.nimg, meta.before_nimg, recorded)
    stored = _beside(path, snapshot.meta.nimg)
    return _source(stored, wanted, snapshot.meta.nimg, recorded)


def _beside(path: Path, nimg: int) -> list[Snapshot]:
    """The snapshots of the same run up to a time."""
    whole = snapshots.open_snapshot(path).meta.config_hash
    found = sweeps.usable(path.absolute().parent, nimg)
    return [
        each
        for each in found
        if each.meta.config_hash == whole and each.meta.ancestry is None
    ]


def _source(
    stored: Sequence[Snapshot],
    profile: AnyProfile,
    nimg: int,
    recorded: dict[str, Any] | None,
) -> Source:
    held = [s for s in stored if (s.meta.nimg, s.meta.profile) == (nimg, profile)]
    own = held[0] if held else None
    return Source(own, stored, profile, nimg, stored[0].meta.before_nimg, recorded)


def _of_originals(path: Path, start: Weights, nimg: int | None) -> Source:
    paths = original.find(path)
    if not paths:
        raise FileNotFoundError(
            f"training.start.source={start.source!r} holds no run and no snapshot of the "
            "original code."
        )
    named = [each for each in paths if original.is_named(each)]
    prefixes = sorted({original.name_of(each)[0] for each in named})
    if len(prefixes) > 1:
        raise ValueError(
            f"{path} holds snapshots of several networks ({', '.join(prefixes)}): name "
            f"one, such as {path / prefixes[0]}-*.pkl."
        )
    stored = [original.load(each) for each in named or paths]
    stored = [each for each in stored if 0 < each.nimg <= (nimg or each.nimg)]
    if not stored:
        raise ValueError(f"{path} holds no average: it was stored before training.")
    last = max(each.nimg for each in stored)
    lengths = {each.sigma_rel for each in stored}
    only = min(lengths) if len(lengths) == 1 else _DEFAULT.sigma_rel
    profile = PowerProfile(start.sigma_rel or only)
    held = [s for s in stored if (s.nimg, s.sigma_rel) == (last, profile.sigma_rel)]
    return Source(held[0] if held else None, stored, profile, last, 0, None)


def _config(run: Path) -> dict[str, Any]:
    """The config of a run as nested dicts."""
    path = run / "config.json"
    recorded = files.read_json(path)
    schema.check(recorded, path)
    try:
        return RunConfig.of(schema.upgrade(recorded)).to_dict()
    except ValueError as error:
        raise files.Damaged(path, f"is damaged: {error}") from error


def _read(stored: Snapshot | Original) -> Params:
    if isinstance(stored, Snapshot):
        return snapshots.read(stored.path)[0]
    wide = {k: np.float32(v) for k, v in snapshots.flatten(stored.params()).items()}
    return tree.unflatten(wide)


@dataclasses.dataclass(frozen=True)
class Base:
    """What a run starts from, as its base.json records it."""

    config: RunConfig
    record: dict[str, Any]

    @property
    def before_nimg(self) -> int:
        """Images on the clock of the run's averages before its first."""
        continues = _start(self.config).ema == "continue"
        return self.record["nimg"] if continues else 0

    @property
    def provenance(self) -> dict[str, Any]:
        """What the run's snapshots say of their base."""
        names = ("source", "checksum", "nimg", "profile")
        names += ADAPTED if self.config.is_adapted else ()
        told = {name: self.record[name] for name in names}
        return told | {"before_nimg": self.before_nimg}

    def initial(self, seed: int) -> tuple[Params, dict[str, Params] | None]:
        """The weights, and the averages where they continue; NumPy arrays.

        Args:
            seed: of the leaves that are drawn.

        Raises:
            ValueError: the files have changed, or cannot express the averages.
        """
        config, start = self.config, _start(self.config)
        source = find(start, self.record["run_nimg"])
        here = snapshots.flatten(config.model.network.init(seed))
        shapes = {name: each.shape for name, each in here.items()}
        found = transplant.fit(source.shapes, shapes, start, config.network)
        profiles = _profiles(config, source)
        made = [
            tree.unflatten(
                transplant.transplant(found, each, here, start, config.network)
            )
            for each in source.weights(profiles)
        ]
        params = made[0]
        if not config.is_adapted:
            params = chain.initial(config.optimizer, params)
        names = config.ema.profiles()
        return params, dict(zip(names, made[1:], strict=True)) if made[1:] else None


def begin(config: RunConfig) -> Base | None:
    """Finds the base of a config; None of a run from scratch.

    Raises:
        ValueError: there is no such base, or it does not fit the config's network.
    """
    start = config.training.start
    if not isinstance(start, Weights):
        return None
    source = find(start)
    here = {
        name: tuple(leaf.shape)
        for name, leaf in tree.flatten(config.model.network.shapes).items()
    }
    try:
        found = transplant.fit(source.shapes, here, start, config.network)
    except ValueError as error:
        said = str(error)
        why = said if said.startswith("training.") else f"{start.source}: {said}"
        differing = _differences(source, config)
        raise ValueError(why + _listed(differing)) from None
    profiles = _profiles(config, source)
    source.check(profiles)
    inputs = [_identity(each) for each in source.inputs(profiles)]
    sums = "".join(each["checksum"] for each in inputs)
    record = {
        "schema": _SCHEMA,
        "start": fields.plain(start),
        "source": start.source,
        "nimg": source.nimg + source.before_nimg,
        "run_nimg": source.nimg,  # without those of its own base
        "profile": to_fields(source.profile),
        "checksum": xxhash.xxh3_64_hexdigest(sums.encode()),
        "files": inputs,
        "loaded": found.loaded,
        "adapted": [each._asdict() for each in found.adapted],
        "initialized": found.initialized,
        "dropped": found.dropped,
        "differences": _differences(source, config),
    }
    base = Base(config, record)
    if config.is_adapted:
        record["adapter"] = config.to_dict()["adapter"]
        record["weights"] = weights_checksum(base.initial(config.seed)[0])
    return base


def weights_checksum(params: Params) -> str:
    """A checksum of weights, float32, wherever they are stored."""
    digest = xxhash.xxh3_64()
    for name, leaf in sorted(snapshots.flatten(params).items()):
        digest.update(name.encode())
        digest.update(snapshots.as_bytes(np.asarray(leaf, np.float32).ravel()))
    return digest.hexdigest()


def bound(config: RunConfig, base: Base | None = None) -> RunConfig:
    """The config with its base's weights, which are read when they are first needed.

    Args:
        config: a run's; one that starts from scratch is returned as it is.
        base: what the run recorded; None is what the config's start names now.

    Raises:
        ValueError: when they are read, as `Base.initial`, or if they have changed.
    """
    if not isinstance(config.training.start, Weights):
        return config

    @functools.cache
    def load() -> Params:
        found = base or begin(config)
        assert found is not None
        params = found.initial(config.seed)[0]
        if config.is_adapted and weights_checksum(params) != found.record["weights"]:
            raise ValueError(
                f"The weights of {found.record['source']}, which the adapter changes, "
                "are no longer those that it was trained on: restore them."
            )
        return params

    return config.with_base(load)


def of_run(config: RunConfig, run: Path) -> RunConfig:
    """A trained run's config with the base that it recorded."""
    record = directory.read_json(run / RECORD)
    if not record and not config.is_adapted:
        return config
    if not record:
        raise ValueError(
            f"{run / RECORD} is missing: it says which weights the adapter changes. "
            "Restore it from a copy."
        )
    return bound(config, Base(config, record))


def settle(config: RunConfig, run: Path, writing: bool, allow: bool) -> Base | None:
    """The base of a run that starts or resumes; its record is RUN/base.json.

    Args:
        config: the run's config.
        run: its directory.
        writing: whether this process writes the record.
        allow: whether the base may have changed since the run started.

    Raises:
        ValueError: as `begin`; or the base has changed.
    """
    start = config.training.start
    path = run / RECORD
    record = directory.read_json(path)
    place = run / "checkpoints"
    resumes = place.is_dir() and any(p.name.isdecimal() for p in place.iterdir())
    if not isinstance(start, Weights):
        if record and writing and not resumes:
            path.unlink()  # of a run that never began, with another config
        return None
    if resumes and not record:
        raise ValueError(
            f"{path} is missing: it says what the run started from. Restore it from a "
            "copy."
        )
    if record and not allow and (resumes or record.get("start") == fields.plain(start)):
        _check_unchanged(record, start, run, resumes)
    elif not resumes:
        base = begin(config)
        assert base is not None
        if writing:
            if listed := _listed(base.record["differences"]):
                _log.warning(
                    "The base computed another function of its weights:%s", listed
                )
            run.mkdir(parents=True, exist_ok=True)
            directory.write_json(path, base.record)
        return base
    return Base(config, record)


def _check_unchanged(
    record: dict[str, Any], start: Weights, run: Path, resumes: bool
) -> None:
    """Raises ValueError if a file of the base has changed; warns if it is gone."""
    for each in record["files"]:
        path = epath.Path(each["path"])
        moved = _place(start) / path.name
        path = path if path.exists() else moved
        if not path.exists():
            if resumes:
                _log.warning(
                    "%s is gone; the run resumes from its own checkpoint.", path
                )
                continue
            raise FileNotFoundError(
                f"{path} is gone, and {run} started from it: restore it."
            )
        if _unmoved(path, each):
            continue
        try:
            found = _checksum(path, each["checksum"])
        except files.Damaged as error:
            found = error.reason
        if found != each["checksum"]:
            raise ValueError(
                f"{path} has changed since {run} started from it: restore it, choose "
                "another --run directory, or accept the change with --allow=base."
            )


def _place(start: Weights) -> epath.Path:
    """The directory of a start's files."""
    path = Path(os.path.expanduser(start.source))
    if (path / "config.json").exists():
        recorded = _config(path)
        return directory.snapshot_place(path, recorded["training"]["snapshot_dir"])
    return epath.Path(path if path.is_dir() else path.parent)


def _identity(stored: Snapshot | Original) -> dict[str, Any]:
    """What tells a file from one that replaces it."""
    path = epath.Path(stored.path)
    found = {"path": os.fspath(path.absolute()), "checksum": ""}
    if is_local(path):
        stat = os.stat(path)
        found |= {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    if isinstance(stored, Snapshot):
        return found | {"checksum": stored.checksum}
    return found | {"checksum": _hash(path)}


def _unmoved(path: epath.Path, identity: dict[str, Any]) -> bool:
    """Whether a local file has neither been moved nor written to."""
    if not is_local(path):
        return False
    stat = os.stat(path)
    now = os.fspath(path.absolute()), stat.st_size, stat.st_mtime_ns
    return now == tuple(identity.get(k) for k in ("path", "bytes", "mtime_ns"))


def _checksum(path: epath.Path, wanted: str) -> str:
    """A file's checksum, of its contents too, unless the header says another already."""
    if path.suffix == ".pkl":
        return _hash(path)
    found = snapshots.open_snapshot(path).checksum
    if found == wanted:
        snapshots.read(path)  # raises Damaged where the contents do not match
    return found


def _hash(path: epath.Path) -> str:
    digest = xxhash.xxh3_64()
    with files.open_regular(path) as file:
        while part := file.read(2**24):
            digest.update(part)
    return digest.hexdigest()


def _start(config: RunConfig) -> Weights:
    start = config.training.start
    assert isinstance(start, Weights)
    return start


def _profiles(config: RunConfig, source: Source) -> list[AnyProfile]:
    """The averages that a run needs: of its weights, and those that it continues."""
    continued = config.ema.profiles().values()
    return [
        source.profile,
        *(continued if _start(config).ema == "continue" else ()),
    ]


def _differences(source: Source, config: RunConfig) -> dict[str, list[Any]]:
    """{field: [there, here]} of fields that change what the weights compute."""
    if source.fields is None:
        return {}
    there, here = (
        tree.flatten(each, ".") for each in (source.fields, config.to_dict())
    )
    return {
        name: [there.get(name), here.get(name)]
        for name in {**there, **here}
        if _SAME.match(name)
        and not _OWN.match(name)
        and there.get(name) != here.get(name)
    }


def _listed(differences: dict[str, list[Any]]) -> str:
    said = [f"{k} is {a!r} there and {b!r} here" for k, (a, b) in differences.items()]
    return f" {'; '.join(said)}." if said else ""
