"""Exports hold the network and its weights, and come back to the bit."""

import ast
import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import exported_modules
import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import tiny_exports
from tiny_unets import example, tiny_config

import configs
from edm_jax import export
from edm_jax.diffusion import Denoiser
from edm_jax.ema import snapshots
from edm_jax.export import names
from edm_jax.files import Damaged
from experiments import cli, import_weights
from experiments import export as command

ORACLES = Path(__file__).parent.parent / "oracles"
TEMPLATE = Path(export.__file__).parent / "torch_denoiser.py"
# A Python that has PyTorch, where this one has not.
TORCH = os.environ.get("EDM_JAX_TORCH_PYTHON", sys.executable)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """letter -> (snapshot, what is exported of it)"""
    place = tmp_path_factory.mktemp("runs")
    return functools.cache(lambda c: tiny_exports.bundle_of(place / c, c))


class Module:
    """As much of torch.nn.Module as makes a module: its parameters, not what it does."""

    def __init__(self):
        self._members = {}

    def __setattr__(self, name, value):
        if isinstance(value, Module | np.ndarray):
            self._members[name] = value
        object.__setattr__(self, name, value)

    register_buffer = add_module = __setattr__

    def shapes(self, prefix=""):
        found = {}
        for name, part in self._members.items():
            inner = isinstance(part, Module)
            found |= part.shapes(f"{prefix}{name}.") if inner else {
                prefix + name: part.shape
            }  # fmt: skip
        return found


def shapes_of(text, monkeypatch):
    """Names and shapes of the state dict that a module's text makes, without PyTorch."""
    torch, functional = types.ModuleType("torch"), types.ModuleType("functional")
    torch.nn = types.ModuleType("torch.nn")
    torch.nn.Module, torch.nn.Parameter, torch.nn.Identity = Module, np.asarray, Module
    torch.nn.functional, torch.float32 = functional, np.float32
    torch.no_grad = lambda: lambda function: function
    torch.zeros = torch.ones = torch.randn = torch.rand = lambda *shape: np.zeros(
        shape[0] if shape and isinstance(shape[0], tuple) else shape
    )
    for name in ("torch", "torch.nn", "torch.nn.functional"):
        stand_in = {"torch": torch, "torch.nn": torch.nn}.get(name, functional)
        monkeypatch.setitem(sys.modules, name, stand_in)
    made = {"__name__": "torch_denoiser"}
    exec(text, made)  # noqa: S102  our own text
    return made["Denoiser"]().shapes()


@pytest.mark.slow
@pytest.mark.parametrize("letter", "abcdefg")
def test_the_modules_parameters_are_those_of_the_file(letter, bundles, monkeypatch):
    _, found = bundles(letter)
    held = {k: v.shape for k, v in names.to_pytorch(found.tensors).items()}
    assert shapes_of(tiny_exports.text_of(letter, found), monkeypatch) == held


@pytest.mark.slow
@pytest.mark.parametrize("letter", "abcdefg")
def test_golden_outputs_are_of_the_modules_as_they_are_now(letter, bundles):
    """tests/models/test_unet.py compares those outputs with ours."""
    text = tiny_exports.text_of(letter, bundles(letter)[1])
    with np.load(ORACLES / "exported_modules.npz") as golden:
        assert exported_modules.digest(text) == golden[f"{letter}_text"]


def test_the_module_uses_every_setting_that_it_is_given(bundles):
    tree = ast.parse(tiny_exports.text_of("g", bundles("g")[1]))
    [given] = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "NET"
    ]
    used = {
        node.slice.value
        for node in ast.walk(ast.parse(TEMPLATE.read_text()))
        if isinstance(node, ast.Subscript) and getattr(node.value, "id", "") == "NET"
        and isinstance(node.slice, ast.Constant)
    } | {"raw_mean", "raw_std"}  # fmt: skip
    assert set(given) == used


def test_an_operation_from_a_users_file_is_refused(bundles):
    config = tiny_config("g").to_dict()
    config["network"]["activation"] = {"name": "mine.py:Mine"}
    network = type(tiny_config("g")).of(config).network
    with pytest.raises(ValueError, match="a file of yours"):
        export.module(network, Denoiser(tiny_config("g").model, 0.5), bundles("g")[1])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("form", [export.write_weights, export.write_state_dict])
def test_weights_come_back_to_the_byte(form, dtype, tmp_path):
    snapshot, found = tiny_exports.bundle_of(tmp_path, "b", dtype)
    form(tmp_path / "out.safetensors", found)
    path, same = export.restore(
        tmp_path / "back", export.read(tmp_path / "out.safetensors"), "out"
    )
    assert same and path.read_bytes() == snapshot.read_bytes()


