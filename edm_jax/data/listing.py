"""A long dataset.json read as one array of bytes, without an object for each name."""

import re
from typing import Any

import numpy as np

_HEAD = re.compile(rb'\s*\{\s*"labels"\s*:\s*\[')
_TAIL = re.compile(rb"\]\s*\]\s*[,}]")
_TWO_NUMBERS = re.compile(rb"\d\s+\d")
_QUOTE, _ZERO = ord('"'), ord("0")
_DIGITS = b"0123456789"
_SPACES = bytes(byte if byte in _DIGITS else ord(" ") for byte in range(256))
_LARGEST = 9  # digits of a class number that 32 bits hold
_CHUNK = 1 << 16  # names that are compared at a time


def numbers(names: np.ndarray, raw: bytes) -> np.ndarray | None:
    """The class numbers (N,) int32 of {"labels": [[name, number], ...]}.

    Args:
        names: the files (N,), sorted.
        raw: the list's bytes.

    Returns:
        None unless the list is in plain JSON of exactly these names in this order, as
        the original code writes it, with class numbers from 0; then a parser reads it.
    """
    head, tail = _HEAD.match(raw), _TAIL.search(raw)
    if not head or not tail or b"\\" in raw or not raw.rstrip().endswith(b"}"):
        return None
    text = np.frombuffer(raw, np.uint8)[head.end() : tail.start() + 1]
    quotes = np.flatnonzero(text == _QUOTE)
    starts, ends = quotes[::2] + 1, quotes[1::2]
    if len(starts) != len(names) or len(ends) != len(names):
        return None
    if not _are(names, text, starts, ends):
        return None
    inside = np.zeros(len(text), np.int8)
    inside[starts] += 1
    inside[ends] -= 1
    np.cumsum(inside, dtype=np.int8, out=inside)
    # What is left is ["",0],["",1],...
    rest = text[inside == 0].tobytes()
    if _TWO_NUMBERS.search(rest):
        return None
    rest = rest.translate(None, b" \t\r\n")
    count = len(names)
    if rest.translate(None, _DIGITS) != b'["",],' * (count - 1) + b'["",]':
        return None
    # Each number lies between a comma and a bracket: there is one for each name.
    left = np.frombuffer(rest, np.uint8)
    is_digit = (left >= _ZERO) & (left < _ZERO + 10)
    begin = np.flatnonzero(is_digit & ~np.roll(is_digit, 1))
    end = np.flatnonzero(is_digit & ~np.roll(is_digit, -1))
    sizes = end - begin + 1 if len(begin) == count == len(end) else np.zeros(1)
    if not (
        (sizes > 0).all()
        and (sizes <= _LARGEST).all()
        and (left[begin - 1] == ord(",")).all()
        and (left[end + 1] == ord("]")).all()
    ):
        return None
    return np.fromstring(rest.translate(_SPACES), np.int32, sep=" ")


def _are(
    names: np.ndarray, text: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> bool:
    """Whether the text between starts and ends (N,) is that of names (N,)."""
    width = names.dtype.itemsize
    if (ends - starts).max(initial=0) > width:
        return False
    for first in range(0, len(names), _CHUNK):
        part = slice(first, first + _CHUNK)
        found = cut(text, starts[part], ends[part], width)
        wanted = np.ascontiguousarray(names[part]).view(np.uint8)
        if not np.array_equal(found, wanted.reshape(found.shape)):
            return False
    return True


def cut(text: np.ndarray, starts: np.ndarray, ends: np.ndarray, width: int) -> Any:
    """Pieces (N, width) uint8 of a text (bytes,), zeros behind those that are shorter."""
    pieces = np.zeros((len(starts), width), np.uint8)
    for first in range(0, len(starts), _CHUNK):
        part = slice(first, first + _CHUNK)
        at = starts[part, None] + np.arange(width)
        found = text[np.minimum(at, len(text) - 1)]
        found[at >= ends[part, None]] = 0
        pieces[part] = found
    return pieces
