"""A pickle machine that builds inert nodes: it imports nothing and calls nothing.

It knows the opcodes and the names of globals in snapshots of the original code, and
refuses all others. Byte strings, such as the weights, remain views of the file; a budget
of operations limits the time and memory for everything else.
"""

import pickletools
import re
import struct
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, NoReturn

MODULE = "torch_utils.persistence._reconstruct_persistent_obj"
MODULE_DICT = "torch.nn.modules.container.ModuleDict"
PARAMETER = "torch._utils._rebuild_parameter"
TENSOR = "torch._utils._rebuild_tensor_v2"
STORAGE = "torch.storage._load_from_bytes"
NDARRAY, DTYPE = "numpy.ndarray", "numpy.dtype"
RECONSTRUCT = "numpy.core.multiarray._reconstruct"
SCALAR = "numpy.core.multiarray.scalar"
FROMBUFFER = "numpy.core.numeric._frombuffer"
DICTS = frozenset({"collections.OrderedDict", "dnnlib.util.EasyDict"})
OBJECTS = DICTS | {
    *(MODULE, MODULE_DICT, PARAMETER, TENSOR, STORAGE),
    *(NDARRAY, DTYPE, RECONSTRUCT, SCALAR, FROMBUFFER),
}
STORAGES = {"torch.HalfStorage": "<f2", "torch.FloatStorage": "<f4"}
# Of state dicts, which also count batches.
WEIGHT_STORAGES = STORAGES | {"torch.DoubleStorage": "<f8", "torch.LongStorage": "<i8"}
STATE_DICT = DICTS | {PARAMETER, TENSOR} | WEIGHT_STORAGES.keys()
# Of whole checkpoints, in the formats of `edm_jax.foreign.layout`.
FORMATS = {
    "torch.DoubleStorage": "F64",
    "torch.FloatStorage": "F32",
    "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16",
    "torch.LongStorage": "I64",
    "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16",
    "torch.CharStorage": "I8",
    "torch.ByteStorage": "U8",
    "torch.BoolStorage": "BOOL",
}
NAMESPACE = "argparse.Namespace"
# What training loops put beside weights; like all others, never looked up.
CHECKPOINT = FORMATS.keys() | {
    *(*DICTS, PARAMETER, TENSOR, NAMESPACE, SCALAR, DTYPE, RECONSTRUCT, NDARRAY),
    *("__builtin__.set", "builtins.set", "_codecs.encode", "copyreg._reconstructor"),
    *("__builtin__.object", "builtins.object", "collections.defaultdict"),
    *("torch.Size", "torch.device", "torch.float64", "torch.float32", "torch.float16"),
    *("torch.bfloat16", "pathlib.PosixPath", "pathlib.WindowsPath", "__builtin__.list"),
}

# The start of a legacy torch.save.
LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001

# A network of 36 blocks, as published, needs a sixth of this.
_MAX_OPERATIONS = 250_000
# A checkpoint holds its optimizer too: 20,000 tensors at 50 operations each.
CHECKPOINT_OPERATIONS = 1_000_000
# Longer texts are source code, which is not needed.
_MAX_TEXT = 255
_OPCODE_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


class Refused(Exception):
    """What is wrong with a file and what to do: a sentence without its subject."""

    def __init__(self, fault: str, advice: str = "do not trust this file") -> None:
        super().__init__(f"{fault}: {advice}.")


@dataclass
class Budget:
    """Operations left for one file, in all of its streams together."""

    left: int = _MAX_OPERATIONS
    total: int = _MAX_OPERATIONS

    def spend(self, operations: int = 1) -> None:
        """Raises Refused when the file asks for more than any snapshot needs."""
        self.left -= operations
        if self.left < 0:
            raise Refused(f"asks for more than {self.total} operations")


@dataclass(frozen=True, eq=False, slots=True)
class Global:
    """The name of a class or function, never looked up."""

    name: str


@dataclass(eq=False, slots=True)
class Node:
    """A call that was not made: the function's name, its arguments, and the state."""

    name: str
    args: tuple[Any, ...]
    state: Any = None


