"""The command that rebuilds averages."""

import sys

import numpy as np
import pytest

import configs
from edm_jax import ema
from edm_jax.ema import snapshots
from edm_jax.evals import sweeps
from edm_jax.runs.directory import RunDir
from experiments import cli, reconstruct, sample

DIGITS = f"{configs.letter_path('g')}:digits"


def run(monkeypatch, main, *arguments):
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    cli.run(main)


def refused(monkeypatch, capsys, main, *arguments):
    """The sentence in which a command refuses."""
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, main, *arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert printed.startswith("command: ")
    return printed


@pytest.fixture
def trained(tmp_path):
    """A run directory with 32 snapshots of a small network."""
    made = RunDir(tmp_path / "run", configs.load(DIGITS))
    rng = np.random.default_rng(0)
    for i in range(32):
        for sigma_rel in (0.05, 0.10):
            profile = ema.PowerProfile(sigma_rel)
            meta = ema.SnapshotMeta(profile, (i + 1) * 1024, 64, made.config_hash)
            snapshots.write(made.snapshots, {"w": rng.standard_normal(100)}, meta)
    return made


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0.05,0.13", [0.05, 0.13]),
        ("0.010,0.015,...,0.025", [0.01, 0.015, 0.02, 0.025]),
        ("0.3,0.2,...,0.1", [0.3, 0.2, 0.1]),
        ("", []),
    ],
)
def test_a_list_of_lengths_may_be_given_by_its_step(text, numbers):
    assert cli.number_list("--sigma_rel", text) == numbers


@pytest.mark.parametrize(
    "text", ["0.1,...,0.2", "0.1,0.1,...,0.2", "0.1,0.2,...,0.25", "a"]
)
def test_an_invalid_list_is_refused(text):
    with pytest.raises(ValueError, match="is not a list of numbers"):
        cli.number_list("--sigma_rel", text)


@pytest.mark.slow
def test_every_length_of_the_papers_range_comes_in_one_command(
    monkeypatch, capsys, trained
):
    arguments = [f"--run={trained.path}", "--sigma_rel=0.020,0.025,...,0.250"]
    run(monkeypatch, reconstruct.main, *arguments)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 47
    assert "power-0.020-000000032768.safetensors: fit " in lines[0]
    made = ema.reconstruct(trained.snapshots, [0.135])[0.135].params["w"]
    path = trained.path / "reconstructed" / "power-0.135-000000032768.safetensors"
    np.testing.assert_array_equal(snapshots.read(path)[0]["w"], made)


@pytest.mark.slow
def test_other_profiles_are_named_in_words(monkeypatch, capsys, trained, tmp_path):
    (tmp_path / "table.csv").write_text("0,0\n16384,1\n32768,0\n")
    (tmp_path / "mine.py").write_text(
        "def late(nimg):\n    return nimg**2 + 0 * nimg\n"
    )
    run(
        monkeypatch,
        reconstruct.main,
        f"--run={trained.path}",
        "--profile=halflife:0.002",
        "--profile=uniform:16384",
        "--profile=uniform:8192-24576",
        "--profile=decay:cosine",
        "--profile=decay:wsd",
        f"--profile=table:{tmp_path}/table.csv",
        f"--profile=function:{tmp_path}/mine.py:late",
        f"--out={tmp_path}/out",
        "--dtype=float16",
    )
    kinds = {path.name.split("-")[0] for path in (tmp_path / "out").iterdir()}
    assert kinds == {"traditional", "uniform", "decay", "table", "function"}
    assert len(capsys.readouterr().out.splitlines()) == 7
    assert len(list((tmp_path / "out").glob("decay-linear-0.200-*"))) == 1
    # The square of the time is the power function of exponent 2.
    squared = ema.PowerProfile(ema.sigma_rel_from_gamma(2.0))
    expected = ema.reconstruct(trained.snapshots, [squared])[squared].params["w"]
    path = tmp_path / "out" / "function-late-000000032768.safetensors"
    np.testing.assert_allclose(snapshots.read(path)[0]["w"], expected, atol=2e-3)


