"""The tables of docs/training-dynamics.md are those of the menus; each entry takes a step.

`PYTHONPATH=.:tests/helpers python tests/optim/test_table.py` writes the tables anew.
"""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optimizer_options import optimizer_config

from edm_jax.data.augment import AUGMENTS
from edm_jax.optim import chain

PAGE = Path(__file__).parents[2] / "docs" / "training-dynamics.md"
MENUS = {
    "schedule": chain.SCHEDULES,
    "warmup": chain.WARMUPS,
    "method": chain.OPTIMIZERS,
    "clip": chain.CLIPS,
    "noise": chain.NOISES,
    "penalty": chain.PENALTIES,
    "nonfinite": chain.POLICIES,
}
ENTRIES = [(field, name) for field, menu in MENUS.items() for name in menu]
TABLES = MENUS | {"augment": AUGMENTS}


def table(menu):
    """A menu as a Markdown table: name, fields with defaults, first docstring line."""
    rows = ["| name | what it does | fields |", "|-|-|-|"]
    for name, entry in menu.items():
        fields = ", ".join(f"{f.name}={f.default!r}" for f in dataclasses.fields(entry))
        summary = entry.__doc__.strip().splitlines()[0].replace("|", "\\|")
        rows.append(f"| `{name}` | {summary} | {f'`{fields}`' if fields else '–'} |")
    return "\n".join(rows) + "\n"


def with_tables(page):
    """The page with the table below each marker regenerated."""
    for field, menu in TABLES.items():
        pattern = rf"(<!-- {field} -->\n)(?:\|.*\n)*"
        made = table(menu).replace("\\", r"\\")
        page, count = re.subn(pattern, rf"\1{made}", page)
        assert count == 1, field
    return page


def test_the_pages_tables_are_those_of_the_menus():
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page) == page, "run python tests/optim/test_table.py"


@pytest.mark.slow
@pytest.mark.parametrize(("field", "name"), ENTRIES)
def test_every_entry_takes_two_steps(field, name):
    chosen = name if field == "nonfinite" else {"name": name}
    opt = optimizer_config(**{field: chosen})
    tx = chain.make_optimizer(opt, 1.0)
    rng = np.random.default_rng(0)
    params = {
        "conv": {"kernel": rng.standard_normal((3, 3, 2, 4)), "bias": np.ones(4)},
        "linear": {"kernel": rng.standard_normal((4, 3)), "gain": np.ones(())},
        "features": {"freqs": np.ones(3)},
    }
    before = params = jax.tree.map(jnp.float32, params)
    # Frozen features have no gradient.
    grads = params | {"features": {"freqs": jnp.zeros(3)}}
    state = tx.init(params)
    layout = jax.tree.structure(state)
    for _ in range(2):
        updates, state = jax.jit(tx.update)(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    assert jax.tree.structure(state) == layout
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    assert not any(np.isnan(x).any() for x in jax.tree.leaves(state))
    moved = field == "warmup" and name in ("linear", "cosine", "exponential")
    change = np.abs(params["conv"]["kernel"] - before["conv"]["kernel"]).max()
    assert change > 0 or moved
    np.testing.assert_array_equal(params["features"]["freqs"], 1)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
