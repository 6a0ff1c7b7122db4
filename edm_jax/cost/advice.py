"""How to lay out a step so that it fits: micro-batches, rematerialization, sharding. It
uses a model of memory fitted to a few steps; `cost.topology` and
`cost.memory` ask the compiler itself.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from edm_jax.cost import memory
from edm_jax.diffusion import flops
from edm_jax.diffusion.denoiser import Denoiser
from edm_jax.models.build import build
from edm_jax.train import trainer
from edm_jax.train.config import RunConfig

SHARDINGS = ("none", "state", "full")
# Bytes of activations for each that the model counts, without and with rematerialization:
# of config G in bfloat16 at XS and S, as libtpu 0.0.42 compiles them and as an H100 takes
# them, where the last is a guess.
FACTORS = {"TPU": (1.0, 1.36), "GPU": (2.0, 2.7)}
MARGIN = 0.95  # of the memory that may be filled: the model's error


class Layout(NamedTuple):
    """A step's layout, and the bytes that it is expected to take on a device."""

    microbatches: int
    remat: bool
    sharding: str
    rows: int  # images of a device and micro-batch
    bytes: int

    @property
    def fields(self) -> dict[str, str]:
        """As overrides of a config."""
        return {
            "training.microbatches": str(self.microbatches),
            "training.remat": str(self.remat),
            "training.sharding": self.sharding,
        }


def layouts(config: RunConfig, devices: int, limit: float, kind: str) -> list[Layout]:
    """What fits into `limit` bytes of each device, the fastest first.

    Fewer micro-batches are faster, and need no more of anything else: sharding moves as
    many bytes as the mean of the gradients does without. Computing activations again
    costs a third, so it comes last.

    Args:
        config: The run's; its own layout does not matter.
        devices: How many share a batch.
        limit: Bytes of one.
        kind: A key of FACTORS.

    Raises:
        ValueError: The devices do not divide the batch.
    """
    batch = config.optimizer.batch_size
    if batch % devices:
        raise ValueError(
            f"optimizer.batch_size={batch} does not divide over {devices} devices."
        )
    found = []
    shardings = SHARDINGS if config.training.parallel == "jit" else ("none",)
    for remat in (False, True):
        for parts in _divisors(batch // devices):
            for sharding in shardings:
                size = expected_bytes(config, devices, sharding, remat, parts, kind)
                if size <= MARGIN * limit:
                    rows = batch // devices // parts
                    found.append(Layout(parts, remat, sharding, rows, size))
    return found


def expected_bytes(
    config: RunConfig,
    devices: int,
    sharding: str,
    remat: bool,
    microbatches: int,
    kind: str,
) -> int:
    """Memory of one device: the state, the gradients, and the activations.

    Gradients are whole and float32, those of a micro-batch beside their sum; under
    'full' the weights are gathered beside that, in the dtype they are used in.
    """
    state = _state_bytes(config, devices, sharding)
    params = _state_bytes(config, 1, "none", "params")
    gradients = params * (2 if microbatches > 1 else 1)
    half = config.network.compute_dtype != "float32"
    gathered = params * (0.5 if half else 1.0) * (sharding == "full")
    share = config.optimizer.batch_size // devices
    shapes = jax.tree.leaves(trainer.abstract_batch(config))
    images = share * sum(x.size // x.shape[0] * x.dtype.itemsize for x in shapes)
    each = FACTORS[kind][remat] * activation_bytes(config, remat)
    return round(state + gradients + gathered + images + each * share / microbatches)


@functools.cache
def _state_bytes(
    config: RunConfig, devices: int, sharding: str, part: str = "total"
) -> int:
    return memory.state_bytes(config, devices, sharding)[part]


def activation_bytes(config: RunConfig, remat: bool) -> int:
    """What the backward pass needs of one image's forward pass.

    That is the inputs of every convolution and matrix product, of which the weights'
    gradients are made. With `remat`, the inputs of the blocks, and the inside of the
    largest block.
    """
    told = config.data.augment.labels
    return _activation_bytes(config.network, config.loss.uncertainty, remat, told)


@functools.cache
def _activation_bytes(*network: Any) -> int:
    model = build(*network)
    denoiser = Denoiser(model, 0.5)

    def kept(rows: int) -> tuple[int, int]:
        inputs = (
            jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for x in model.inputs()
        )
        program = jax.make_jaxpr(lambda *args: denoiser(*args).image)
        return _kept(program(model.shapes, *inputs).jaxpr)

    # What does not grow with the images are weights.
    (one, largest_of_one), (two, largest_of_two) = kept(1), kept(2)
    return two - one + largest_of_two - largest_of_one


def _kept(jaxpr: Any) -> tuple[int, int]:
    """Bytes kept, and those inside the largest part that is computed again."""
    total = largest = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        inner = [_kept(each) for each in flops.inner_jaxprs(equation.params)]
        if name in ("conv_general_dilated", "dot_general"):
            total += _input_bytes(equation)
        elif name in ("checkpoint", "remat2", "remat"):
            total += _input_bytes(equation)
            largest = max(largest, *(size for size, _ in inner))
        else:
            total += sum(size for size, _ in inner)
            largest = max([largest, *(size for _, size in inner)])
    return total, largest


def _input_bytes(equation: Any) -> int:
    avals = [variable.aval for variable in equation.invars]
    return sum(x.size * x.dtype.itemsize for x in avals if hasattr(x, "dtype"))


def _divisors(count: int) -> Iterator[int]:
    return (n for n in range(1, count + 1) if count % n == 0)