@pytest.mark.slow
def test_profiles_are_drawn_with_their_ages(monkeypatch, capsys, trained, tmp_path):
    target = ["--profile=2*power:.06-power:.1", "--sigma_rel=0.1"]
    command = [f"--run={trained.path}", *target, f"--draw={tmp_path}/p.png"]
    run(monkeypatch, reconstruct.main, *command, "--dry_run")
    printed = capsys.readouterr().out
    assert (tmp_path / "p.png").read_bytes()[1:4] == b"PNG"
    assert "mean age 3,666 images (0.1119 of all), width 3,277 (0.1000)" in printed
    assert "mixed+2xpower-0.060-1xpower-0.100-000000032768" in printed
    assert "width none" in printed
    command[-1] = f"--draw={tmp_path}/p.gif"
    said = refused(monkeypatch, capsys, reconstruct.main, *command)
    assert "end the name in .png, .pdf or .svg" in said


@pytest.mark.slow
def test_a_dry_run_prints_the_plan_and_writes_nothing(monkeypatch, capsys, trained):
    arguments = [f"--run={trained.path}", "--sigma_rel=0.07,0.2", "--nimg=16384,32768"]
    run(monkeypatch, reconstruct.main, *arguments, "--dry_run")
    printed = capsys.readouterr().out
    assert printed.startswith("4 targets:") and "64 inputs" in printed
    assert "25.6 kB to read, 1.6 kB to write" in printed
    assert not (trained.path / "reconstructed").exists()
    first = next(
        line for line in printed.splitlines() if "power-0.050-000000001024" in line
    )
    coefficients = [float(word) for word in first.split()[2:]]
    solution = ema.reconstruct(trained.snapshots, [0.2])[0.2].solution
    assert coefficients[3] == pytest.approx(solution.coefficients[0], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "No target: add one"),
        (["--sigma_rel=0.4"], "choose a relative EMA length"),
        pytest.param(
            ["--sigma_rel=0.005"],
            "sigma_rel from 0.014 to 0.27",
            marks=pytest.mark.slow,
        ),
        (
            ["--sigma_rel=0.1", "--nimg=20000"],
            "last snapshot before that time is at 19456",
        ),
        (["--profile=triangle:3"], "write power:SIGMA_REL, halflife:MIMG"),
        (["--profile=halflife:long"], "--profile='halflife:long'"),
        (["--profile=uniform:9-3"], "contains no images"),
        (["--profile=table:none.csv"], "no file 'none.csv'"),
        (["--profile=halflife:1,2,3"], "write halflife:MIMG"),
        (["--profile=uniform:x"], "write uniform:FROM"),
        (["--profile=decay:sqrt"], "write decay:cosine"),
        (["--sigma_rel=1e-300"], "choose 0.0001 or more"),
        (["--sigma_rel=0.1", "--nimg=inf"], "not a list of numbers"),
        (["--sigma_rel=0.1", "--nimg=1024.5"], "be a whole number"),
        (["--sigma_rel=0.1", "--max_error=-1"], "max_error = -1"),
        (["--sigma_rel=0.1", "--run=zz://x"], "object stores begin with gs://"),
        (["--sigma_rel=0.1", "--run="], "--run is empty"),
        (["--profile=function:none.py:f"], "there is no file 'none.py'"),
    ],
)
def test_an_impossible_request_is_one_sentence(
    monkeypatch, capsys, trained, arguments, sentence
):
    command = [f"--run={trained.path}", *arguments]
    assert sentence in refused(monkeypatch, capsys, reconstruct.main, *command)
    assert not (trained.path / "reconstructed").exists()


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("f = 3", "has no function 'f'"),
        ("def f(nimg): return 1 / 0", "failed: ZeroDivisionError"),
        ("def f(nimg): return -nimg", "must all be finite and at least 0"),
        ("import nothing_like_it", "fails: ModuleNotFoundError"),
        ("import sys; sys.exit(3)", "fails: SystemExit"),
        ("def g(nimg): return nimg", "has no function 'f'"),
        ("import numpy\ndef f(t): return numpy.random.rand(len(t))", "too rough"),
    ],
)
def test_a_function_that_does_not_return_weights_is_refused(
    monkeypatch, capsys, trained, tmp_path, source, sentence
):
    (tmp_path / "mine.py").write_text(source)
    command = [f"--run={trained.path}", f"--profile=function:{tmp_path}/mine.py:f"]
    assert sentence in refused(monkeypatch, capsys, reconstruct.main, *command)


