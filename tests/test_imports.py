"""The floors of the library, kept by reading every import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the ground up. A room imports from rooms on floors below its own only.
FLOORS = (
    "fields files tree platform",
    "menu",
    "ema runs",
    "models data",
    "optim diffusion original",
    "evals export foreign",
    "train",
    "cost",
    "studies report",
)
FLOOR_OF = {room: i for i, floor in enumerate(FLOORS) for room in floor.split()}
# Third parties that only some rooms may see.
GUESTS = {
    "flax": {"models"},
    "orbax": {"train"},
    "tensorflow_datasets": {"data"},
    "grain": {"data"},
    "torch": {"export"},
    "tensorboardX": {"train"},
    "wandb": {"train"},
    "submitit": {"studies"},
    "plotly": {"report"},
    "ml_collections": set(),
    "configs": set(),
    "experiments": set(),
}
NO_JAX = {
    "fields",
    "menu",
    "files",
    "tree",
    "ema",
    "original",
    "foreign",
    "runs",
    "report",
    "studies",
}
# Rebuilding offline starts without JAX: this file imports it where it is used.
LAZY_JAX = {"edm_jax/ema/averaging.py"}


def imports(path, top=False):
    """Dotted names of what a file imports, all or at its top; `from a import b` as a.b."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# Inside `ema`, each file imports from those before it only.
EMA_ORDER = [
    "hashing",
    "optional",
    "power",
    "quadrature",
    "profiles",
    "given",
    "grammar",
    "container",
    "meta",
    "solver",
    "plan",
    "keep",
    "config",
    "snapshots",
    "combine",
    "posthoc",
    "journal",
    "rebuild",
    "averaging",
    "__init__",
]
# Likewise in `report`: runs as data, results, curves, figures, page, files.
REPORT_ORDER = [
    *("runs", "fields", "metrics", "read", "following"),
    *("statistics", "columns", "grouping", "curves", "quality", "figures", "by_field"),
    *(
        "tables",
        "notes",
        "export",
        "drawing",
        "sweep_figures",
        "toy_figure",
        "guided_figure",
        "profile_figure",
    ),
    *("embedded", "introduction", "results", "records", "grids", "page", "data_page"),
    "__init__",
]
ORDERS = {"ema": EMA_ORDER, "report": REPORT_ORDER}
FILES = sorted((ROOT / "edm_jax").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_from_the_floors_below_only(path):
    room = path.relative_to(ROOT / "edm_jax").parts[0].removesuffix(".py")
    for first, second in (f"{name}.".split(".")[:2] for name in imports(path)):
        assert first not in GUESTS or room in GUESTS[first], first
        lazy = str(path.relative_to(ROOT)) in LAZY_JAX
        at_start = not lazy or "jax" in [
            n.split(".")[0] for n in imports(path, top=True)
        ]
        assert first != "jax" or room not in NO_JAX or not at_start
        if first == "edm_jax" and second != room:
            assert FLOOR_OF[second] < FLOOR_OF[room], f"{room} imports {second}"


@pytest.mark.parametrize(
    ("room", "name"), [(room, name) for room, order in ORDERS.items() for name in order]
)
def test_the_files_of_a_room_build_on_one_another_in_one_direction(room, name):
    before = ORDERS[room][: ORDERS[room].index(name)]
    for found in imports(ROOT / "edm_jax" / room / f"{name}.py"):
        parts = found.split(".")
        if parts[:2] == ["edm_jax", room]:
            assert parts[2] in before


@pytest.mark.parametrize("room", ORDERS)
def test_every_file_of_an_ordered_room_has_its_place(room):
    files = {path.stem for path in (ROOT / "edm_jax" / room).glob("*.py")}
    assert files == set(ORDERS[room])


def test_the_compute_path_imports_without_data_and_config_libraries():
    absent = "tensorflow_datasets", "ml_collections", "grain"
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}));"
        "import edm_jax.train.step, edm_jax.ema, edm_jax.diffusion.samplers"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