def test_weights_of_two_formats_come_back_to_the_byte(tmp_path):
    run, snapshot = tiny_exports.store(tmp_path / "run", "g")
    params, meta = snapshots.read(snapshot)
    meta = dataclasses.replace(meta, dtype="float16")
    exact = {n for n in snapshots.flatten(params) if n.endswith(("freqs", "phases"))}
    snapshot = snapshots.write(run.snapshots, params, meta, exact=exact)
    out = tmp_path / "out.safetensors"
    export.write_state_dict(out, export.bundle(snapshot, {}))
    path, same = export.restore(tmp_path / "back", export.read(out), "out")
    assert same and path.read_bytes() == snapshot.read_bytes()


def test_a_plain_export_is_a_snapshot_and_any_reader_of_safetensors_reads_it(
    bundles, tmp_path
):
    snapshot, found = bundles("g")
    path = tmp_path / "weights.safetensors"
    export.write_weights(path, found)
    ours, _ = snapshots.read(path)
    jax.tree.map(np.testing.assert_array_equal, ours, snapshots.read(snapshot)[0])
    theirs = safetensors.numpy.load_file(path)
    for name, each in snapshots.flatten(ours).items():
        np.testing.assert_array_equal(theirs[name], each)
    with safetensors.safe_open(path, "np") as file:
        config = json.loads(file.metadata()["config"])
    assert configs.from_json(config, path) == tiny_config("g")


def bare(tensors, path, prefix=""):
    """A state dict of PyTorch, which says nothing of where it comes from."""
    ready = {prefix + k: np.array(v, np.float32, order="C") for k, v in tensors.items()}
    safetensors.numpy.save_file(ready, path)


def test_a_bare_state_dict_comes_back_by_the_file_that_it_began_as(tmp_path):
    snapshot, found = tiny_exports.bundle_of(tmp_path, "g", "float16")
    like, path = tmp_path / "like.safetensors", tmp_path / "bare.safetensors"
    export.write_state_dict(like, found)
    state = names.to_pytorch(found.tensors)
    bare(state, path, "module.")
    with pytest.raises(Damaged, match="--like="):
        export.read(path)
    back, same = export.restore(tmp_path / "same", export.read(path, like), "bare")
    assert same and back.read_bytes() == snapshot.read_bytes()
    # Trained further, in numbers that float16 does not have:
    state["unet.out_conv.weight"] = state["unet.out_conv.weight"].astype(float) * 1.1e5
    bare(state, path)
    back, same = export.restore(tmp_path / "tuned", export.read(path, like), "bare")
    params, meta = snapshots.read(back)
    assert not same and meta.ancestry["file"] == "bare"
    wanted = safetensors.numpy.load_file(path)["unet.out_conv.weight"]
    found = params["unet"]["out_conv"]["kernel"].transpose(3, 2, 0, 1)
    np.testing.assert_array_equal(found, wanted)
    del state["unet.out_conv.weight"]
    bare(state, path)
    with pytest.raises(Damaged, match="another network"):
        export.read(path, like)


@pytest.mark.slow
def test_stablehlo_computes_the_same_for_any_batch(bundles, tmp_path):
    tensors = bundles("g")[1].tensors
    model = tiny_config("g").model
    path = tmp_path / "jax_denoiser.stablehlo"
    platforms = "cpu", "cuda", "tpu"
    export.write_stablehlo(path, Denoiser(model, 0.5), tensors, platforms)
    found = jax.export.deserialize(path.read_bytes())
    assert found.platforms == platforms
    with np.load(ORACLES / "exported_modules.npz") as golden:
        for n in (3, 8):
            image = found.call(tensors, *(each[:n] for each in example()))
            np.testing.assert_allclose(image, golden["g"][:n], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_networks_with_group_norm_are_exported_for_any_batch(bundles):
    model = tiny_config("a").model
    found = export.exported(Denoiser(model, 0.5), bundles("a")[1].tensors, ["cpu"])
    assert str(found.out_avals[0].shape) == "(batch, 8, 8, 3)"


@pytest.mark.slow
@pytest.mark.skipif(
    TORCH == sys.executable and not find_spec("torch"),
    reason="PyTorch is not installed: EDM_JAX_TORCH_PYTHON names a Python that has it",
)
def test_pytorch_computes_the_golden_outputs_now(tmp_path):
    exported_modules.export(tmp_path)
    script, out = ORACLES / "exported_modules.py", tmp_path / "out.npz"
    bare_environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [TORCH, str(script), "run", str(tmp_path), str(out)],
        check=True,
        env=bare_environment,
    )
    with np.load(ORACLES / "exported_modules.npz") as golden, np.load(out) as found:
        for name in set(golden) - {"versions"}:
            if name.endswith("_text"):
                assert found[name] == golden[name]
            else:
                np.testing.assert_allclose(found[name], golden[name], atol=1e-5)
    place = tmp_path / "g"
    like = place / "torch_denoiser.safetensors"
    back = export.read(place / "again.pt", like)
    assert export.restore(tmp_path / "back", back, "again.pt").same


