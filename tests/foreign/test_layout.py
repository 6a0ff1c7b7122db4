"""Formats of numbers, against the libraries that define them."""

import ml_dtypes
import numpy as np
import pytest

from edm_jax.foreign import kernels, layout


def test_bfloat16_is_rounded_as_its_library_rounds_it():
    rng = np.random.default_rng(0)
    values = np.append(
        rng.standard_normal(10_000), [0.0, -0.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8]
    )
    values = values.astype(np.float32)
    wanted = values.astype(ml_dtypes.bfloat16)
    raw = layout.narrowed(values, "BF16", "x")
    assert np.array_equal(raw, wanted.view(np.uint16))
    assert np.array_equal(layout.widened(raw, "BF16"), wanted.astype(np.float32))


@pytest.mark.parametrize(
    ("code", "huge"), [("F16", 1e5), ("BF16", 3.4e38), ("F32", 1e39)]
)
def test_what_does_not_fit_a_format_is_refused(code, huge):
    with pytest.raises(ValueError, match="too large for the format of x"):
        layout.narrowed(np.array([huge]), code, "x")


def test_diffusers_warms_up_by_tenths_or_by_a_power():
    # EMAModel.get_decay(n): step = n - update_after_step - 1; (1 + step)/(10 + step) or
    # 1 - (1 + step/inv_gamma)^-power, at most decay; 0 where step <= 0.
    calls = np.array([1.0, 4, 5, 100, 1e6])
    tenths = np.exp(kernels.Traditional(0.999, "tenths", 2).log(calls))
    assert np.allclose(tenths, [0, 2 / 11, 3 / 12, 98 / 107, 0.999])
    inverse = np.exp(kernels.Traditional(0.999, "inverse", 2, 0.3, 2.0, 0.5).log(calls))
    assert np.allclose(
        inverse,
        [0, 1 - 1.5**-0.5, 1 - 2**-0.5, 1 - 49.5**-0.5, 0.999][:1]
        + [0.3, 0.3, 1 - 49.5**-0.5, 1 - (1 + (1e6 - 3) / 2) ** -0.5],
    )
