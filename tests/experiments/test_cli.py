"""The command line: overrides as absl and ml_collections take them, and JAX's start."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import configs
from experiments import cli

ROOT = Path(__file__).parent.parent.parent
G = f"--config={configs.letter_path('g')}:digits"


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--config.optimizer.alpha_ref=0.1"], "optimizer.alpha_ref", 0.1),
        (["--config.optimizer.alpha_ref", "0.1"], "optimizer.alpha_ref", 0.1),
        (["-config.optimizer.alpha_ref=0.1"], "optimizer.alpha_ref", 0.1),
        (["--config.loss.P_mean", "-1.2"], "loss.P_mean", -1.2),
        (["--config.data.data_dir="], "data.data_dir", ""),
        (["--config.data.data_dir=a=b"], "data.data_dir", "a=b"),
        (["--config.training.remat"], "training.remat", True),
        (["--config.training.remat", "true"], "training.remat", True),
        (["--noconfig.network.gain"], "network.gain", False),
        (["--config.network.gain", "--noconfig.network.gain"], "network.gain", False),
        (["--noconfig.network.gain", "--config.network.gain"], "network.gain", True),
    ],
)
def test_overrides_are_taken_as_ml_collections_takes_them(arguments, field, value):
    _, config = cli.parse_config(cli.config_parser(None), [G, *arguments])
    assert configs.flatten(config)[field] == value


@pytest.mark.parametrize(
    "arguments",
    [["--dropout=0.1"], ["0.1"], ["--noconfig.network.gain=True"], ["--config.=1"]],
)
def test_other_arguments_are_refused_by_name(arguments):
    with pytest.raises(ValueError, match="is not an option of this command") as error:
        cli.overrides(arguments)
    assert repr(arguments[0]) in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("7,3,7", "names 7 twice"), ("2-1", "the smaller"), ("a", "such as 0-2")],
)
def test_seeds_that_make_no_list_are_refused(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        cli.seed_list(text)


# Stands for JAX's plugin on a machine whose driver is too old: it raises as it loads.
BROKEN = """
def initialize():
    raise RuntimeError("Outdated CUDA installation found.\\nInstalled version: 11040")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "platform", "reason"),
    [
        ("train", "cuda", ": its plugin is not installed, or finds no device."),
        ("launch", "tpu", " ("),
        ("train", "cuda", " (Outdated CUDA installation found. Installed version: 1"),
        ("launch", "cuda", " (Outdated CUDA installation found. Installed version: 1"),
    ],
)
def test_a_jax_that_cannot_start_is_one_sentence(command, platform, reason, tmp_path):
    if os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/accel0"):
        pytest.skip("this machine has an accelerator")
    arguments = [f"--{'run' if command == 'train' else 'runs'}={tmp_path / 'x'}"]
    arguments += [G] if command == "train" else ["--workload=digits-tiny"]
    paths = [os.fspath(ROOT)]
    if "Outdated" in reason:
        plugin = tmp_path / "path" / "jax_plugins" / "broken" / "__init__.py"
        plugin.parent.mkdir(parents=True)
        plugin.write_text(BROKEN)
        paths.append(os.fspath(tmp_path / "path"))
    done = subprocess.run(
        [sys.executable, f"experiments/{command}.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": platform, "PYTHONPATH": ":".join(paths)},
        capture_output=True,
        check=False,
        text=True,
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 2
    assert lines[-1].startswith(f"{command}: JAX cannot start on '{platform}'{reason}")
    assert f"pip install -U 'jax[{platform}" in lines[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 5 bytes",
            "train: A device ran out of memory: set training.microbatches higher",
        ),
        ("Unable to initialize backend 'cuda': INTERNAL: no device", "train: "),
    ],
)
def test_a_failing_device_is_one_sentence(said, sentence, monkeypatch, capsys):
    def fail():
        raise RuntimeError(said)

    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as exit_status:
        cli.run(fail)
    err = capsys.readouterr().err
    assert exit_status.value.code == 2
    assert err.startswith(sentence) and err.count("\n") == 1


def test_hosts_of_one_kind_of_cpu_share_a_compilation_cache(tmp_path):
    def kind(text):
        (tmp_path / "cpuinfo").write_text(text)
        return cli._kind_of_cpu(tmp_path / "cpuinfo")

    first = (
        "processor\t: 0\nmodel name\t: Xeon\ncpu MHz\t: {}\nflags\t\t: fpu avx2 {}\n"
    )
    assert kind(first.format(2000, "")) == kind(first.format(3100, ""))
    assert kind(first.format(2000, "")) != kind(first.format(2000, "avx512f"))


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_of_files_neither_act_on_a_terminal_nor_stop_a_command(
    encoding, monkeypatch
):
    printed = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", printed)
    name = os.fsdecode(b"a\x1b[2J\xff")
    cli.run(lambda: cli.say(f"Drawn in {name}"))
    cli.run(lambda: print(name[-1], "━"))
    lines = printed.buffer.getvalue().decode().splitlines()
    assert lines[0] == r"Drawn in a\x1b[2J\udcff"
    assert lines[1] in (r"\udcff \u2501", r"\udcff ━")


def test_an_error_of_the_system_names_the_file_first():
    error = OSError(errno.EROFS, os.strerror(errno.EROFS), "run/status.json")
    assert cli.sentence(error) == "run/status.json: Read-only file system."
    assert cli.sentence(OSError("SLURM does not answer")) == "SLURM does not answer"


def test_libraries_that_replace_import_are_there_before_a_bar_is_drawn(monkeypatch):
    """The bar's thread imports too, and would get TFDS's lazy modules."""
    imported = []
    monkeypatch.setattr(cli.importlib, "import_module", imported.append)
    config = configs.load(f"{configs.letter_path('g')}:digits-tiny")
    with cli.progress_bar(reads=config):
        assert imported == ["tensorflow_datasets"]
    with cli.progress_bar():
        assert len(imported) == 1
