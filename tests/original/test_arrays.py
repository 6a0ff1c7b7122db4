"""NumPy arrays in pickles: valid ones are read, and false claims are refused."""

import pickle
import pickletools
import subprocess
import sys

import numpy as np
import pytest
from pickle_writer import Code, called, dump, module

from edm_jax.original import arrays, pickles, reader
from edm_jax.original.pickles import Refused

BASE = np.arange(24).reshape(2, 3, 4)
ARRAYS = {
    "little endian": BASE.astype("<f4"),
    "big endian": BASE.astype(">f8"),
    "float16": BASE.astype(np.float16),
    "integers": BASE.astype(">i2"),
    "truths": BASE % 3 == 0,
    "Fortran order": np.asfortranarray(BASE.astype(np.float32)),
    "axes in another order": BASE.astype(np.float32).transpose(1, 2, 0),
    "not contiguous": BASE.astype(np.float32)[:, ::2],
    "read-only": np.frombuffer(bytes(range(8)), np.uint8),
    "no axes": np.array(2.5),
    "long": np.arange(2**16, dtype=np.float64),
    "a number": np.float32(0.25),
}


def decoded(data):
    return arrays.decode(pickles.stream(memoryview(data), pickles.Budget()))


@pytest.mark.parametrize("old", [False, True], ids=["NumPy 2", "older NumPy"])
@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("kind", ARRAYS)
def test_numpy_pickles_are_read_unchanged(kind, protocol, old):
    data = pickle.dumps(ARRAYS[kind], protocol)
    if old and protocol == 3:
        data = data.replace(b"cnumpy._core.", b"cnumpy.core.")
    elif old:
        data = renamed(data)
    found = decoded(data)
    assert not found.flags.writeable
    np.testing.assert_array_equal(found, ARRAYS[kind], strict=True)


def renamed(data):
    """The same pickle as a NumPy before 2 writes it; frames are left out."""
    made, parts = b"", [*pickletools.genops(data)]
    ends = [place for _, _, place in parts[1:]] + [len(data)]
    for (opcode, text, start), end in zip(parts, ends, strict=True):
        if opcode.name == "SHORT_BINUNICODE" and text.startswith("numpy._core."):
            name = text.replace("_core", "core").encode()
            made += b"\x8c" + bytes([len(name)]) + name
        elif opcode.name != "FRAME":
            made += data[start:end]
    return made


def test_an_array_out_of_band_is_refused():
    buffers = []
    data = pickle.dumps(ARRAYS["little endian"], 5, buffer_callback=buffers.append)
    assert buffers
    with pytest.raises(Refused, match="holds the pickle opcode NEXT_BUFFER"):
        decoded(data)


def dtype(code="f4", order="<", fields=None):
    made = called("numpy.dtype", code, False, True)
    return Code(made + dump((3, order, None, fields, None, -1, -1, 0)) + b"b")


def frombuffer(data=bytes(24), kind=None, shape=(2, 3), order="C", *more):
    name = "numpy._core.numeric._frombuffer"
    return called(name, data, kind or dtype(), shape, order, *more)


def reconstruct(data=bytes(24), kind=None, shape=(2, 3), fortran=False, version=1):
    made = called(
        "numpy._core.multiarray._reconstruct", Code(b"cnumpy\nndarray\n"), (0,), b"b"
    )
    return Code(made + dump((version, shape, kind or dtype(), fortran, data)) + b"b")


CLAIMS = {
    "too many numbers": ({"shape": (2, 4)}, "24 bytes a shape that does not match"),
    "too few numbers": ({"shape": (5,)}, "24 bytes a shape that does not match"),
    "half a number": ({"data": bytes(23)}, "23 bytes a shape that does not match"),
    "a huge shape": ({"shape": (2**62, 2**62, 2**62)}, "a shape that does not match"),
    "a negative shape": ({"shape": (-2, -3)}, "a shape that does not match"),
    "many axes": ({"shape": (1,) * 60 + (6,)}, "a shape that does not match"),
    "a list as shape": ({"shape": [2, 3]}, "unknown form"),
    "truths as shape": ({"shape": (True, 6)}, "a shape that does not match"),
    "objects": ({"kind": dtype("O8", "|")}, "not plain numbers"),
    "texts": ({"kind": dtype("U1")}, "not plain numbers"),
    "dates": ({"kind": dtype("M8")}, "not plain numbers"),
    "records": ({"kind": dtype("V24", "|", {"a": 1})}, "not plain numbers"),
    "fields": ({"kind": dtype("f4", "<", {"a": 1})}, "not plain numbers"),
    "a foreign byte order": ({"kind": dtype("f4", "!")}, "not plain numbers"),
    "a type without state": (
        {"kind": called("numpy.dtype", "f4", False, True)},
        "not plain numbers",
    ),
    "no type": ({"kind": "f4"}, "not plain numbers"),
    "no bytes": ({"data": "x" * 24}, "unknown form"),
}


