"""Groups runs into configs, and sets aside runs that cannot be averaged."""

import collections
import json
import re
from collections.abc import Sequence
from typing import Any

from edm_jax import files, menu, tree
from edm_jax.report.read import identity
from edm_jax.report.runs import Aside, Entry, Json, Look, Run

COLOURS, DASHES = 7, 4  # in the palette, and kinds of line
IGNORED = ("letter", "title")  # fields that do not count as a difference


def ladder(runs: Sequence[Run], baseline: str | None = None) -> list[Entry]:
    """Groups runs that differ only in seed, and orders them by letter.

    The changes of a letter's config are listed against the nearest letter before it;
    those of an altered config against its letter's own config, or the first config of
    that letter if there is no such run.

    Args:
        runs: runs of any configs.
        baseline: the config to compare the others with: its letter, its label or a run's
            name; the first if None.

    Raises:
        ValueError: there is no such config; the message names a similar one.
    """
    entries: list[Entry] = []
    for altered, group in _groups(runs):
        letter = group[0].letter
        # If the ladder's own config is missing, the first one is an altered one.
        first = min(1, altered) if letter else 0
        variant = first + sum(e.letter == letter for e in entries if e.variant >= first)
        label = group[0].variant if altered else letter.upper()
        title, place = group[0].title, len(entries)
        reference = _reference(entries, letter, altered) if group[0].config else None
        found = Entry(letter, title, label, variant, group, reference, place=place)
        entries.append(found)
    labels = collections.Counter(entry.label.lower() for entry in entries)
    for entry in entries:
        if entry.label != entry.letter.upper() and labels[entry.label.lower()] > 1:
            entry.label = f"{entry.runs[0].study}/{entry.label}"
    if entries:
        chosen = entries[find_entry(entries, baseline)]
        chosen.is_baseline = True
        data = _fingerprint(chosen.runs, None)
        for entry, look in zip(entries, _looks(entries), strict=True):
            entry.look = look
            entry.aside = _aside(entry.runs, data)
            entry.other_data = _other_data(chosen.runs[0], data, entry)
    return entries


