"""What to set so that a step fits: against figures of real steps, and by hand."""

import json
import sys

import jax
import jax.numpy as jnp
import pytest

import configs
from edm_jax.cost import advice, hours
from edm_jax.train import parallel
from experiments import describe

G = configs.letter_path("g")


def test_the_inputs_of_products_are_kept_and_with_remat_those_of_blocks():
    def block(x, weights):  # two products, of inputs of 8 and 16 floats a row
        return jnp.tanh(jnp.tanh(x @ weights[0]) @ weights[1])

    def network(x, weights, remat):
        each = jax.checkpoint(block) if remat else block
        return each(each(x, weights), weights) + 1

    shapes = jnp.zeros((3, 8)), (jnp.zeros((8, 16)), jnp.zeros((16, 8)))
    bytes_of = lambda count: 4 * count
    weights = 2 * 8 * 16
    for remat, kept, inside in (
        (False, 2 * (3 * (8 + 16) + weights), 0),
        (True, 2 * (3 * 8 + weights), 3 * (8 + 16) + weights),
    ):
        program = jax.make_jaxpr(lambda x, w, r=remat: network(x, w, r))
        found = advice._kept(program(*shapes).jaxpr)
        assert found == (bytes_of(kept), bytes_of(inside))


@pytest.mark.slow
def test_weights_are_no_activations(monkeypatch):
    config = configs.load(f"{G}:digits-tiny", {"network.channel_mult": "(1,)"})
    kept = iter([(110, 103), (120, 106)])  # of one row and of two
    monkeypatch.setattr(advice, "_kept", lambda jaxpr: next(kept))
    assert advice.activation_bytes(config, True) == 10 + 3
    advice._activation_bytes.cache_clear()


@pytest.mark.slow
def test_the_models_are_within_5_percent_of_steps_that_were_measured():
    """benchmarks/RESULTS.md: XS as libtpu compiles it, and on an H100."""

    def expected(devices, parts, kind, **fields):
        config = configs.load(
            f"{G}:imagenet512-xs", {"network.compute_dtype": "bfloat16", **fields}
        )
        return advice.expected_bytes(config, devices, "none", False, parts, kind)

    assert expected(4, 16, "TPU") == pytest.approx(5.56 * 2**30, rel=0.05)
    config = configs.load(f"{G}:imagenet512-xs", {"network.compute_dtype": "bfloat16"})
    nimg = config.total_steps * config.optimizer.batch_size
    measured = nimg / 1473 / 3600  # images/s
    assert hours.chip_hours(config, "H100") == pytest.approx(measured, rel=0.02)
    smaller = {"optimizer.batch_size": "512"}
    assert expected(1, 2, "GPU", **smaller) == pytest.approx(42.3e9, rel=0.05)


@pytest.fixture
def config(monkeypatch):
    """16 rows, whose activations take 1 MB each, or 0.25 MB with remat."""
    monkeypatch.setattr(
        advice, "activation_bytes", lambda config, remat: 250_000 if remat else 1e6
    )
    fields = {"network.channel_mult": "(1,)", "optimizer.batch_size": "16"}
    return configs.load(f"{G}:digits-tiny", fields)


def test_what_is_faster_comes_first_and_all_of_it_fits(config):
    def best(limit):
        return advice.layouts(config, 2, limit, "TPU")[0]

    assert best(1e9)[:4] == (1, False, "none", 8)
    found = [best(limit) for limit in (8.7e6, 4.6e6, 2.5e6, 1.05e6)]
    for layout, limit in zip(found, (8.7e6, 4.6e6, 2.5e6, 1.05e6), strict=True):
        assert layout.bytes < limit
    parts = [layout.microbatches for layout in found]
    assert parts == sorted(parts)
    assert [layout.remat for layout in found] == [False, False, False, True]
    assert advice.layouts(config, 2, 1e5, "TPU") == []
    with pytest.raises(ValueError, match="does not divide over 3 devices"):
        advice.layouts(config, 3, 1e9, "TPU")


def test_sharding_is_proposed_before_smaller_micro_batches(config, monkeypatch):
    monkeypatch.setattr(parallel, "_SMALLEST_SHARDED", 64)
    config = configs.changed(config, {"optimizer.batch_size": "32"})
    whole = advice.expected_bytes(config, 2, "none", False, 1, "TPU")
    layout = advice.layouts(config, 2, whole / advice.MARGIN - 1, "TPU")[0]
    assert (layout.microbatches, layout.sharding) == (1, "state")


def advised(monkeypatch, capsys, *options):
    monkeypatch.setattr(
        sys, "argv", ["describe.py", f"--config={G}:digits-tiny", "--advise", *options]
    )
    monkeypatch.setattr(describe.jax.config, "update", lambda *_: None)
    describe.main()
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_the_overrides_that_are_printed_are_taken(monkeypatch, capsys):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    said = advised(monkeypatch, capsys, "--devices=2", "--memory_gb=0.1")["advice"]
    assert said["usable_gib_per_device"] == pytest.approx(0.075e9 / 2**30, abs=0.01)
    options = [word.removeprefix("--config.") for word in said["overrides"].split()]
    taken = configs.load(f"{G}:digits-tiny", dict(o.split("=") for o in options))
    assert taken.training.microbatches == said["proposal"]["microbatches"]


@pytest.mark.slow
def test_on_a_topology_what_does_not_compile_gives_way_to_the_next(monkeypatch, capsys):
    def plan(config, name, full):
        training = config.training
        tried.append((training.microbatches, training.remat, training.sharding))
        return {"fits": len(tried) == 2}

    tried = []
    monkeypatch.setattr(describe, "describe_topology", plan)
    said = advised(monkeypatch, capsys, "--topology=v5e:1x1")
    assert said["plan"] == {"fits": True} and len(set(tried)) == len(tried) == 2
    proposal = said["advice"]["proposal"]
    assert tried[1] == tuple(proposal[k] for k in ("microbatches", "remat", "sharding"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "--advise needs --topology, or"),
        (["--devices=8"], "--advise needs --topology, or"),
        (["--devices=8", "--memory_gb=-1"], "must be positive"),
        (["--devices=8", "--memory_gb=0.0001"], "Nothing fits"),
    ],
)
def test_a_question_without_an_answer_is_one_sentence(
    monkeypatch, capsys, options, sentence
):
    with pytest.raises(ValueError, match=sentence):
        advised(monkeypatch, capsys, *options)
