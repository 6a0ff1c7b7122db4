"""What a step takes on TPUs: names, the compiler's report, and the table of chips."""

import importlib.util

import pytest

import configs
from edm_jax.cost import chips, topology

ASSIGNMENT = """BufferAssignment:
allocation 0: size 512, thread-local:
 value: <194 reduce_sum.427 @0> (size=512,offset=0): f32[]{:T(128)}
allocation 1: size 73728, parameter 50, shape |f32[3,3,16,16]| at ShapeIndex {}, maybe-live-out:
allocation 2: size 8, maybe-live-out:
allocation 3: size 48640, color 6, preallocated-temp:
allocation 4: size 14270976, preallocated-temp:
allocation 5: size 4932096, color 1, preallocated-temp:
allocation 6: size 4, output shape is |(f32[3])|, constant:
"""


def test_memory_of_a_device_is_counted_by_kind_without_that_on_the_chip():
    assert topology.hbm_bytes(ASSIGNMENT) == {
        "state and batch": 73728,
        "activations": 14270976,
        "other": 512 + 8 + 4,
    }


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "is not a topology"),  # JAX takes it for a v2
        ("v5x:4x4", "Did you mean"),
        ("v5e", "2 dimensions, such as v5e:4x4"),
        ("v5e:2x2x1", "2 dimensions"),
        ("v5p:4x4", "3 dimensions"),
        ("v5e:0x4", "2 dimensions"),
        ("v5e:4x4 ", "2 dimensions"),
    ],
)
def test_a_name_that_is_no_topology_is_refused_at_once(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        chips.Topology.of(name)


@pytest.mark.parametrize("name", ["v5e:4x4", "v5p:2x2x1", "v6e:16x16", "7x:2x2x1"])
def test_names_of_topologies_are_taken(name):
    assert chips.Topology.of(name).chip.hbm_gib > 0


def test_without_libtpu_the_command_that_installs_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    config = configs.load(f"{configs.letter_path('g')}:digits-tiny")
    with pytest.raises(ImportError, match=r"pip install -e '\.\[plan\]'"):
        topology.plan(config, "v5e:1x1", tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is an extra"
)
def test_a_plan_is_compiled_once_and_read_afterwards(tmp_path):
    fields = {
        "network.channel_mult": "(1,)",
        "network.compute_dtype": "bfloat16",
        "training.microbatches": "2",
        "optimizer.batch_size": "32",
    }
    config = configs.load(f"{configs.letter_path('g')}:digits-tiny", fields)
    stages = []
    said, again = (
        topology.plan(config, "v5e:2x2", tmp_path, lambda *s: stages.append(s[0]))
        for _ in range(2)
    )
    assert said == again and stages[-1] == "compiling"
    assert (said["chips"], said["hosts"], said["devices"]) == (4, 1, 4)
    assert said["step"]["rows_per_device_and_microbatch"] == 4
    memory = said["hbm_gib_per_device"]
    assert 0 < memory["state and batch"] < memory["total"] < said["hbm_gib_limit"]
    assert said["fits"] and said["largest_rows_estimate"] == 8
    (reduction,) = said["collectives"]
    assert (reduction["kind"], reduction["dtypes"]) == ("all-reduce", "f32")
    assert reduction["times_a_step"] == 1


def test_an_all_reduce_takes_as_long_as_the_scatter_and_the_gather_it_consists_of():
    def seconds(count, *kinds):
        moved = [{"kind": kind, "bytes_a_step": 400_000_000} for kind in kinds]
        return topology.exchange_seconds(moved, count, "v5e")

    reduced = seconds(4, "all-reduce")
    assert reduced == pytest.approx(seconds(4, "reduce-scatter", "all-gather"))
    # Each of 4 chips sends 3 of 4 quarters, twice, over links of 200 GB/s.
    assert reduced == pytest.approx(2 * 0.3e9 / 200e9)
    assert seconds(1, "all-reduce") == 0