def _looks(entries: Sequence[Entry]) -> list[Look]:
    """A look for each config: its letter's colour, dashed if it is altered.

    If looks are not unique, or most configs are variants of a few letters, colours follow
    the order instead.
    """
    slots = [
        (ord(e.letter[0]) - ord("a")) % COLOURS if e.letter else 0 for e in entries
    ]
    each = zip(slots, entries, strict=True)
    by_letter = [Look(slot, entry.variant % DASHES) for slot, entry in each]
    letters = {entry.letter for entry in entries}
    if len(set(by_letter)) == len(entries) and 2 * len(letters) > len(entries):
        return by_letter
    # Grey, the first of the palette, comes last, because it stands out least.
    places = range(len(entries))
    return [Look((i + 1) % COLOURS, i // COLOURS % DASHES) for i in places]


def find_entry(entries: Sequence[Entry], name: str | None) -> int:
    """The place of the entry with this label, letter or run; 0 for None.

    Raises:
        ValueError: no entry or several match; the message lists the entries.
    """
    if name is None:
        return 0
    wanted = name.lower().rstrip("/")
    names = [({e.label.lower()}, _run_names(e)) for e in entries]
    for kind in (0, 1):  # labels before runs
        found = [i for i, each in enumerate(names) if wanted in each[kind]]
        if len(found) > 1:
            which = ", ".join(entries[i].label for i in found)
            raise ValueError(
                f"{name!r} matches several configs: choose one of {which}."
            )
        if found:
            return found[0]
    near = menu.suggest(wanted, [n for each in names for n in each[0] | each[1]])
    labels = ", ".join(entry.label for entry in entries)
    raise ValueError(f"There is no config {name!r}; there are {labels}.{near}")


def _run_names(entry: Entry) -> set[str]:
    names = {name for run in entry.runs for name in (run.name, run.variant)}
    names |= {f"{s}/{r.name}" for r in entry.runs for s in (r.study, r.parent)}
    return {name.lower() for name in names}


def _groups(runs: Sequence[Run]) -> list[tuple[bool, list[Run]]]:
    """For each config, whether it is altered, and its runs; each letter's own first."""
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.name):
        same = identity(run.config)
        # With alpha_ref=auto, each run of a config has found its own rate.
        if same and run.files["provenance"].get("learning_rate"):
            same = tree.flatten(same, ".") | {"optimizer.alpha_ref": "auto"}
        key = json.dumps(same, sort_keys=True) if same else str(run.path)
        groups.setdefault(key, []).append(run)
    found = []
    letters = collections.Counter(group[0].letter for group in groups.values())
    plain: set[str] = set()
    for group in groups.values():
        letter = group[0].letter
        alone = letters[letter] == 1
        altered = letter in plain or not any(_is_plain(run, alone) for run in group)
        if not altered:
            plain.add(letter)
        in_order = sorted(group, key=lambda r: (r.seed is None, r.seed or 0, r.name))
        found.append((altered, in_order))
    return sorted(found, key=lambda g: (g[1][0].letter or "~", g[0]))


def _is_plain(run: Run, alone: bool) -> bool:
    """Whether the run has the ladder's own config for its letter.

    It does if its name ends in the letter. A run with another name does if it is the only
    config of its letter, unless its name or command line says what was altered.
    """
    if not run.letter:
        return False
    words = re.split(r"[^a-z0-9]", run.variant.lower())
    if words[-1] == run.letter:
        return True
    overridden = any(
        re.match(r"--config\.(?!seed=|data\.data_dir=)", word) for word in run.command
    )
    return alone and words[0] != run.letter and not overridden


def _reference(entries: list[Entry], letter: str, altered: bool) -> Entry | None:
    """The earlier config that a config's changes are listed against."""
    same = [entry for entry in entries if letter and entry.letter == letter]
    if altered and same:
        return same[0]
    plain = [entry for entry in entries if entry.letter and entry.variant == 0]
    return plain[-1] if plain else None


def _aside(runs: Sequence[Run], data: Any) -> list[Aside]:
    """The runs of a config that are left out of its mean, in order, and why.

    Args:
        runs: the config's runs.
        data: the fingerprint of the baseline's data.
    """
    aside: dict[str, Aside] = {}
    own = _fingerprint(runs, data)
    by_seed: dict[Any, list[Run]] = {}
    for run in runs:
        key = str(run.path)
        if not run.measured:
            left = run.state == "done"  # trained, but not evaluated
            logged = run.logged_loss if left else None
            state = "not evaluated" if left else run.state
            aside[key] = Aside(run, state, run.message, logged)
        elif run.data is not None and run.data != own:
            differing = "; ".join(config_diff({"data": own}, {"data": run.data}))
            aside[key] = Aside(run, "other data", differing)
        else:
            by_seed.setdefault(key if run.seed is None else run.seed, []).append(run)
    for seed, same in by_seed.items():
        *others, last = sorted(
            same, key=lambda r: (r.evaluation.time if r.evaluation else 0.0, r.name)
        )
        for run in others:
            said = f"{last.name} has seed {seed}, too, and finished later, so it counts"
            aside[str(run.path)] = Aside(run, "same seed", said)
    return [aside[str(run.path)] for run in runs if str(run.path) in aside]


def _fingerprint(runs: Sequence[Run], preferred: Any) -> Any:
    """The data that most finished runs used, or the preferred if any run used them."""
    known = [run.data for run in runs if run.measured and run.data is not None]
    known = known or [run.data for run in runs if run.data is not None]
    if preferred in known or not known:
        return preferred if known else None
    return max(known, key=known.count)


def _other_data(baseline: Run, data: Any, entry: Entry) -> str:
    """How an entry's data differ from the baseline's; '' if they do not."""
    fields = [
        {"data": identity(run.config).get("data")} for run in (baseline, entry.runs[0])
    ]
    changes = config_diff(*fields) if all(f["data"] for f in fields) else []
    own = _fingerprint(entry.runs, data)
    if own is not None and data is not None and own != data:
        changes += config_diff({"data": data}, {"data": own})
    return "; ".join(changes)


def compact(value: Any) -> str:
    """A config's value in few characters."""
    if isinstance(value, str):
        return files.printable(" ".join(value.split())) or "''"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(compact, value))})"
    if isinstance(value, float) and value == round(value, 0) and abs(value) < 1e15:
        return str(int(value))
    return json.dumps(value).replace("Infinity", "inf")


def config_diff(before: Json, after: Json) -> list[str]:
    """Lists the fields that differ, as 'network.norm: group -> rms_group'.

    The letter and the title are not compared. A field that is missing on one side is
    '(absent)' there.
    """
    old, new = (
        {name: compact(value) for name, value in tree.flatten(side, ".").items()}
        for side in (before, after)
    )
    names = [*new, *(name for name in old if name not in new)]
    sides = {name: (old.get(name), new.get(name)) for name in names}
    return [
        files.printable(f"{name}: {was or '(absent)'} -> {now or '(absent)'}")
        for name, (was, now) in sides.items()
        if was != now and name not in IGNORED
    ]


def field_of(entry: Entry, name: str) -> Any:
    """A field of an entry's config by its dotted name; None if it does not exist."""
    return tree.flatten(entry.runs[0].config, ".").get(name)


def varying_fields(entries: Sequence[Entry]) -> list[str]:
    """The dotted names of fields that differ between configs of one letter."""
    letters = collections.defaultdict(list)
    for entry in entries:
        if entry.runs[0].config:
            config = identity(entry.runs[0].config)
            letters[entry.letter].append(tree.flatten(config, "."))
    found: dict[str, None] = {}
    for flat in letters.values():
        for name in dict.fromkeys(name for each in flat for name in each):
            values = {compact(each.get(name)) for each in flat}
            if len(values) > 1 and name not in IGNORED:
                found[name] = None
    return list(found)


def short_names(fields: Sequence[str]) -> list[str]:
    """The last parts of dotted names, or the whole names if those are not unique."""
    short = [name.rpartition(".")[2] for name in fields]
    return short if len(set(short)) == len(fields) else list(fields)
