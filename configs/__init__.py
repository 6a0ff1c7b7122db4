"""The ladder of paper Table 1: config_a ... config_g, and what they are trained on.

`load` turns `configs/config_g.py:digits` and overrides into a locked ConfigDict.
"""

import contextlib
import difflib
import itertools
import os
import pathlib
from collections.abc import Mapping

import ml_collections
from absl import flags
from ml_collections.config_flags import tuple_parser

from configs.workloads import get_workload
from edm_jax import files, menu, tree
from edm_jax.optim import chain
from edm_jax.runs import schema
from edm_jax.train.config import RunConfig

LETTERS = "abcdefg"
CHOICES = menu.choices(RunConfig)
# {dotted field: its menu} of choices with fields of their own.
MENUS = {field: each for field, each in CHOICES.items() if each.kind is not None}
# {name: (the field that chooses, its entries)}
ALL_MENUS = {each.title: (each.flag, each.menu) for each in CHOICES.values()}
NO_VALUE = "(no value)"  # the text of an override that is a bare --config.FIELD


def load(reference: str, overrides: Mapping[str, str] | None = None) -> RunConfig:
    """The config of 'PATH.py:WORKLOAD' with dotted overrides, typed and checked.

    Raises ValueError or FileNotFoundError, one sentence that names the nearest right
    word, for a mistyped file, workload, field or value and for a contradiction.
    """
    path, _, workload = reference.partition(":")
    return _changed(_get_config(pathlib.Path(path), workload or "digits"), overrides)


def changed(config: RunConfig, overrides: Mapping[str, str]) -> RunConfig:
    """A run's config with overrides; raises as `load` does."""
    return _changed(ml_collections.ConfigDict(config.to_dict()), overrides)


def _changed(
    config: ml_collections.ConfigDict, overrides: Mapping[str, str] | None
) -> RunConfig:
    _complete(config)
    # What is chosen decides which fields there are.
    overrides = overrides or {}
    for field in sorted(overrides, key=lambda field: not field.endswith(".name")):
        _override(config, field, overrides[field])
    _complete(config)
    found = RunConfig.of(config)
    # Not when a run is read: it may have been trained so.
    sentences = chain.misfits(found.optimizer, found.training.duration_mimg)
    for sentence in itertools.chain(sentences, found.data.misfits()):
        raise ValueError(sentence)
    return found


def from_json(fields: Mapping, path: files.PathLike) -> RunConfig:
    """The config of a run's config.json.

    Raises files.Damaged, naming the file `path`, for fields that make no config.
    """
    try:
        return RunConfig.of(schema.upgrade(fields))
    except ValueError as error:
        raise files.Damaged(path, f"is damaged: {error}") from error


def letter_path(letter: str) -> pathlib.Path:
    """The file of a letter of the ladder."""
    return pathlib.Path(__file__).parent / f"config_{letter}.py"


def parent_letter(letter: str) -> str | None:
    """The letter before in the ladder; None before A."""
    return LETTERS[LETTERS.index(letter) - 1] if letter in tuple(LETTERS[1:]) else None


def _get_config(path: pathlib.Path, workload: str) -> ml_collections.ConfigDict:
    if not path.is_file():
        here = os.path.relpath(pathlib.Path(__file__).parent)
        names = {f"config_{letter}.py": letter for letter in LETTERS}
        found = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
        near = f" Did you mean {os.path.join(here, found[0])!r}?" if found else ""
        raise FileNotFoundError(
            f"There is no config file {str(path)!r}; this project's are "
            f"{here}/config_a.py to config_g.py.{near}"
        )
    get_config = files.run_python(path).get("get_config")
    if not callable(get_config):
        raise files.Damaged(path, "has no function get_config(workload).")
    is_ours = path.resolve().parent == pathlib.Path(__file__).resolve().parent
    with contextlib.nullcontext() if is_ours else files.blamed_on(path):
        config = get_config(workload)
    if not isinstance(config, ml_collections.ConfigDict):
        raise files.Damaged(path, "returns no ConfigDict from get_config(workload).")
    try:
        RunConfig.of(config)
    except ValueError as error:
        raise files.Damaged(path, f"makes no config: {error}") from error
    return config


