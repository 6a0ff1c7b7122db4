"""The examples of docs/extending.md do what they say, chosen from files of a user's own."""

import json
import re
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import configs
from edm_jax import data, menu
from edm_jax.diffusion.noise_levels import NoiseLevels
from edm_jax.evals.evaluators import EVALUATORS
from edm_jax.optim.schedules import Run
from experiments import cli, launch

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"
BLOCKS = dict(
    re.findall(
        r"^```python\n# (\w+\.py)\n(.*?)^```",
        PAGE.read_text(),
        re.MULTILINE | re.DOTALL,
    )
)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads a config in a directory that holds the page's files."""
    monkeypatch.chdir(tmp_path)
    for name, text in BLOCKS.items():
        (tmp_path / name).write_text(text)
    reference = f"{configs.letter_path('g')}:digits-tiny"
    return lambda **fields: configs.load(
        reference, {k.replace("__", "."): v for k, v in fields.items()}
    )


def test_each_example_is_short():
    assert len(BLOCKS) == 8
    for name, text in BLOCKS.items():
        code = [line for line in text.splitlines() if line.strip()]
        assert len(code) < 25, name


def test_a_schedule(load):
    name = {"optimizer__schedule__name": "my_schedule.py:Halving"}
    config = load(**name, optimizer__schedule__halflife_mimg="0.5")
    factor = config.optimizer.schedule.factor(jnp.float32(1e6), Run(1e7, 16))
    assert float(factor) == pytest.approx(1 / 4)
    with pytest.raises(ValueError, match="halflife_mimg.*must be positive"):
        load(**name, optimizer__schedule__halflife_mimg="0")


def test_an_optimizer(load):
    rule = load(optimizer__method__name="my_optimizer.py:Sign").optimizer.method.rule()
    grads = {"w": jnp.array([3.0, -0.1])}
    updates, _ = rule.update(grads, rule.init(grads))
    np.testing.assert_array_equal(updates["w"], [1, -1])


def test_an_activation(load):
    config = load(network__activation__name="my_activation.py:Squareplus")
    # b = 4: 1 at 0, and x far to the right.
    found = config.network.activation.apply(jnp.array([0.0, 1e3]))
    np.testing.assert_allclose(found, [1, 1e3], rtol=1e-5)
    assert config.model.shapes  # the network takes it


def test_a_sampler(load):
    sampler = load(
        evaluation__sampler__name="my_sampler.py:Midpoint"
    ).evaluation.sampler
    noise = jnp.linspace(-1, 1, 16).reshape(1, 4, 4, 1)

    def denoise(x, sigma):  # of Gaussian data with standard deviation 0.5
        return x / (1 + 4 * sigma**2)[:, None, None, None]

    levels = NoiseLevels(num_steps=64).sigmas()
    found = sampler.sample(denoise, noise * 80, levels, jnp.zeros((1, 2)))
    np.testing.assert_allclose(found, noise / 2, rtol=0.01)


def test_an_evaluator(load):
    name = "my_evaluator.py:Brightness"
    config = load(evaluation__evaluators=f"sample_grid,{name}")
    subject = types.SimpleNamespace(
        config=config, images=np.full((2, 8, 8, 1), 0.5), real=lambda split: np.zeros(3)
    )
    evaluator = menu.build(EVALUATORS, "evaluation.evaluators", name)
    assert evaluator.evaluate(subject) == {"brightness": 0.5}


def test_a_reader(load):
    config = load(data__reader__name="my_reader.py:Stripes", data__reader__count="6")
    data.prepare(config.data)
    found = data.load_split(config.data, "train", num_classes=2)
    assert found["label"].tolist() == [0, 1, 0, 1, 0, 1]
    image = found["image"][..., 0]
    assert np.ptp(image[0], axis=0).max() == 0 and np.ptp(image[1], axis=1).max() == 0


def test_a_back_end(load, monkeypatch, capsys):
    arguments = "--workload=digits-tiny --backend=my_backend.py:Script --file=todo.txt"
    Path("study.py").write_text(
        "from edm_jax.studies import RunSpec\n"
        f"runs = lambda workload: [RunSpec('g', '{configs.letter_path('g')}:' + workload)]"
    )
    command = ["launch", "--study=study.py", *arguments.split()]
    monkeypatch.setattr(sys, "argv", [*command, "--dry_run"])
    cli.run(launch.main)
    assert "wherever todo.txt is run" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", command)
    cli.run(launch.main)
    lines = Path("todo.txt").read_text().splitlines()
    tasks = [json.loads(line.split("\t")[-1]) for line in lines if "\t{" in line]
    assert [task["name"] for task in tasks] == ["g-seed0"]


def test_a_workload(load, monkeypatch):
    monkeypatch.setattr(
        configs.workloads, "WORKLOADS", dict(configs.workloads.WORKLOADS)
    )
    config = configs.load("wide.py:digits-wide")
    assert config.network.model_channels == 24 and config.network.dropout == 0.1
    assert config.workload == "digits-wide" and config.data.name == "digits"
