"""Files that other packages wrote, against all weights of the walk they averaged."""

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import foreign_files
import numpy as np
import pytest
import walk
from foreign_files import SAID, rebuilt, relative, truth

from edm_jax import ema
from edm_jax.files import Damaged
from edm_jax.foreign import kernels, layout, rebuild, series
from edm_jax.foreign.packages import Settings

LENGTHS = (0.05, 0.1, 0.15, 0.2)  # as in tests/oracles/averaging_packages.py
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return foreign_files.unpack(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def golden(place):
    return dict(np.load(place / "golden.npz"))


def direct(tracked, t):
    """An average by its definition: decay by decay, over the walk."""
    rows, found = walk.weights(), None
    for call in range(1, t - tracked.start + 1):
        if (call - 1) % tracked.every == 0:
            beta = float(np.exp(tracked.decay.log(np.array(float(call)))))
            new = rows[tracked.start + call]
            found = new if beta == 0 else beta * found + (1 - beta) * new
    return found


@pytest.mark.parametrize("name", SAID)
def test_what_a_file_is_said_to_average_is_what_it_holds(place, name):
    found = series.open_series(place / name, SAID[name])
    rounding = {"F16": 2e-3, "BF16": 2e-2}
    for each in found.stored[:: max(len(found.stored) // 4, 1)]:
        code = next(iter(each.source.codes))
        held = foreign_files.row(each.source.layout)
        if isinstance(each.kernel, kernels.Plain):
            wanted = walk.weights()[each.time]
        else:
            wanted = direct(each.kernel, each.time)
            steps = np.arange(1.0, each.time + 1)
            share = each.kernel.share(np.append(0.0, steps), each.time)
            mine = np.diff(share) @ walk.weights()[1 : each.time + 1]
            assert np.allclose(mine, wanted, atol=1e-12)
        assert np.allclose(held, wanted, atol=rounding.get(code, 2e-6))


@pytest.mark.parametrize("name", SAID)
def test_the_stated_error_is_the_measured_one(place, name, tmp_path):
    job, _, rows = rebuilt(place, name, tmp_path, LENGTHS)
    assert job.series.format == {
        "fork": "pytorch-posthoc-ema",
        "ema": "ema-pytorch-ema",
    }.get(name, name if name in ("diffusers", "timm") else job.series.format)
    for solution, found in zip(job.plan.solutions, rows, strict=True):
        measured = relative(found, truth(solution.profile))
        # One walk of 15 weights: an RMS of 15 numbers.
        stated = solution.fit_error + 8 * solution.rounding_error
        assert measured < 1.5 * stated + 1e-5
        assert abs(solution.coefficients.sum() - 1) < 1e-12


def test_the_packages_own_synthesis_is_right_where_it_updated_at_every_call(
    place, golden, tmp_path
):
    _, _, rows = rebuilt(place, "ema_pytorch", tmp_path, LENGTHS)
    for mine, theirs, s in zip(rows, golden["ema_pytorch"], LENGTHS, strict=True):
        wanted = truth(ema.PowerProfile(s))
        # Theirs takes t for its t + 1, and its coefficients do not add up to 1.
        assert relative(theirs, wanted) < 5e-3
        assert relative(mine, wanted) < relative(theirs, wanted)


def test_updates_at_every_fifth_call_make_another_profile_which_the_package_ignores(
    place, golden, tmp_path
):
    _, _, rows = rebuilt(place, "ema_pytorch_every5", tmp_path, LENGTHS)
    for mine, theirs, s in zip(
        rows, golden["ema_pytorch_every5"], LENGTHS, strict=True
    ):
        wanted = truth(ema.PowerProfile(s))
        assert relative(theirs, wanted) > 0.9
        assert relative(mine, wanted) < 0.12


def test_a_late_start_shifts_the_profile_which_the_fork_ignores(
    place, golden, tmp_path
):
    _, _, rows = rebuilt(place, "fork", tmp_path, LENGTHS)
    for mine, theirs, s in zip(rows, golden["fork"], LENGTHS, strict=True):
        wanted = truth(ema.PowerProfile(s))
        assert relative(theirs, wanted) > 0.03
        assert relative(mine, wanted) < 3e-3


@pytest.mark.parametrize("name", SAID)
def test_an_output_is_its_template_with_other_weights(place, name, tmp_path):
    job, [path], _ = rebuilt(place, name, tmp_path, [0.2])
    template = job.templates[0].source.layout
    found, old = path.read_bytes(), template.path.read_bytes()
    assert len(found) == len(old)
    assert path.suffix == template.path.suffix
    inside = np.zeros(len(old), bool)
    for key in template.averaged:
        array = template.arrays[key]
        stop = array.offset + array.count * layout.ITEMSIZE[array.code]
        inside[array.offset : stop] = True
    changed = np.frombuffer(found, np.uint8) != np.frombuffer(old, np.uint8)
    if template.container == "torch":
        # ZIP's checksums change too, and are right.
        with zipfile.ZipFile(io.BytesIO(found)) as archive:
            assert archive.testzip() is None
        assert (changed & ~inside).sum() <= 12 * len(template.averaged)
    else:
        assert not (changed & ~inside).any()


def test_plain_outputs_have_the_names_of_the_network(place, tmp_path):
    job, [path], _ = rebuilt(place, "plain", tmp_path, [0.2])
    inside = series.read(path)
    [plain] = rebuild.run(job, tmp_path, plain=True)
    found = series.read(plain)
    assert found.arrays.keys() == {*walk.SHAPES, "tied", "turned", "count"}
    assert found.read("turned").shape == (2, 3)
    assert np.array_equal(found.read("turned"), found.read("0.weight").T)
    assert np.array_equal(found.read("tied"), inside.read("model.0.weight"))
    assert int(found.read("count")) == walk.STEPS


def test_diffusers_folders_are_written_as_folders(place, tmp_path):
    found = series.open_series(place / "unet/checkpoint-*/unet_ema/*.safetensors")
    assert [each.time for each in found.stored] == [2, 4]
    job = rebuild.prepare(found, [(None, ema.PowerProfile(0.2))], 10)
    [path] = rebuild.run(job, tmp_path)
    assert (path.parent / "config.json").is_file()
    assert series.open_series(path).stored[0].time == 4


@pytest.mark.slow
def test_orbax_checkpoints_become_one_that_orbax_restores(place, tmp_path):
    import orbax.checkpoint as ocp

    found = series.open_series(place / "orbax")
    assert [each.time for each in found.stored] == [160, 320]
    job = rebuild.prepare(found, [(None, ema.UniformProfile(0))], 10)
    [path] = rebuild.run(job, tmp_path)
    # A uniform average, of weights that move evenly from 160 to 320 and stay before.
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(path / "default")
    (low,), (high,) = job.plan.coefficients
    rows = walk.weights()
    wanted = walk.named(low * rows[160] + high * rows[320])["0.weight"]
    assert np.allclose(restored["dense"]["kernel"], wanted, atol=1e-6)
    assert np.allclose([low, high], [0.75, 0.25], atol=0.01)


@pytest.mark.parametrize(
    ("name", "said", "words"),
    [
        ("ema_pytorch", Settings(), "--tracked=0.05,0.28"),
        ("ema_pytorch", Settings(tracked=(0.05,)), "--update_every=K"),
        ("ema_pytorch", Settings(tracked=(0.05,), update_every=1), "lists 1"),
        ("timm", Settings(), "--updates_per_epoch=N"),
        ("plain", Settings(time="step{time}.pt"), "does not match ckpt_120.pt"),
        ("plain", Settings(time="ckpt_"), "must contain {time} once"),
        ("plain", Settings(key="state"), "has no 'state', but model"),
        ("plain", Settings(files={"ckpt_120.pt": 1}), "gives no time for ckpt_160.pt"),
        (
            "plain",
            Settings(files={f"ckpt_{40 * i}.pt": 7 for i in range(1, 11)}),
            "both",
        ),
        ("plain", Settings(tracked=(0.1, 0.2)), "name one --tracked"),
        ("plain", Settings(decay=1.5), "between 0 and 1"),
    ],
)
def test_what_the_files_do_not_say_is_asked_for(place, name, said, words):
    with pytest.raises(ValueError, match=words.replace("{", r"\{")) as caught:
        series.open_series(place / name, said)
    assert "\n" not in str(caught.value)


def test_a_sidecar_says_it_once(place, tmp_path):
    for path in (place / "ema_pytorch").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    sidecar = tmp_path / "averages.json"
    sidecar.write_text('{"tracked": [0.05, 0.28], "update_every": 1}')
    mine = series.open_series(tmp_path)
    assert [each.kernel for each in mine.stored] == [
        each.kernel
        for each in series.open_series(
            place / "ema_pytorch", SAID["ema_pytorch"]
        ).stored
    ]
    for text, words in (
        ('{"x": 1}', "no use for 'x'"),
        ('{"decay": "x"}', "decay of a wrong"),
    ):
        sidecar.write_text(text)
        with pytest.raises(Damaged, match=words):
            series.open_series(tmp_path)


@pytest.mark.slow
def test_the_command_reconstructs_them(place, tmp_path):
    command = [
        sys.executable,
        "experiments/reconstruct.py",
        f"--snapshots={place / 'plain'}",
    ]
    done = subprocess.run(
        [*command, "--profile=uniform:200", f"--out={tmp_path}"],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "uniform-200-000000000400.pt").is_file()
    assert "10 files of checkpoints" in done.stdout


@pytest.mark.skipif(
    "EDM_JAX_TORCH_PYTHON" not in os.environ, reason="needs a Python with PyTorch"
)
@pytest.mark.slow
def test_a_torch_loop_is_reconstructed_without_torch_and_loaded_by_it(tmp_path):
    python, loop = (
        os.environ["EDM_JAX_TORCH_PYTHON"],
        ROOT / "tests/oracles/torch_loop.py",
    )
    subprocess.run([python, loop, "train", tmp_path], check=True)
    found = series.open_series(tmp_path / "checkpoints", Settings(key="model"))
    job = rebuild.prepare(found, [(None, ema.PowerProfile(0.2))])
    [path] = rebuild.run(job, tmp_path / "made")
    said = subprocess.run(
        [python, loop, "compare", tmp_path, path],
        check=True,
        capture_output=True,
        text=True,
    )
    average, latest = map(float, said.stdout.split())
    assert average < 0.1 * latest  # distances from the average that torch tracked
