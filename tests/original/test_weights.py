"""Files of weights that others write, read without PyTorch, and hostile ones refused."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pickle_writer as w
import pytest
import safetensors.numpy

from edm_jax.original import weights

TENSORS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "bn.running_var": np.linspace(1, 2, 5, dtype=np.float32),
    "bn.num_batches_tracked": np.array(7, np.int64),
    "half": np.float16([[1, 2], [3, 4]]),
}
KINDS = {"<f4": "FloatStorage", "<f2": "HalfStorage", "<i8": "LongStorage"}


def entry(key, array, kind=None, numel=None, size=None, stride=None):
    """A tensor of a state dict, whose storage lies elsewhere in the file."""
    kind = kind or KINDS[array.dtype.str]
    which = w.Code(f"ctorch\n{kind}\n".encode())
    numel = array.size if numel is None else numel
    claim = w.Code(w.dump(("storage", which, key, "cpu", numel)) + b"Q")
    size = array.shape if size is None else size
    stride = (
        tuple(s // array.itemsize for s in array.strides) if stride is None else stride
    )
    args = claim, 0, size, stride, False, w.ordered({})
    return w.called("torch._utils._rebuild_tensor_v2", *args)


def state_dict(tensors=TENSORS, **claims):
    """With the versions of the modules, which PyTorch sets as an attribute."""
    entries = {
        name: entry(str(i), array, **claims)
        for i, (name, array) in enumerate(tensors.items())
    }
    return w.Code(
        w.ordered(entries) + w.dump({"_metadata": {"": {"version": 1}}}) + b"b"
    )


def legacy(root, arrays):
    system = {"protocol_version": 1001, "little_endian": True}
    keys = [str(i) for i in range(len(arrays))]
    parts = w.MAGIC, 1001, system, root, keys
    streams = b"".join(w.pickled(part, protocol=2) for part in parts)
    return streams + b"".join(struct.pack("<q", a.size) + a.tobytes() for a in arrays)


def zipped(root, arrays, method=zipfile.ZIP_STORED, **more):
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", method) as archive:
        archive.writestr("net/data.pkl", w.pickled(root, protocol=2))
        archive.writestr("net/byteorder", "little")
        for i, array in enumerate(arrays):
            archive.writestr(f"net/data/{i}", array.tobytes())
        for name, text in more.items():
            archive.writestr(f"net/{name}", text)
    return whole.getvalue()


FORMS = {
    "legacy.pth": legacy(state_dict(), TENSORS.values()),
    "new.pth": zipped(state_dict(), TENSORS.values()),
    "same.safetensors": safetensors.numpy.save(TENSORS),
    "nested.pickle": pickle.dumps(
        {
            "conv": {"weight": TENSORS["conv.weight"]},
            "bn": {
                k: TENSORS[f"bn.{k}"] for k in ("running_var", "num_batches_tracked")
            },
            "half": TENSORS["half"],
        }
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_each_form_gives_the_tensors_as_stored(tmp_path, name):
    (tmp_path / name).write_bytes(FORMS[name])
    found = weights.read(tmp_path / name)
    assert found.keys() == TENSORS.keys()
    for key, value in TENSORS.items():
        assert found[key].dtype == value.dtype
        np.testing.assert_array_equal(found[key], value)


@pytest.mark.parametrize("name", FORMS)
def test_a_truncated_file_is_refused(tmp_path, name):
    whole = FORMS[name]
    for size in (0, 1, 20, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:size])
        with pytest.raises(ValueError, match=name):
            weights.read(tmp_path / name)


ARRAY = np.ones(4, np.float32)
HOSTILE = {
    "a call": (
        zipped(w.called("os.system", "true"), []),
        "names the global 'os.system'",
    ),
    "a foreign storage": (
        zipped(state_dict({"a": ARRAY}, kind="ByteStorage"), [ARRAY]),
        "names the global 'torch.ByteStorage'",
    ),
    "a shape beyond its storage": (
        zipped(state_dict({"a": ARRAY}, size=(5,)), [ARRAY]),
        "beyond its storage",
    ),
    "too many numbers": (
        zipped(state_dict({"a": ARRAY}, numel=5), [ARRAY]),
        "claims 5 numbers for the storage '0', and holds 16 bytes",
    ),
    "a storage that is not there": (
        zipped(state_dict({"a": ARRAY}), []),
        "lacks the storage '0'",
    ),
    "a compressed archive": (
        zipped(state_dict({"a": ARRAY}), [ARRAY], zipfile.ZIP_DEFLATED),
        "is compressed",
    ),
    "a program": (
        zipped(state_dict({"a": ARRAY}), [ARRAY], **{"constants.pkl": ""}),
        "is a TorchScript program",
    ),
    "another byte order": (
        zipped(state_dict({"a": ARRAY}), [ARRAY]).replace(b"little", b"big---"),
        "is damaged",
    ),
    "a whole module": (
        zipped(w.ordered({"state": 1}), []),
        "'state', which is not a tensor: save the network's state_dict",
    ),
    "an empty dict": (pickle.dumps({}), "holds no tensors"),
    "an object": (pickle.dumps({"a": 1}), "'a', which is not a tensor"),
    "another count than the tensor's": (
        legacy(state_dict({"a": ARRAY}), [ARRAY]).replace(
            struct.pack("<q", 4) + ARRAY.tobytes(),
            struct.pack("<q", 5) + ARRAY.tobytes(),
        ),
        "ends before its storage '0' does",
    ),
    "a second storage": (
        legacy(state_dict({"a": ARRAY}), [ARRAY, ARRAY]),
        "lists a storage that no tensor has",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_in_one_sentence(tmp_path, kind):
    data, message = HOSTILE[kind]
    (tmp_path / "it.pth").write_bytes(data)
    with pytest.raises(ValueError, match=message) as raised:
        weights.read(tmp_path / "it.pth")
    assert str(tmp_path / "it.pth") in str(raised.value)


def test_tensors_that_share_a_storage_cannot_grow_beyond_the_file(tmp_path):
    names = {str(i): entry("0", np.ones(1000, np.float32)) for i in range(50)}
    data = zipped(w.ordered(names), [np.ones(1000, np.float32)])
    (tmp_path / "it.pth").write_bytes(data)
    with pytest.raises(ValueError, match="share their storage"):
        weights.read(tmp_path / "it.pth")
