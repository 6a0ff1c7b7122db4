"""Snapshots of the original code, made by hand: objects to opcodes, one by one."""

import re
import struct

import numpy as np

SOURCE = 'raise SystemExit("must never run")\n' * 20
MAGIC = 0x1950A86A20F9469CFC6C


class Code(bytes):
    """Opcodes that leave one object on the stack."""


def dump(value):
    """The opcodes of a Python value."""

    def group(start, items, end):
        return Code(start + b"(" + b"".join(map(dump, items)) + end)

    match value:
        case Code():
            return value
        case None | True | False:
            return Code({None: b"N", True: b"\x88", False: b"\x89"}[value])
        case int() if abs(value) < 2**31:
            return Code(b"J" + struct.pack("<i", value))
        case int():
            size = value.bit_length() // 8 + 1
            return Code(
                bytes([0x8A, size]) + value.to_bytes(size, "little", signed=True)
            )
        case float():
            return Code(b"G" + struct.pack(">d", value))
        case str():
            data = value.encode()
            return Code(b"X" + struct.pack("<I", len(data)) + data)
        case bytes():
            return Code(b"B" + struct.pack("<I", len(value)) + value)
        case tuple():
            return group(b"", value, b"t")
        case list():
            return group(b"]", value, b"e")
        case dict():
            return group(b"}", [x for pair in value.items() for x in pair], b"u")
    raise TypeError(value)


def called(name, *args, opcode=b"R"):
    """A call of a global, its name given as protocol 4 does."""
    module, attribute = (dump(part) for part in name.rsplit(".", 1))
    return Code(module + attribute + b"\x93" + dump(args) + opcode)


def pickled(value, protocol=4):
    return bytes([0x80, protocol]) + dump(value) + b"."


EMPTY = Code(b"}")
RECALLED = Code(b"h\x00")  # the source text of the first object


def ordered(pairs):
    return Code(called("collections.OrderedDict") + dump(pairs)[1:])


def easy(pairs):
    return Code(called("dnnlib.util.EasyDict", opcode=b"\x81") + dump(pairs)[1:])


def module(
    parameters=EMPTY, modules=EMPTY, name="", says=None, source=RECALLED, **buffers
):
    """A module of the class `name`, with the attributes that it `says`."""
    members = {
        "_parameters": ordered(parameters),
        "_buffers": buffers,
        "_non_persistent_buffers_set": Code(b"\x8f(" + dump("resample") + b"\x90"),
        "_modules": modules,
        "training": False,
        **(says or {}),
    }
    return persistent(members, source, name)


def persistent(state, source=RECALLED, name=""):
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": name}
    meta["state"] = state
    return called("torch_utils.persistence._reconstruct_persistent_obj", easy(meta))


def module_dict(modules):
    state = {"_parameters": {}, "_buffers": {}, "_modules": modules}
    container = called("torch.nn.modules.container.ModuleDict", opcode=b"\x81")
    return Code(container + dump(state) + b"b")


def storage(data, numel=None, key="94", listed=None, magic=MAGIC, kind="HalfStorage"):
    """The stream that torch.save writes of a storage, here of float16 numbers."""
    numel = len(data) // 2 if numel is None else numel
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    which = Code(f"ctorch\n{kind}\nq\x01".encode())
    claim = Code(dump(("storage", which, key, "cpu", numel, None)) + b"Q")
    parts = magic, 1001, system, claim, [listed or key]
    streams = b"".join(pickled(part, protocol=2) for part in parts)
    return streams + struct.pack("<q", numel) + data


def tensor(array, stream=None, offset=0, size=None, stride=None):
    array = np.asarray(array, np.float16)
    if stream is None:
        stream = storage(array.tobytes())
    size = array.shape if size is None else size
    stride = tuple(s // 2 for s in array.strides) if stride is None else stride
    loaded = called("torch.storage._load_from_bytes", stream)
    args = loaded, offset, size, stride, False, ordered({})
    return called("torch._utils._rebuild_tensor_v2", *args)


def parameter(array, **claims):
    made = tensor(array, **claims)
    return called("torch._utils._rebuild_parameter", made, False, ordered({}))


def snapshot(ema, **others):
    """A whole file; its first object stores the source text that the others recall."""
    claims = (1, (10**12,), called("numpy.dtype", "f8", False, True), False, b"")
    ndarray = Code(b"cnumpy\nndarray\n")
    array = called("numpy._core.multiarray._reconstruct", ndarray, (0,), b"b")
    encoder = {"raw_mean": Code(array + dump(claims) + b"b"), "vae": None}
    root = {
        "encoder": persistent(encoder, Code(dump(SOURCE) + b"q\x00")),
        "dataset_kwargs": easy({"path": "latents.zip", "use_labels": True}),
        **others,
        "ema": ema,
    }
    return pickled(root)


DEFAULTS = {
    "sigma_data": 0.5,
    "use_fp16": True,
    "label_balance": 0.5,
    "concat_balance": 0.5,
    "channels_per_head": 64,
    "dropout": 0,
    "res_balance": 0.3,
    "attn_balance": 0.3,
    "clip_act": 256,
    "resample_filter": [1, 1],
}


def tree(tensors, path="", whole=None, **given):
    """Nested modules of flat names -> arrays; `given` is what the network was made with."""
    whole, parts, modules = whole or tensors, {}, {}
    for name, value in tensors.items():
        head, dot, rest = name.partition(".")
        (modules.setdefault(head, {}) if dot else parts)[rest or head] = value
    buffers = {k: tensor(v) for k, v in parts.items() if k in ("freqs", "phases")}
    weights = {k: parameter(v) for k, v in parts.items() if k not in buffers}
    subs = {
        k: tree(v, f"{path}.{k}"[not path :], whole, **given)
        for k, v in modules.items()
    }
    if path in ("unet.enc", "unet.dec"):
        return module_dict(subs)
    name, says = _class(path, tensors, whole, DEFAULTS | given)
    if path in ("", "unet"):
        says["_init_kwargs"] = easy(given)
    return module(weights, subs, name, says, **buffers)


def _class(path, tensors, whole, given):
    """The class of the module at a path, and what an object of it remembers."""

    def pick(*names):
        return {name: given[name] for name in names}

    if path == "":
        says = pick("sigma_data", "use_fp16")
        if "unet.out_conv.weight" in whole:
            label = whole.get("unet.emb_label.weight", np.zeros((0, 0)))
            sides = [re.match(r"unet\.enc\.(\d+)x\d+_conv\.", name) for name in whole]
            side = max(int(match[1]) for match in sides if match)
            says |= {"img_resolution": side, "label_dim": label.shape[1]}
            says["img_channels"] = whole["unet.out_conv.weight"].shape[0]
        return "Precond", says
    if path == "unet":
        return "UNet", pick("label_balance", "concat_balance")
    if "emb_linear.weight" not in tensors:
        return "MPFourier" if path.endswith("_fourier") else "MPConv", {}
    channels = len(tensors["emb_linear.weight"])
    heads = max(channels // given["channels_per_head"], 1)
    kind = path.rpartition("_")[2]
    says = {
        "out_channels": channels,
        "flavor": path.split(".")[1],
        "resample_mode": kind if kind in ("up", "down") else "keep",
        "num_heads": heads if "attn_qkv.weight" in tensors else 0,
    }
    names = ("resample_filter", "dropout", "res_balance", "attn_balance", "clip_act")
    return "Block", says | pick(*names)