def stream(data: memoryview, budget: Budget) -> Any:
    """The object in a pickle; raises Refused for any other bytes."""
    machine = _Machine(data, budget, OBJECTS)
    result = machine.run()
    if machine.at != len(data):
        raise Refused("has bytes after the end of its pickle")
    return result


def nested_streams(
    data: memoryview, count: int, budget: Budget, names: Container[str] = STORAGES
) -> tuple[list[Any], memoryview]:
    """`count` pickles at the start of a tensor's stream, and the bytes after them."""
    machine = _Machine(data, budget, names)
    return [machine.run() for _ in range(count)], data[machine.at :]


class _Machine:
    """The stack, marks and memo of the pickle format; `at` is the next byte."""

    def __init__(self, data: memoryview, budget: Budget, names: Container[str]) -> None:
        self.data, self.budget, self.names = data, budget, names
        self.at = 0

    def foreign(self, what: str) -> NoReturn:
        if self.names is CHECKPOINT:
            advice = (
                "save the network's state_dict() alone, and only if you trust the file"
            )
            raise Refused(f"{what}, which no plain checkpoint holds", advice)
        raise Refused(f"{what}, which no snapshot of the original code holds")

    def run(self) -> Any:
        """Runs one pickle from `at` to its STOP, and returns its result."""
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # what lies under each open mark
        self.memo: dict[int, Any] = {}
        start = self.at
        while (code := self.take(1)) != b".":
            self.budget.spend()
            name = _OPCODE_NAMES.get(code[0], f"{code[0]:#04x}")
            if (name == "PROTO") != (self.at == start + 1):
                raise Refused("is not a pickle of protocol 2 or later")
            if name not in _OPERATIONS:
                self.foreign(f"holds the pickle opcode {name}")
            operation, argument = _OPERATIONS[name]
            operation(self, argument)
        result = self.pop(object)
        if self.stack or self.below:
            raise Refused("holds a pickle that stops half way")
        return result

    def take(self, size: int) -> memoryview:
        if size > len(self.data) - self.at:
            raise Refused("ends before its pickle does", "copy the file again")
        self.at += size
        return self.data[self.at - size : self.at]

    def unpack(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def pop(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise Refused(f"holds a pickle that lacks an expected {kind.__name__}")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        self.push(self.pop(kind))
        return self.stack[-1]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_mark(self) -> list[Any]:
        if not self.below:
            raise Refused("holds a pickle that lacks an expected mark")
        items, self.stack = self.stack, self.below.pop()
        return items

    # The operations, each with its argument from `_OPERATIONS`.

    def protocol(self, known: range) -> None:
        if (version := self.unpack("<B")) not in known:
            self.foreign(f"is a pickle of protocol {version}")

    def skip(self, size: int) -> None:
        self.take(size)

    def number(self, form: str) -> None:
        self.push(self.unpack(form))

    def long(self, form: str) -> None:
        self.push(int.from_bytes(self.take(self.unpack(form)), "little", signed=True))

    def binary(self, form: str) -> None:
        self.push(self.take(self.unpack(form)))

    def text(self, form: str) -> None:
        data = self.take(self.unpack(form))
        self.push(_decode(data) if len(data) <= _MAX_TEXT else data)

    def new(self, kind: type) -> None:
        self.push(kind())

    def mark(self, _: None) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pack(self, size: int | None) -> None:
        if size is None:
            return self.push(tuple(self.pop_mark()))
        items = [self.pop(object) for _ in range(size)]
        self.push(tuple(reversed(items)))

    def append(self, many: bool) -> None:
        items = self.pop_mark() if many else [self.pop(object)]
        self.top(list).extend(items)

    def set_items(self, many: bool) -> None:
        items = self.pop_mark() if many else [self.pop(object), self.pop(object)][::-1]
        if len(items) % 2:
            raise Refused("holds a dict with a key without a value")
        self.top(dict).update(zip(map(_key, items[::2]), items[1::2], strict=True))

    def add_items(self, _: None) -> None:
        items = self.pop_mark()
        self.top(set).update(map(_key, items))

    def put(self, form: str | None) -> None:
        self.memo[self.unpack(form) if form else len(self.memo)] = self.top(object)

    def get(self, form: str) -> None:
        index = self.unpack(form)
        if index not in self.memo:
            raise Refused("holds a pickle that uses a value it never stored")
        self.push(self.memo[index])

    def line(self) -> str:
        start = bytes(self.data[self.at : self.at + _MAX_TEXT + 1])
        return _decode(self.take(start.find(b"\n") + 1 or len(start) + 1)[:-1])

    def name(self, on_stack: bool) -> None:
        if on_stack:
            attribute, module = self.pop(str), self.pop(str)
        else:
            module, attribute = self.line(), self.line()
        name = f"{module}.{attribute}"
        # NumPy 2 renamed its package.
        known = re.sub(r"\Anumpy\._core\.", "numpy.core.", name)
        if known not in self.names:
            self.foreign(f"names the global {name!r}")
        self.push(Global(known))

    def call(self, _: None) -> None:
        args, callee = self.pop(tuple), self.pop(Global)
        is_dict = callee.name in DICTS and not args
        self.push({} if is_dict else Node(callee.name, args))

    def build(self, _: None) -> None:
        state = self.pop(object)
        if (
            self.names is not OBJECTS
            and self.stack
            and isinstance(self.stack[-1], dict)
        ):
            return  # the versions of PyTorch's modules
        self.top(Node).state = state

    def persistent(self, _: None) -> None:
        if self.names is OBJECTS:
            self.foreign("holds the pickle opcode BINPERSID outside of a tensor")
        self.push(Node("", self.pop(tuple)))


def _decode(data: memoryview) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise Refused("holds a text that is not UTF-8") from None


def _key(key: Any) -> str | int:
    # Hashing nested tuples can take exponential time, and long integers can collide.
    if type(key) is str or type(key) is int and abs(key) < 2**31:
        return key
    raise Refused("holds a dict with keys that are neither text nor small integers")


# {opcode: (operation, argument)}; all other opcodes are refused.
_OPERATIONS: dict[str, tuple[Callable[..., None], Any]] = {
    "PROTO": (_Machine.protocol, range(2, 6)),
    "FRAME": (_Machine.skip, 8),
    "NONE": (_Machine.push, None),
    "NEWTRUE": (_Machine.push, True),
    "NEWFALSE": (_Machine.push, False),
    "BININT": (_Machine.number, "<i"),
    "BININT1": (_Machine.number, "<B"),
    "BININT2": (_Machine.number, "<H"),
    "BINFLOAT": (_Machine.number, ">d"),
    "LONG1": (_Machine.long, "<B"),
    "SHORT_BINBYTES": (_Machine.binary, "<B"),
    "BINBYTES": (_Machine.binary, "<I"),
    "BINBYTES8": (_Machine.binary, "<Q"),
    "BYTEARRAY8": (_Machine.binary, "<Q"),
    "SHORT_BINUNICODE": (_Machine.text, "<B"),
    "BINUNICODE": (_Machine.text, "<I"),
    "BINUNICODE8": (_Machine.text, "<Q"),
    "EMPTY_LIST": (_Machine.new, list),
    "EMPTY_DICT": (_Machine.new, dict),
    "EMPTY_SET": (_Machine.new, set),
    "MARK": (_Machine.mark, None),
    "EMPTY_TUPLE": (_Machine.pack, 0),
    "TUPLE1": (_Machine.pack, 1),
    "TUPLE2": (_Machine.pack, 2),
    "TUPLE3": (_Machine.pack, 3),
    "TUPLE": (_Machine.pack, None),
    "APPEND": (_Machine.append, False),
    "APPENDS": (_Machine.append, True),
    "SETITEM": (_Machine.set_items, False),
    "SETITEMS": (_Machine.set_items, True),
    "ADDITEMS": (_Machine.add_items, None),
    "MEMOIZE": (_Machine.put, None),
    "BINPUT": (_Machine.put, "<B"),
    "LONG_BINPUT": (_Machine.put, "<I"),
    "BINGET": (_Machine.get, "<B"),
    "LONG_BINGET": (_Machine.get, "<I"),
    "GLOBAL": (_Machine.name, False),
    "STACK_GLOBAL": (_Machine.name, True),
    "REDUCE": (_Machine.call, None),
    "NEWOBJ": (_Machine.call, None),
    "BUILD": (_Machine.build, None),
    "BINPERSID": (_Machine.persistent, None),
}
