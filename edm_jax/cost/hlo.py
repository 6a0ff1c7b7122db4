"""What a compiled program computes, and moves between devices, read from its text."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64}
_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({_KINDS})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|bf16|[fsu]\d+)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(body|condition|calls|to_apply)=%?([\w.\-]+)")
_CALLED_MANY = re.compile(r"\b(branch|called)_computations=\{([^}]*)\}")

_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = .*? ([a-z][\w\-]*)\(")
_TRACED = re.compile(r'op_name="(?:[^"]*/)?(\w+)[^"/]*"')
_HOLD_OTHERS = "while|call|conditional|async"
_KIND_OF = {  # opcodes of instructions, and primitives that they were traced from
    "convolutions": "convolution conv_general_dilated",
    "matrix products": "dot dot_general",
    "collectives": " ".join(
        kind + end for kind in _KINDS.split("|") for end in ("", "-start", "-done")
    ),
    "reductions": "reduce reduce-window reduce_sum reduce_max",
}
_LAYOUT = [
    "copy",
    "copy-start",
    "copy-done",
    "transpose",
    "bitcast",
    "concatenate",
    "slice",
    "pad",
]


class Collective(NamedTuple):
    """One collective operation, which can combine many arrays."""

    kind: str  # such as 'all-reduce'
    dtypes: frozenset[str]  # such as {'f32'}
    bytes: int  # of the whole arrays: those that a gather makes, or a scatter takes
    in_loop: bool  # at each turn of a loop, such as that over micro-batches


def collectives(text: str) -> list[Collective]:
    """The collectives of an optimized HLO module, `compiled.as_text()`."""
    lines = dict(_computations(text))
    looped = _in_loops(lines)
    found = []
    for name, body in lines.items():
        for line in body:
            if match := _COLLECTIVE.search(line):
                shape, kind, start = match.groups()
                pairs = start and kind in ("all-gather", "collective-permute")
                size, dtypes = _size(_result(shape) if pairs else shape)
                if kind == "reduce-scatter":
                    size *= _group_size(line)
                found.append(Collective(kind, dtypes, size, name in looped))
    return found


def cycles(text: str) -> tuple[int, int]:
    """A TPU's estimated cycles outside loops, and of one turn of all loops.

    Of computation, not of collectives; text: of a program whose code is generated.
    """
    lines = dict(_computations(text))
    looped = _in_loops(lines)
    total = [0, 0]
    for name, body in lines.items():
        found = re.findall(r'"estimated_cycles":"(\d+)"', "\n".join(body))
        total[name in looped] += sum(map(int, found))
    return total[0], total[1]


def kinds(text: str) -> dict[str, str]:
    """What each operation of a program does, by its name in a profile.

    That is 'convolutions', 'matrix products', 'collectives', 'reductions', 'elementwise'
    or 'layout'; of a fusion, the first of these that is fused. What holds other operations
    of a profile, such as a loop, is left out.

    Args:
        text: An optimized HLO module, `compiled.as_text()`.
    """
    lines = dict(_computations(text))

    def named(line: str) -> Iterator[str]:
        opcode = _INSTRUCTION.match(line)
        traced = _TRACED.search(line)
        yield opcode[2] if opcode else ""
        yield traced[1] if traced else ""
        if opcode and opcode[2] == "fusion" and (called := _CALLED.search(line)):
            for inner in lines.get(called[2], ()):
                yield from named(inner)

    found = {}
    for line in (line for body in lines.values() for line in body):
        match = _INSTRUCTION.match(line)
        if match and not re.match(_HOLD_OTHERS, match[2]):
            words = set(named(line))
            of = (k for k, pattern in _KIND_OF.items() if words & set(pattern.split()))
            found[match[1]] = next(of, "elementwise")
            if match[2] in _LAYOUT:
                found[match[1]] = "layout"
    return found


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    body: list[str] = []
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            body = []
            yield match[2], body
        body.append(line)


def _in_loops(lines: dict[str, list[str]]) -> set[str]:
    """The computations that a loop runs, directly or not."""
    called: dict[str, set[str]] = {}
    todo = []
    for name, body in lines.items():
        for line in body:
            for how, other in _CALLED.findall(line):
                called.setdefault(name, set()).add(other)
                todo += [other] if how == "body" else []
            for _, others in _CALLED_MANY.findall(line):
                called.setdefault(name, set()).update(re.findall(r"[\w.\-]+", others))
    found: set[str] = set()
    while todo:
        if (name := todo.pop()) not in found:
            found.add(name)
            todo += called.get(name, ())
    return found


def _size(shape: str) -> tuple[int, frozenset[str]]:
    """Bytes and dtypes of an array, or of a tuple of them."""
    arrays = _ARRAY.findall(shape)
    sizes = (
        math.prod(int(n) for n in dims.split(",") if n) * _bits(dtype) // 8
        for dtype, dims in arrays
    )
    return sum(sizes), frozenset(dtype for dtype, _ in arrays)


def _bits(dtype: str) -> int:
    return _BITS.get(dtype) or int(re.sub(r"\D", "", dtype))


def _result(shape: str) -> str:
    """Of what an asynchronous operation returns, (inputs, outputs, ...), the outputs."""
    parts, depth, part = [], 0, ""
    for char in shape.removeprefix("(").removesuffix(")"):
        depth += char in "([{"
        depth -= char in ")]}"
        if char == "," and not depth:
            parts.append(part)
            part = ""
        else:
            part += char
    parts.append(part)
    return parts[1] if len(parts) > 1 else parts[0]


def _group_size(line: str) -> int:
    """How many devices take part: replica_groups=[1,8]<=[8] or {{0,1},{2,3}}."""
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    match = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    return len(match[1].split(",")) if match else 1
