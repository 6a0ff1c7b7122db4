"""The ladder of paper Table 1, config_a ... config_g, and the workloads.

`load` turns `configs/config_g.py:digits` and overrides into a typed RunConfig.
"""

import contextlib
import dataclasses
import difflib
import itertools
import os
import pathlib
from collections.abc import Mapping

import ml_collections
from absl import flags
from ml_collections.config_flags import tuple_parser

from configs.workloads import get_workload
from edm_jax import fields, files, menu, tree
from edm_jax.optim import chain
from edm_jax.optim.groups import Group
from edm_jax.runs import schema
from edm_jax.train.config import RunConfig

LETTERS = "abcdefg"
CHOICES = menu.choices(RunConfig)
# {dotted field: its menu} for choices whose entries have fields.
MENUS = {field: each for field, each in CHOICES.items() if each.kind is not None}
# {name: (the field that chooses, its entries)}
ALL_MENUS = {each.title: (each.flag, each.menu) for each in CHOICES.values()}
GROUPS = "optimizer.groups"
GROUP_CHOICES = menu.choices(Group)
NO_VALUE = "(no value)"  # the text of an override that is a bare --config.FIELD


def load(reference: str, overrides: Mapping[str, str] | None = None) -> RunConfig:
    """Loads the config 'PATH.py:WORKLOAD' with dotted overrides, typed and checked.

    Raises:
        ValueError: a workload, field or value is wrong, or two fields contradict.
        FileNotFoundError: there is no such file.
    """
    path, _, workload = reference.partition(":")
    return _changed(_get_config(pathlib.Path(path), workload or "digits"), overrides)


def changed(config: RunConfig, overrides: Mapping[str, str]) -> RunConfig:
    """Applies overrides to a run's config; raises as `load` does."""
    return _changed(ml_collections.ConfigDict(config.to_dict()), overrides)


def _changed(
    config: ml_collections.ConfigDict, overrides: Mapping[str, str] | None
) -> RunConfig:
    _complete(config)
    # Choices first: they decide which other fields exist.
    overrides = overrides or {}
    for field in sorted(overrides, key=lambda field: not field.endswith(".name")):
        _override(config, field, overrides[field])
    _complete(config)
    found = RunConfig.of(config)
    # Checked here only, so that a run that was trained this way can still be read.
    sentences = chain.misfits(found.optimizer, found.training.duration_mimg)
    for sentence in itertools.chain(sentences, found.data.misfits()):
        raise ValueError(sentence)
    return found


def from_json(fields: Mapping, path: files.PathLike) -> RunConfig:
    """Reads the config from the fields of a run's config.json at `path`.

    Raises:
        files.Damaged: the fields do not make a config.
    """
    try:
        return RunConfig.of(schema.upgrade(fields))
    except ValueError as error:
        raise files.Damaged(path, f"is damaged: {error}") from error


def letter_path(letter: str) -> pathlib.Path:
    """The config file of a letter."""
    return pathlib.Path(__file__).parent / f"config_{letter}.py"


def parent_letter(letter: str) -> str | None:
    """The letter before this one in the ladder; None for A."""
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
        raise files.Damaged(path, "must return a ConfigDict from get_config(workload).")
    try:
        RunConfig.of(config)
    except ValueError as error:
        raise files.Damaged(path, f"returns an invalid config: {error}") from error
    return config


def _override(config: ml_collections.ConfigDict, field: str, text: str) -> None:
    _begin_group(config, field)
    menus = choices(config)
    flat = flatten(config)
    of = field.removesuffix(".name")
    if field in flat and of in menus and menus[of].kind is not None:
        if text != flat[field]:
            _choose(config, of, menu.choice(text))
        return
    if field in ("letter", "workload"):
        raise ValueError(
            f"{field!r} is set by --config=FILE:WORKLOAD: change it there."
        )
    if field not in flat:
        near = menu.suggest(field, list(flat))
        of = field.rpartition(".")[0]
        chosen = f" of {flat[f'{of}.name']!r}" if f"{of}.name" in flat else ""
        raise ValueError(f"There is no field {field!r}{chosen}.{near}")
    old = flat[field]
    kind, parse = _PARSERS[type(old)]
    try:
        config.update_from_flattened_dict({field: parse(text)})
    except (TypeError, ValueError):
        said = (
            f"--config.{field} has no value" if text == NO_VALUE else f"{field}={text}"
        )
        raise ValueError(f"{said}, but must be {kind}; it is now {old!r}.") from None


def choices(config: ml_collections.ConfigDict) -> dict[str, menu.Choosable]:
    """{dotted field: its menu} of a config, those of its groups of parameters included."""
    found = dict(CHOICES)
    for name in config.optimizer.groups:
        for field, each in GROUP_CHOICES.items():
            path = f"{GROUPS}.{name}.{field}"
            found[path] = dataclasses.replace(each, path=path)
    return found


def _begin_group(config: ml_collections.ConfigDict, field: str) -> None:
    """Adds the group of parameters that a field belongs to, if it is not there yet."""
    room, _, rest = field.partition(f"{GROUPS}.")
    name, _, rest = rest.partition(".")
    if not room and rest and name not in config.optimizer.groups:
        config.optimizer.groups[name] = ml_collections.ConfigDict(fields.plain(Group()))


def _complete(config: ml_collections.ConfigDict) -> None:
    """Gives every choice all its fields and checks them, for users' own entries, too."""
    for name, group in config.optimizer.groups.items():
        made = fields.make(Group, f"{GROUPS}.{name}", dict(group.items()))
        config.optimizer.groups[name] = ml_collections.ConfigDict(fields.plain(made))
    for field in choices(config):
        _choose(config, field, _room(config, field)[field.rpartition(".")[2]])


def _choose(config: ml_collections.ConfigDict, field: str, chosen: object) -> None:
    made = choices(config)[field].whole(chosen)
    _room(config, field)[field.rpartition(".")[2]] = (
        ml_collections.ConfigDict(made) if isinstance(made, dict) else made
    )


def _room(config: ml_collections.ConfigDict, field: str) -> ml_collections.ConfigDict:
    """The part of a config that holds a field."""
    for name in field.split(".")[:-1]:
        config = config[name]
    return config


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


# {type: (what a message calls it, text -> value)}, parsed as ml_collections' flags are.
_PARSERS = {
    bool: ("True or False", _parse_bool),
    int: ("a whole number", _parse_int),
    float: ("a number", flags.FloatParser().parse),
    tuple: ("a tuple of numbers, such as 0.05,0.1", _parse_tuple),
    str: ("text", _parse_text),
}


def duration_note(config: RunConfig) -> str:
    """A note on fields that suit another duration than the run's; '' if there are none.

    A workload chooses ramps, decays and intervals for its own duration; they keep their
    values when only training.duration_mimg is changed.
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
        f"training.duration_mimg is {config.training.duration_mimg:g}, but these fields "
        f"still suit {config.workload}'s own {w.duration_mimg:g}: {', '.join(kept)}."
    )


def flatten(
    config: Mapping | ml_collections.ConfigDict | RunConfig,
) -> dict[str, object]:
    """{'network.dropout': 0.1, ...}."""
    plain = config.to_dict() if isinstance(config, RunConfig) else config
    return tree.flatten(plain, ".")