def test_weights_of_another_network_are_not_sampled(monkeypatch, capsys, trained):
    path = next(trained.snapshots.iterdir())
    command = [f"--run={trained.path}", f"--weights={path}"]
    said = refused(monkeypatch, capsys, sample.main, *command)
    assert "weights of another network" in said
    command = [f"--run={trained.path}", "--sigma_rel=0"]
    assert "choose a relative" in refused(monkeypatch, capsys, sample.main, *command)


@pytest.mark.slow
def test_the_possible_targets_of_a_list_are_made(monkeypatch, capsys, trained):
    arguments = [f"--run={trained.path}", "--sigma_rel=0.005,0.1,0.006"]
    run(monkeypatch, reconstruct.main, *arguments)
    captured = capsys.readouterr()
    (made,) = captured.out.splitlines()
    assert "power-0.100-000000032768.safetensors" in made
    told = [line for line in captured.err.splitlines() if "Left out" in line]
    assert ["power-0.005" in told[0], "power-0.006" in told[1]] == [True, True]
    assert all("error would be" in line and "from 0.014" in line for line in told)
    said = refused(
        monkeypatch, capsys, reconstruct.main, *arguments[:1], "--sigma_rel=0.005,0.006"
    )
    assert "cannot express power-0.005" in said


@pytest.mark.slow
def test_a_run_in_a_directory_with_glob_characters_is_found(
    monkeypatch, capsys, trained, tmp_path
):
    odd = tmp_path / "lr=0.1 [big]*?"
    trained.path.rename(odd)
    run(monkeypatch, reconstruct.main, f"--run={odd}", "--sigma_rel=0.1")
    assert (odd / "reconstructed" / "power-0.100-000000032768.safetensors").exists()
    assert str(odd) in capsys.readouterr().out


def test_force_makes_what_would_be_refused(monkeypatch, capsys, trained):
    run(
        monkeypatch,
        reconstruct.main,
        f"--run={trained.path}",
        "--sigma_rel=0.005",
        "--force",
    )
    assert "fit 4.2e-01" in capsys.readouterr().out


@pytest.mark.slow
def test_a_damaged_snapshot_is_left_out_and_named_or_refused(
    monkeypatch, capsys, trained
):
    bad = trained.snapshots / "power-0.050-000000010240.safetensors"
    bad.write_bytes(bad.read_bytes()[:-10])
    command = [f"--run={trained.path}", "--sigma_rel=0.1,0.12"]
    assert bad.name in refused(
        monkeypatch, capsys, reconstruct.main, *command, "--strict"
    )
    run(monkeypatch, reconstruct.main, *command)
    captured = capsys.readouterr()
    assert f"Left out: {bad} is damaged" in captured.err
    assert len(captured.out.splitlines()) == 2
    # Of many, the first few are named.
    for number in range(40):
        name = f"power-0.050-{number:012}.safetensors"
        (trained.snapshots / name).write_bytes(b"")
    for read in (
        lambda: run(monkeypatch, reconstruct.main, *command),
        lambda: sweeps.usable(trained.snapshots),
    ):
        read()
        lines = capsys.readouterr().err.splitlines()
        said = {line for line in lines if "Left out: " in line}
        assert len(said) == 6 and "Left out: 36 more damaged snapshots." in said


@pytest.mark.slow
def test_an_object_store_serves_as_run_and_as_out(monkeypatch, capsys, trained, bucket):
    for path in trained.snapshots.iterdir():
        path.copy(f"{bucket}/snapshots/{path.name}")
    command = [f"--run={bucket}", "--sigma_rel=0.12"]
    run(monkeypatch, reconstruct.main, *command)
    found = snapshots.list_snapshots(f"{bucket}/reconstructed")
    assert [each.path.name for each in found] == [
        "power-0.120-000000032768.safetensors"
    ]
