"""What makes XLA fast on a CPU is taken by the XLA that is pinned."""

import jax
import jaxlib
import pytest

from edm_jax import backend


@pytest.mark.skipif(
    not jaxlib.__version__.startswith("0.10."), reason="other versions may refuse them"
)
def test_the_pinned_xla_takes_every_option():
    # A refused option is left out in silence: the step would only be slower.
    assert backend.compiler_options() == backend._CPU_OPTIONS


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(backend, "_CPU_OPTIONS", {"xla_cpu_no_such_option": True})
    options = backend.compiler_options.__wrapped__()
    assert options is None
    jax.jit(lambda x: x + 1, compiler_options=options)(0.0)
