"""Snapshots of the original code: read without running them, mapped without error.

The files are made by hand, opcode by opcode (pickle_writer.py).
"""

import collections
import dataclasses
import pickle
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
from pickle_writer import (
    Code,
    called,
    dump,
    module,
    parameter,
    persistent,
    pickled,
    snapshot,
    storage,
    tensor,
    tree,
)

from configs import config_g, workloads
from edm_jax import original
from edm_jax.files import Damaged
from edm_jax.original import mapping, pickles, reader
from edm_jax.train.config import RunConfig

NAME = "tiny-0000001-0.050.pkl"


def network(**changes):
    tiny = original.OriginalNetwork(8, 1, 10, 16, (1, 2), 1, (4,))
    return dataclasses.replace(tiny, **changes)


def random_tensors(net):
    rng = np.random.default_rng(0)
    shapes = {slot.name: slot.shape for slot in mapping.slots(net)}
    return {n: rng.standard_normal(s).astype(np.float16) for n, s in shapes.items()}


def config(net):
    whole = config_g.get_config("digits")
    whole.network.update(dataclasses.asdict(net))
    return whole


def shapes(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(k.key for k in path): leaf.shape for path, leaf in leaves}


WEIGHT = np.arange(6, dtype=np.float16).reshape(2, 3)
TINY = snapshot(tree({"unet.conv.weight": WEIGHT, "unet.gain": np.float16(2)}))


def read(directory, content):
    path = directory / NAME
    path.write_bytes(content)
    return reader.read(path).tensors


def refused(directory, content, message):
    with pytest.raises(Damaged, match=f"{NAME} .*{message}.*: .*[.]$"):
        read(directory, content)


def test_names_shapes_and_numbers_come_back_as_stored(tmp_path):
    tensors = random_tensors(network())
    arrays = read(tmp_path, snapshot(tree(tensors)))
    assert arrays.keys() == tensors.keys()
    for name, array in arrays.items():
        assert array.dtype == np.float16
        assert not array.flags.owndata  # a view of the file
        np.testing.assert_array_equal(array, tensors[name], strict=True)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_objects_are_read_as_the_standard_library_wrote_them(protocol):
    shared = ["w" * 255, -(2**31), 255, 65535, 2**79, -(2**79), 0.1, None, True, False]
    value = {"shared": shared, 1: [shared, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]}
    value |= {f"many {i}": {"one": [i]} for i in range(300)}
    value["ordered"] = collections.OrderedDict(a={}, b=[])
    if protocol > 2:
        value["bytes"] = [b"", b"1" * 300, b"2" * 2**17]
    if protocol > 3:
        value["sets"] = [set(), {"a", "b"}]
    data = memoryview(pickle.dumps(value, protocol))
    assert pickles.stream(data, pickles.Budget()) == value


def test_strides_and_an_offset_are_followed(tmp_path):
    made = parameter(
        WEIGHT, stream=storage(WEIGHT.tobytes()), offset=1, size=(2, 2), stride=(1, 3)
    )
    arrays = read(tmp_path, snapshot(module({"w": made})))
    np.testing.assert_array_equal(arrays["w"], [[1, 4], [2, 5]])


SIZES = [
    name for name in workloads.WORKLOADS if not name.startswith(("imagenet64", "toy"))
]


QUICK = {"digits", "imagenet512-s"}