@pytest.mark.parametrize("form", [frombuffer, reconstruct])
@pytest.mark.parametrize("claim", CLAIMS)
def test_an_array_whose_claims_do_not_match_its_bytes_is_refused(claim, form):
    claims, message = CLAIMS[claim]
    with pytest.raises(Refused, match=message):
        decoded(b"\x80\x04" + form(**claims) + b".")


@pytest.mark.parametrize(
    "made",
    [
        frombuffer(bytes(24), None, (2, 3), "A"),
        frombuffer(bytes(24), None, (2, 3), "K"),
        frombuffer(bytes(24), None, (2, 3), "K", (0, 0)),
        frombuffer(bytes(24), None, (2, 3), "K", (0, 2)),
        frombuffer(bytes(24), None, (2, 3), "K", (False, True)),
        reconstruct(fortran=2),
        called("numpy._core.multiarray.scalar", dtype()),
        called("numpy._core.multiarray._reconstruct", b"b"),
    ],
)
def test_an_array_of_another_form_is_refused(made):
    with pytest.raises(Refused, match="a NumPy array of an unknown form"):
        decoded(b"\x80\x04" + made + b".")


def test_a_type_that_holds_itself_is_refused_at_once():
    kind = Code(b"\x80\x04"[2:] + called("numpy.dtype", "f4", False, True) + b"q\x07")
    cycle = Code(kind + b"(" + dump(3) + dump("<") + b"NNh\x07" + dump(0) + b"tb")
    with pytest.raises(Refused, match="not plain numbers"):
        decoded(b"\x80\x04" + frombuffer(kind=cycle) + b".")


@pytest.mark.parametrize("protocol", [4, 5])
def test_a_snapshot_with_its_encoders_arrays_is_read_and_runs_nothing(
    tmp_path, protocol
):
    scale = np.float32(0.5) / np.float32([4.17, 4.62, 3.71, 3.28])
    whole = {"scale": scale, "bias": np.asfortranarray(scale[::-1]), "_vae": None}
    state = Code(pickle.dumps(whole, protocol)[2:-1])  # neither PROTO nor STOP
    meta = {"type": "class", "class_name": "StabilityVAEEncoder", "state": state}
    name = "torch_utils.persistence._reconstruct_persistent_obj"
    # It starts the memo, which the rest of the file does not use then.
    encoder = called(name, dump(meta))
    ema = module(source="source")
    path = tmp_path / "a-0000001-0.050.pkl"
    path.write_bytes(b"\x80\x05" + dump({"encoder": encoder, "ema": ema}) + b".")
    found = reader.read(path).encoder
    np.testing.assert_array_equal(arrays.decode(found["scale"]), scale)
    np.testing.assert_array_equal(arrays.decode(found["bias"]), scale[::-1])


def test_a_snapshots_file_is_not_copied_by_an_array():
    data = pickle.dumps(np.zeros(2**16), 5)
    view = memoryview(data)
    found = arrays.decode(pickles.stream(view, pickles.Budget()))
    assert np.shares_memory(found, np.frombuffer(view, np.uint8))


def test_numpy_imports_nothing_for_an_array():
    program = """
import sys, pickle
import numpy as np
from edm_jax.original import arrays, pickles
data = memoryview(pickle.dumps(np.ones((2, 3), ">f4"), 5))
arrays.decode(pickles.stream(data, pickles.Budget()))
events = []
sys.addaudithook(lambda event, args: events.append(event))
arrays.decode(pickles.stream(data, pickles.Budget()))
assert not events, events
"""
    subprocess.run([sys.executable, "-c", program], check=True)
