"""What tells one config from another in every figure: a colour and a dash."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from edm_jax.report.runs import Entry

# Told apart under the common colour-vision deficiencies; the page has each as --s0...
PALETTE = (
    "#6f7680",
    "#0a6cb3",
    "#27a3d9",
    "#0b8f68",
    "#c28e06",
    "#cb4f0f",
    "#8c45a8",
)
DASHES = 4  # kinds of line


@dataclass(frozen=True)
class Look:
    """A config's place in PALETTE and its kind of line, from 0 for a solid one."""

    slot: int
    dash: int

    @property
    def colour(self) -> str:
        return PALETTE[self.slot]


def assign(entries: Sequence[Entry]) -> list[Look]:
    """A look for each config: its letter's colour, dashed for altered ones.

    Where that does not tell them apart, or most are variants of few letters, colours
    go by order instead.
    """
    by_letter = [_by_letter(entry) for entry in entries]
    letters = Counter(entry.letter for entry in entries)
    if len(set(by_letter)) == len(entries) and 2 * len(letters) > len(entries):
        return by_letter
    # The grey of the first place comes last: it is the least of a colour.
    count = len(PALETTE)
    return [Look((i + 1) % count, i // count % DASHES) for i, _ in enumerate(entries)]


def _by_letter(entry: Entry) -> Look:
    slot = (ord(entry.letter[0]) - ord("a")) % len(PALETTE) if entry.letter else 0
    return Look(slot, entry.variant % DASHES)