@pytest.mark.parametrize(
    "workload",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in [*SIZES, "imagenet64-m"]
    ],
)
def test_every_published_size_maps_to_its_config_g_tree(workload):
    model = RunConfig.of(config_g.get_config(workload)).model
    net = original.OriginalNetwork(
        **{
            field.name: getattr(model.spec, field.name)
            for field in dataclasses.fields(original.OriginalNetwork)
            if hasattr(model.spec, field.name)
        }
    )
    slots = list(mapping.slots(net))
    zeros = {s.name: np.broadcast_to(np.float16(0), s.shape) for s in slots}
    assert mapping.infer(zeros) == dataclasses.replace(
        net, noise_channels=0, embedding_channels=0, dropout=0.0
    )
    arranged = {s.path: mapping.arrange(s, zeros[s.name]).shape for s in slots}
    assert arranged == shapes(model.shapes)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": 0},
        {"attention_resolutions": ()},
        {"attention_resolutions": (8, 4), "blocks_per_level": 2},
        {"resolution": 16, "channel_mult": (1, 2, 1)},
    ],
    ids=str,
)
def test_hand_made_sizes_map_to_trees_of_the_stored_format(changes):
    net = network(**changes)
    tensors = random_tensors(net)
    inferred = mapping.infer(tensors)
    assert inferred == net
    params = mapping.to_params(tensors, mapping.fit(tensors, inferred))
    last = params["unet"]["out_conv"]["kernel"]
    assert np.shares_memory(last, tensors["unet.out_conv.weight"])
    model = RunConfig.of(config(net)).model
    assert shapes(params) == shapes(model.shapes)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        fourier = path[-1].key in ("freqs", "phases")
        assert leaf.dtype == (np.float32 if fourier else np.float16)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "unet.dec.8x8_up.conv_res1.weight",
            None,
            "is missing, but must have .32, 32, 3, 3.",
        ),
        ("unet.out_gain", (1,), r"has shape \(1,\), but must have \(\)"),
        ("unet.enc.8x8_conv.weight", (16, 1, 3, 3), r"must have \(16, 2, 3, 3\)"),
        ("logvar_linear.weight", None, r"is missing, but must have \(1, 128\)"),
        ("unet.enc.4x4_block1.emb_gain", (), r"shape \(\) has no place"),
        ("unet.emb_fourier.freqs", None, "There is no tensor"),
        ("unet.emb_fourier.freqs", (7,), r"must have \(32, 7\)"),
        ("logvar_fourier.freqs", (64,), "logvar_channels = 64, but only 128"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, name, shape, message):
    tensors = random_tensors(network())
    tensors.pop(name, None)
    if shape is not None:
        tensors[name] = np.zeros(shape, np.float16)
    path = tmp_path / NAME
    path.write_bytes(snapshot(tree(tensors)))
    with pytest.raises(ValueError, match=message) as error:
        original.load(path)
    assert str(error.value).startswith(f"{path}: The")


def test_levels_end_where_the_resolution_does():
    tensors = random_tensors(network())
    last = tensors["unet.enc.4x4_block0.conv_res1.weight"]
    for side in (2, 1, 0):  # 0 would be halved for ever
        tensors[f"unet.enc.{side}x{side}_block0.conv_res1.weight"] = last
    tensors["unet.dec.1x1_in0.attn_qkv.weight"] = last
    assert mapping.infer(tensors).channel_mult == (1, 2, 2, 2)


def test_weights_that_are_not_finite_are_named(tmp_path):
    tensors = random_tensors(network())
    tensors["unet.emb_fourier.freqs"].view(np.uint16)[3] = 0x7C01  # a signalling NaN
    path = tmp_path / NAME
    path.write_bytes(snapshot(tree(tensors)))
    with pytest.raises(ValueError, match=f"{NAME}: .*'unet.emb_fourier.freqs' holds"):
        original.load(path).params()


def test_the_file_name_tells_prefix_nimg_and_sigma_rel():
    wanted = "edm2-img512-xxs", 2**31, 0.13
    assert original.name_of("runs/edm2-img512-xxs-2147483-0.130.pkl") == wanted
    assert original.name_of(Path("a-0008388-0.050.pkl")) == ("a", 2**23, 0.05)
    assert original.name_of("a-10737418-0.050.pkl")[1] == 5 * 2**31


@pytest.mark.parametrize(
    "name", ["a.pkl", "a-1-0.050.pkl", "a-0000001-0.05.pkl", "a-0000001-0.050.pt"]
)
def test_another_file_name_is_refused_before_the_file_is_opened(name):
    with pytest.raises(ValueError, match=f"{name} .*PREFIX-.kimg:07d.-.sigma_rel:.3f."):
        original.load(name)