def call(monkeypatch, main, *arguments):
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    cli.run(main)


@pytest.fixture
def stored(tmp_path):
    return tiny_exports.store(tmp_path / "run", "g")


@pytest.mark.slow
def test_the_commands_export_a_snapshot_and_import_it(
    stored, tmp_path, monkeypatch, capsys
):
    run, snapshot = stored
    arguments = f"--run={run.path}", f"--weights={snapshot}", "--to=torch,safetensors"
    call(monkeypatch, command.main, *arguments)
    place = run.path / "exported" / snapshot.stem
    assert {path.name for path in place.iterdir()} == {
        "weights.safetensors",
        "torch_denoiser.py",
        "torch_denoiser.safetensors",
    }
    for name in ("weights", "torch_denoiser"):
        new = tmp_path / name
        file = place / f"{name}.safetensors"
        call(monkeypatch, import_weights.main, file, f"--run={new}")
        assert "to the bit" in capsys.readouterr().out
        again = new / "snapshots" / snapshot.name
        assert again.read_bytes() == snapshot.read_bytes()
        assert (new / "config.json").read_bytes() == (
            run.path / "config.json"
        ).read_bytes()


def damage(path, find, put):
    raw = path.read_bytes()
    assert len(find) == len(put) and raw.count(find) >= 1
    path.write_bytes(raw.replace(find, put))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--to=onnx"], "choose of safetensors, torch, stablehlo"),
        (["--to="], "choose of safetensors"),
        (["--platforms=gpu"], "choose of cpu, cuda, rocm, tpu"),
        (["--weights=nowhere.safetensors"], "no snapshot at nowhere"),
        (["--weights={run}/config.json"], "not a safetensors file"),
        (["--sigma_rel=0.9"], "0.28"),
        (["--profile=halflive:1"], "halflife:MIMG"),
        (["--weights={file}", "--nimg=5"], "drop one"),
        (["--nimg=5"], "before the first snapshot"),
    ],
)
def test_a_wrong_export_is_one_sentence(
    stored, monkeypatch, capsys, arguments, sentence
):
    run, snapshot = stored
    texts = [each.format(run=run.path, file=snapshot) for each in arguments]
    assert_sentence(
        monkeypatch, capsys, command.main, [f"--run={run.path}", *texts], sentence
    )


def assert_sentence(monkeypatch, capsys, main, arguments, sentence):
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, main, *arguments)
    printed = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and sentence in printed and "\n" not in printed


@pytest.mark.parametrize(
    ("find", "put", "sentence"),
    [
        (b'{\\"format\\"', b'[\\"format\\"', "its snapshot is not JSON"),
        (b"edm_jax.snapshot", b"edm_jax.smapshot", "is not a snapshot of edm_jax"),
        (b'\\"letter\\"', b'\\"lettre\\"', "'lettre'"),
        (b"unet.out_conv.weight", b"unet.uot_conv.weight", "another network"),
        (b'\\"checksums\\"', b'\\"checksmus\\"', "'checksums' is missing"),
        (b'"F32"', b'"I32"', "which no weights are"),
    ],
)
def test_a_damaged_file_is_one_sentence(
    bundles, tmp_path, monkeypatch, capsys, find, put, sentence
):
    path = tmp_path / "weights.safetensors"
    export.write_state_dict(path, bundles("g")[1])
    damage(path, find, put)
    arguments = [path, f"--run={tmp_path / 'new'}"]
    assert_sentence(monkeypatch, capsys, import_weights.main, arguments, sentence)
    assert not (tmp_path / "new").exists()


def test_a_run_of_another_config_is_not_imported_into(
    bundles, stored, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "weights.safetensors"
    export.write_weights(path, bundles("f")[1])
    run, snapshot = stored
    before = snapshot.read_bytes()
    arguments = [path, f"--run={run.path}"]
    sentence = "is a run already"
    assert_sentence(monkeypatch, capsys, import_weights.main, arguments, sentence)
    assert snapshot.read_bytes() == before
    shutil.rmtree(run.path)
