"""The commands: what describe prints, and that a wrong input is one sentence."""

import json
import sys

import pytest

import configs
from experiments import cli, describe, launch, reconstruct, train


def run(monkeypatch, main, *arguments):
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    cli.run(main)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("letter", "params", "gflops"),
    [("a", 295_902_724, 110.4), ("c", 277_816_512, 100.3), ("g", 280_212_709, 102.2)],
)
def test_describe_agrees_with_table_1(monkeypatch, capsys, letter, params, gflops):
    run(
        monkeypatch,
        describe.main,
        f"--config={configs.letter_path(letter)}:imagenet512-s",
    )
    described = json.loads(capsys.readouterr().out)
    assert described["params"] == params
    head = 0 if letter == "a" else 128
    assert described["params_with_logvar"] == params + head
    # Table 1 counts more than convolutions and matrix products.
    assert gflops * 0.98 < described["gflops"] <= gflops
    assert described["snapshot_bytes"] >= 4 * params


@pytest.mark.slow
def test_describe_lists_the_changes_since_the_letter_before(monkeypatch, capsys):
    run(
        monkeypatch,
        describe.main,
        f"--config={configs.letter_path('e')}:imagenet512-s",
    )
    described = json.loads(capsys.readouterr().out)
    assert described["changes_from"] == "d"
    assert described["changes"] == {
        "optimizer.forced_weight_norm": [False, True],
        "optimizer.schedule.name": ["constant", "inverse_sqrt"],
        "optimizer.schedule.t_ref": [None, 70000.0],
    }


def test_describe_lists_a_menu_with_fields_defaults_and_summaries(monkeypatch, capsys):
    run(monkeypatch, describe.main, "--menu=schedule")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "schedule: --config.optimizer.schedule.name=NAME"
    assert "cosine(end_mimg=0.0, final=0.0)" in lines
    assert "Eq. 67" in lines[lines.index("inverse_sqrt(t_ref=70000.0)") + 1]
    run(monkeypatch, describe.main, "--menu=all")
    assert "adam(beta1=0.9, beta2=0.99, eps=1e-08)" in capsys.readouterr().out


G = f"--config={configs.letter_path('g')}:digits"


@pytest.mark.parametrize(
    ("main", "arguments", "sentence"),
    [
        (
            describe.main,
            ["--config=configs/config_gg.py:digits"],
            "configs/config_g.py'",
        ),
        (describe.main, [G + "s"], "'digits'"),
        (describe.main, [G, "--config.network.dropuot=0.1"], "'network.dropout'"),
        (describe.main, [G, "--config.network.activation.name=sliu"], "'silu'"),
        (describe.main, [G, "--config.network.weights=plain"], "App. B.5"),
        (describe.main, [G, "--config.network.dropout=much"], "must be a number"),
        (describe.main, [G, "--dropout=0.1"], "--config.FIELD=VALUE"),
        (describe.main, [G, "--config.workload=cifar10"], "--config=FILE:WORKLOAD"),
        (describe.main, [G, "--devices=0"], "at least 1"),
        (describe.main, ["--menu=optimiser"], "Did you mean 'optimizer'"),
        (describe.main, [], "--config=FILE:WORKLOAD is missing"),
        (describe.main, [G, "--config.training.sharding=zero"], "'state', 'full'"),
        (
            train.main,
            [G, "--allow=optimizer.method.betal1"],
            "'optimizer.method.beta1'",
        ),
        (train.main, [G, "--process_id=1"], "belong together"),
        (
            train.main,
            [G, "--coordinator=a:1", "--num_processes=2", "--process_id=2"],
            "must be 0 to 1",
        ),
        (
            train.main,
            [G, "--coordinator=a", "--num_processes=2", "--process_id=1"],
            "HOST:PORT",
        ),
        (launch.main, ["--study=lader"], "'ladder'"),
        (launch.main, ["--workers=0"], "at least 1"),
        (launch.main, ["--workload=digit", "--runs=/nowhere"], "'digits'"),
        (
            reconstruct.main,
            ["--run=nowhere", "--sigma_rel=0.1"],
            "no directory of snap",
        ),
        (reconstruct.main, ["--run=nowhere", "--sigma_rel=short"], "such as 1,2"),
    ],
)
def test_a_wrong_input_is_one_sentence_and_status_2(
    monkeypatch, capsys, main, arguments, sentence
):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, main, *arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr().err.strip()
    assert sentence in printed and "\n" not in printed