def test_nothing_is_imported_compiled_or_executed_and_torch_is_not_needed(tmp_path):
    path = tmp_path / NAME
    path.write_bytes(snapshot(tree(random_tensors(network()))))
    program = """
import sys
from edm_jax import original
from edm_jax.files import Damaged
original.load(sys.argv[1]).params()
events = []
sys.addaudithook(lambda event, args: events.append(event))
original.load(sys.argv[1]).params()
assert set(events) == {"open", "mmap.__new__"}, events
absent = {"torch", "torch_utils", "dnnlib", "jax", "flax"}
assert not absent & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)


@pytest.mark.parametrize(
    "name",
    ["os.system", "builtins.eval", "torch.load", "builtins.set", "torch.HalfStorage"],
)
def test_any_other_global_is_refused_by_name(tmp_path, name):
    message = f"names the global '{name}', which no snapshot of the original code holds"
    refused(tmp_path, snapshot(tree({}), loss_fn=called(name, "x")), message)
    line = Code(b"c%s\n%s\n" % tuple(name.encode().rsplit(b".", 1)))
    refused(tmp_path, snapshot(tree({}), loss_fn=line), message)


def test_a_global_inside_a_tensor_is_refused_by_name(tmp_path):
    for stream in (
        storage(b"12", kind="load"),
        storage(b"12", magic=called("os.abort")),
    ):
        made = snapshot(module({"w": tensor(0, stream=stream)}))
        refused(tmp_path, made, "names the global '(torch.load|os.abort)'")


OPCODES = {
    "LONG4": b"\x8b" + struct.pack("<i", 2**30),
    "INST": b"ios\nsystem\n",
    "OBJ": b"(o",
    "EXT1": b"\x82\x01",
    "STRING": b"S'a'\n",
    "DUP": b"N2",
    "NEWOBJ_EX": b"N}\x92",
    "NEXT_BUFFER": b"\x97",
    "READONLY_BUFFER": b"N\x98",
    "BINPERSID": dump(("storage",)) + b"Q",
    "0xff": b"\xff",
}


@pytest.mark.parametrize("name", OPCODES)
def test_an_opcode_that_no_snapshot_needs_is_refused_by_name(tmp_path, name):
    content = snapshot(tree({}), loss_fn=Code(OPCODES[name]))
    refused(tmp_path, content, f"holds the pickle opcode {name}")


FORMS = {
    "a call of no global": (
        dump("os.system") + dump(()) + b"R",
        "lacks an expected Global",
    ),
    "a call with no tuple": (
        b"ccollections\nOrderedDict\nNR",
        "lacks an expected tuple",
    ),
    "a global of numbers": (b"K\x01K\x02\x93", "lacks an expected str"),
    "a global without end": (b"c" + b"a" * 600, "names the global 'aaa"),
    "state of a dict": (b"}}b", "lacks an expected Node"),
    "an empty stack": (b"(tR", "lacks an expected Global"),
    "no mark": (b"t", "lacks an expected mark"),
    "append to a tuple": (b")Na", "lacks an expected list"),
    "half a pair": (b"}(Nu", "a key without a value"),
    "an odd key": (b"})Ns", "neither text nor small"),
    "a long key": (b"}" + dump(2**61 - 1) + b"Ns", "neither text nor small"),
    "an odd member": (b"\x8f()\x90", "neither text nor small"),
    "recall of nothing": (b"h\x63", "never stored"),
    "a text of no encoding": (b"\x8c\x01\xff", "not UTF-8"),
    "a second start": (b"\x80\x04", "protocol 2 or later"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_pickle_that_contradicts_itself_is_refused(tmp_path, form):
    code, message = FORMS[form]
    refused(tmp_path, snapshot(tree({}), loss_fn=Code(code)), message)


def test_what_is_no_snapshot_is_refused(tmp_path):
    refused(tmp_path, b"", "ends before its pickle does")
    refused(tmp_path, b"PK\x03\x04", "not a pickle of protocol 2")
    refused(tmp_path, pickled(1, protocol=1), "a pickle of protocol 1")
    refused(tmp_path, pickled([]), "no averaged weights")
    refused(tmp_path, pickled({"net": None}), "no averaged weights")
    refused(tmp_path, TINY + b"N", "has bytes after the end")
    refused(tmp_path, b"\x80\x04NN.", "stops half way")
    refused(tmp_path, snapshot(None), "a module '' of an unknown form")
    refused(tmp_path, snapshot(persistent({})), "without a dict '_parameters'")
    refused(tmp_path, snapshot(module({"w": 1})), "a tensor 'w' of an unknown form")
    refused(tmp_path, snapshot(module({"a.w": 1})), "a member 'a.w' with a dot")
    with pytest.raises(FileNotFoundError, match=NAME):
        reader.read(tmp_path / "none" / NAME)


DATA = bytes(12)
TENSORS = {
    "an offset": ({"offset": 1}, "beyond its storage of 6 numbers"),
    "a negative offset": ({"offset": -1}, "beyond its storage"),
    "a stride": ({"stride": (4, 1)}, "beyond its storage"),
    "no stride": ({"size": (9, 9), "stride": (0, 0)}, "beyond its storage"),
    "a repeating stride": ({"size": (4, 3), "stride": (1, 1)}, "beyond its storage"),
    "a stride backwards": ({"offset": 5, "stride": (-3, -1)}, "beyond its storage"),
    "a huge shape": ({"size": (2**900, 2**900)}, "beyond its storage"),
    "a shape of nothing": ({"size": (0, 3)}, "beyond its storage"),
    "too few strides": ({"stride": (1,)}, "beyond its storage"),
    "a list": ({"size": [2, 3]}, "beyond its storage"),
    "many axes": ({"size": (1,) * 65, "stride": (1,) * 65}, "beyond its storage"),
    "numbers not there": ({"stream": storage(DATA, numel=7)}, "claims 7 numbers"),
    "numbers left over": ({"stream": storage(DATA, numel=5)}, "holds 12 bytes"),
    "half a number": ({"stream": storage(bytes(13))}, "holds 13 bytes"),
    "a count of two minds": (
        {"stream": storage(DATA)[:-20] + struct.pack("<q", 9) + DATA},
        "claims 6 numbers",
    ),
    "a gigabyte": ({"stream": storage(DATA, numel=2**30)}, "claims 1073741824"),
    "no numbers": ({"stream": storage(b"")}, "claims 0 numbers"),
    "less than none": ({"stream": storage(b"", numel=-4)}, "claims -4 numbers"),
    "another magic": ({"stream": storage(DATA, magic=1)}, "an unknown form"),
    "another key": ({"stream": storage(DATA, listed="95")}, "an unknown form"),
    "half a stream": ({"stream": storage(DATA)[:40]}, "ends before its pickle does"),
    "wider numbers": ({"stream": storage(DATA, kind="FloatStorage")}, "claims 6"),
}


@pytest.mark.parametrize("claim", TENSORS)
def test_a_tensor_that_claims_what_its_bytes_do_not_hold_is_refused(tmp_path, claim):
    claims, message = TENSORS[claim]
    made = parameter(WEIGHT, **{"stream": storage(DATA)} | claims)
    refused(tmp_path, snapshot(module({"w": made})), message)


def doubled(leaf, join, times=64):
    """Nested objects that each hold the previous one twice: 2^64 when walked or hashed."""
    made = dump(leaf) + b"r\x07\0\0\0"
    for _ in range(times):
        made = join(Code(made), Code(b"j\x07\0\0\0")) + b"r\x07\0\0\0"
    return Code(made)


MANY = 250_000
CYCLE = Code(b"}q\x07" + dump("a") + module(modules=Code(b"h\x07")) + b"s")
SHARED = {"w0": Code(parameter(np.zeros(2**16)) + b"q\x07")}
BOMBS = {
    "objects": ({"loss_fn": Code(b"(" + b"\x8f" * MANY + b"t")}, "more than 250000"),
    "a claimed length": ({"loss_fn": Code(b"\x8e" + b"\xff" * 8)}, "ends before"),
    "a claimed text": ({"loss_fn": Code(b"X" + b"\xff" * 4)}, "ends before"),
    "hashes": (
        {"loss_fn": Code(b"}" + doubled((), lambda a, b: dump((a, b))) + b"Ns")},
        "neither text nor small",
    ),
    "shared modules": (
        {"ema": doubled(module(), lambda a, b: module(modules={"a": a, "b": b}))},
        "more than 250000",
    ),
    "shared members": (
        {
            "ema": doubled(
                module(),
                lambda a, b: module(modules={"a": a} | dict.fromkeys(range(999), b)),
                times=4,
            )
        },
        "more than 250000",
    ),
    "shared tensors": (
        {"ema": module(SHARED | {f"w{i}": Code(b"h\x07") for i in range(1, 100)})},
        "share their storage",
    ),
    "a cycle": ({"ema": module(modules=CYCLE)}, "too deeply"),
    "deep modules": (
        {"ema": doubled(module(), lambda a, _: module(modules={"a": a}), 1000)},
        "too deeply",
    ),
    "long names": ({"ema": module({"a" * 256: None})}, "neither text nor small"),
}


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_in_little_memory(tmp_path, bomb):
    objects, message = BOMBS[bomb]
    content = snapshot(**{"ema": tree({})} | objects)
    tracemalloc.start()
    try:
        refused(tmp_path, content, message)
        assert tracemalloc.get_traced_memory()[1] < 2**27
    finally:
        tracemalloc.stop()


def test_deep_and_shared_objects_that_are_not_needed_are_skipped(tmp_path):
    deep = Code(b"]" * 100_000 + b"a" * 99_999)
    shared = doubled((), lambda a, b: dump((a, b)))
    content = snapshot(tree({"gain": 1.0}), deep=deep, shared=shared)
    assert read(tmp_path, content) == {"gain": 1.0}


def test_every_truncation_is_refused(tmp_path):
    for size in range(len(TINY)):
        with pytest.raises(ValueError, match=NAME):
            read(tmp_path, TINY[:size])


def test_flipped_bits_are_refused_or_read(tmp_path):
    rng = np.random.default_rng(0)
    refusals = 0
    for bit in rng.choice(8 * len(TINY), 1000, replace=False):
        content = bytearray(TINY)
        content[bit // 8] ^= 1 << bit % 8
        try:
            arrays = read(tmp_path, content)
            assert sum(array.size for array in arrays.values()) <= 7
        except ValueError as error:
            assert NAME in str(error)
            refusals += 1
    assert 100 < refusals < 900