def _override(config: ml_collections.ConfigDict, field: str, text: str) -> None:
    flat = flatten(config)
    of = field.removesuffix(".name")
    if field in flat and of in MENUS:
        if text != flat[field]:
            _choose(config, of, menu.choice(text))
        return
    if field in ("letter", "workload"):
        raise ValueError(
            f"{field!r} follows from --config=FILE:WORKLOAD; name it there."
        )
    if field not in flat:
        near = menu.suggest(field, list(flat))
        of = field.rpartition(".")[0]
        chosen = f" of {flat[f'{of}.name']!r}" if of in MENUS else ""
        raise ValueError(f"There is no field {field!r}{chosen}.{near}")
    old = flat[field]
    kind, parse = _PARSERS[type(old)]
    try:
        config.update_from_flattened_dict({field: parse(text)})
    except (TypeError, ValueError):
        said = (
            f"--config.{field} has no value" if text == NO_VALUE else f"{field}={text}"
        )
        raise ValueError(f"{said}, but takes {kind}; it is now {old!r}.") from None


def _complete(config: ml_collections.ConfigDict) -> None:
    """Gives every choice all its fields, and checks them, the user's own entries too."""
    for field in CHOICES:
        room, _, name = field.rpartition(".")
        _choose(config, field, config[room][name])


def _choose(config: ml_collections.ConfigDict, field: str, chosen: object) -> None:
    room, _, name = field.rpartition(".")
    made = CHOICES[field].whole(chosen)
    config[room][name] = (
        ml_collections.ConfigDict(made) if isinstance(made, dict) else made
    )


def _parse_bool(text: str) -> bool:
    return True if text == NO_VALUE else flags.BooleanParser().parse(text)


def _parse_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        if not (value := float(text)).is_integer():
            raise
        return int(value)


def _parse_tuple(text: str) -> tuple:
    value = tuple_parser.TupleParser().parse(text)
    if any(type(each) not in (int, float) for each in value):
        raise ValueError
    return value


def _parse_text(text: str) -> str:
    if text == NO_VALUE:
        raise ValueError
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


# What a field takes, and how a text becomes it: as ml_collections' flags have it.
_PARSERS = {
    bool: ("True or False", _parse_bool),
    int: ("a whole number", _parse_int),
    float: ("a number", flags.FloatParser().parse),
    tuple: ("a tuple of numbers, such as 0.05,0.1", _parse_tuple),
    str: ("text", _parse_text),
}


def duration_note(config: RunConfig) -> str:
    """A sentence on fields chosen for another duration than the run's; '' for none.

    A workload chooses its ramps, decays and intervals for its own duration, and they
    keep their values where training.duration_mimg alone is changed.
    """
    w = get_workload(config.workload)
    if config.training.duration_mimg == w.duration_mimg:
        return ""
    chosen = {
        "optimizer.warmup.rampup_mimg": w.rampup_mimg,
        "optimizer.schedule.t_ref": w.t_ref,
        "ema.halflives_mimg": (w.halflife_mimg,),
        "training.snapshot_mimg": w.snapshot_mimg,
        "training.log_mimg": w.log_mimg,
        "training.probe_mimg": w.probe_mimg,
        "training.checkpoint_mimg": 8 * w.snapshot_mimg,
    }
    fields = flatten(config)
    kept = [f"{f}={value}" for f, value in chosen.items() if fields.get(f) == value]
    if not kept:
        return ""
    return (
        f"training.duration_mimg is {config.training.duration_mimg:g}, and these fields "
        f"keep what {config.workload} has for its own {w.duration_mimg:g}: "
        f"{', '.join(kept)}."
    )


def flatten(
    config: Mapping | ml_collections.ConfigDict | RunConfig,
) -> dict[str, object]:
    """{'network.dropout': 0.1, ...}."""
    plain = config.to_dict() if isinstance(config, RunConfig) else config
    return tree.flatten(plain, ".")
