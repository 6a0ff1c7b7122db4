"""What the state takes on a device, against the arrays themselves and the paper's sizes."""

import json
import subprocess
import sys
import types

import jax
import pytest

import configs
from edm_jax.cost import memory
from edm_jax.train import parallel, trainer


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "state", "full"])
def test_bytes_are_those_of_the_arrays_on_a_device(monkeypatch, sharding):
    monkeypatch.setattr(parallel, "_SMALLEST_SHARDED", 64)
    config = configs.load(
        f"{configs.letter_path('g')}:digits-tiny",
        {"training.sharding": sharding, "network.channel_mult": "(1,)"},
    )
    said = memory.state_bytes(config, jax.device_count(), sharding)
    state = trainer.make_trainer(config).initial_state()
    parts = {
        "params": state.params,
        "moments": state.opt_state,
        "averages": state.emas,
    }
    for name, tree in parts.items():
        here = sum(x.addressable_data(0).nbytes for x in jax.tree.leaves(tree))
        assert said[name] == here, name
    assert said["total"] == sum(said[name] for name in parts)


@pytest.mark.slow
def test_xxl_on_8_devices_takes_an_eighth_when_sharded():
    config = configs.load(f"{configs.letter_path('g')}:imagenet512-xxl")
    none, state, full = (
        memory.state_bytes(config, 8, word) for word in ("none", "state", "full")
    )
    # 1,523.2 million parameters (Table 6) of 4 bytes, two moments, two averages.
    assert none["params"] == pytest.approx(4 * 1523.2e6, rel=1e-3)
    assert none["total"] == pytest.approx(5 * none["params"], rel=1e-3)
    assert full["total"] == pytest.approx(none["total"] / 8, rel=1e-3)
    path = f"{configs.letter_path('g')}:imagenet512-xxl"
    halves = configs.load(path, {"training.sharding": "full", "training.shards": "2"})
    two = memory.state_bytes(halves, 8, "full")
    assert two["total"] == pytest.approx(none["total"] / 2, rel=1e-3)
    assert state["params"] == none["params"]
    assert state["total"] == pytest.approx(none["total"] * (1 + 4 / 8) / 5, rel=1e-3)


def test_the_total_of_a_compiled_step_is_its_peak_where_the_compiler_states_it():
    analysis = types.SimpleNamespace(
        argument_size_in_bytes=200,
        temp_size_in_bytes=400,
        output_size_in_bytes=205,
        alias_size_in_bytes=200,
        peak_memory_in_bytes=540,
    )
    assert memory.peak_bytes(analysis, "tpu") == 540
    assert memory.peak_bytes(analysis, "cpu") == 200 + 400 + 5


@pytest.mark.slow
def test_describe_states_the_memory_of_simulated_devices():
    def describe(*options):
        command = [
            sys.executable,
            str(configs.letter_path("g").parents[1] / "experiments" / "describe.py"),
            f"--config={configs.letter_path('g')}:digits-tiny",
            "--config.network.channel_mult=(1,)",
            *options,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    said = describe("--devices=2", "--compile")["memory"]
    assert said["devices"] == said["compiled_bytes_per_device"]["devices"] == 2
    compiled = said["compiled_bytes_per_device"]
    assert compiled["temporary"] > 0
    assert compiled["total"] >= compiled["temporary"] + compiled["state_and_batch"]
    state = said["state_bytes_per_device"]["none"]["total"]
    assert state < compiled["state_and_batch"] < 1.2 * state + 20_000
