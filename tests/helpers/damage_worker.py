"""The process in which damage.py runs commands on damaged files, one case at a time.

    python tests/helpers/damage_worker.py BASE

Makes what is damaged unless it is there, reads the names of cases, and writes what is
wrong with each. What commands compile is shared.
"""

import contextlib
import gc
import io
import json
import logging
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

HELPERS = Path(__file__).resolve().parent
sys.path[:0] = [str(HELPERS), str(HELPERS.parents[1])]

import damage
import damage_base
import tiny_features
from damage import UNDAMAGED, Case
from damage_base import BEGUN, DONE
from shared_steps import shared_steps

from edm_jax.evals.features import networks

LIMIT_S = 10.0  # of processor time
PATIENCE = float(os.environ.get("DAMAGE_PATIENCE", "3"))  # wall clock, in limits
MOST_PRINTED = 8_000  # characters
MEMORY = 24 << 30  # of addresses
# All but newlines, tabs, and what draws progress.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


class Hang(BaseException):
    """The time of a case is over."""


def commands(case: str, here: Path) -> list[str]:
    """The command line of a reader, in a directory of its own."""
    done, begun = str(here / DONE), str(here / BEGUN)
    train = damage_base.arguments(begun, str(here.parent / "base" / "data"))
    own_data = f"--config.data.data_dir={here}/data"
    mine = f"--config={here}/user/my_config.py:digits-tiny"
    launch = [f"--study={here}/user/my_study.py", "--workload=digits-tiny"]
    launch += [f"--runs={here}/study"]
    return {
        "train": ["train", *train],
        "train with data": ["train", *train, own_data],
        "train with file": ["train", mine, *train[1:]],
        "describe": ["describe", mine],
        "evaluate": ["evaluate", f"--run={done}"],
        "evaluate with data": ["evaluate", f"--run={done}"],
        "sample": ["sample", f"--run={done}", "--seeds=0-3"],
        "sample of weights": [
            "sample",
            f"--run={done}",
            "--seeds=0-3",
            f"--weights={done}/reconstructed/power-0.070-000000000640.safetensors",
        ],
        "sweep": ["sweep", f"--run={done}", "--sigma_rel=0.05,0.08", "--kinds=lengths"],
        "reconstruct": ["reconstruct", f"--run={done}", "--sigma_rel=0.06,0.07"],
        "reconstruct profile": [
            "reconstruct",
            f"--run={done}",
            "--force",
            f"--profile=table:{here}/user/table.csv",
            f"--profile=function:{here}/user/mine.py:late",
        ],
        "reconstruct originals": [
            "reconstruct",
            f"--run={here}/pickles",
            "--sigma_rel=0.06",
            f"--config={damage_base.DIGITS}",
        ],
        "compare": ["compare", f"{here}/study", f"--out={here}/report"],
        "compare --follow": [
            *("compare", f"{here}/study", f"--out={here}/report", "--follow=0.01"),
        ],
        "sweep --guide": [
            *("sweep", f"--run={done}", f"--guide={begun}", *damage_base.GUIDED),
        ],
        "init_config": _init(here, "pictures"),
        "init_config of a ZIP": _init(here, "original.zip"),
        "init_config of arrays": _init(here, "arrays.npz"),
        "show_data": _show(here, "pictures"),
        "show_data of a ZIP": _show(here, "original.zip"),
        "show_data of arrays": _show(here, "arrays.npz"),
        "evaluate images": _score(here, "pictures", "features/statistics.npz"),
        "evaluate arrays": _score(here, "arrays.npz", "features/statistics.pkl"),
        "launch --dry_run": ["launch", *launch, "--dry_run"],
        "launch": ["launch", *launch],
    }[case]


def _init(here: Path, data: str) -> list[str]:
    return ["init_config", f"--data={here}/{data}", f"--out={here}/user/new.py"]


def _show(here: Path, data: str) -> list[str]:
    config = f"--config={here}/user/{Path(data).stem}.py"
    out = f"--out={here}/data.html"
    return ["show_data", config, f"--config.data.name={here}/{data}", out]


def _score(here: Path, images: str, statistics: str) -> list[str]:
    return [
        *("evaluate", f"--images={here}/{images}", "--metric=fd_effnetlite0"),
        *(f"--reference={here}/{statistics}", f"--weights={here}/features"),
    ]


def prepare(cases: Sequence[Case], base: Path, here: Path) -> None:
    """Copies what the command reads, and damages it."""
    reader = cases[0].reader
    for part in reader.takes:
        copy = shutil.copytree if (base / part).is_dir() else shutil.copy
        copy(base / part, here / part)
    if reader.command == "evaluate with data":
        path = here / DONE / "config.json"
        text = path.read_text().replace(f'"{base}/data"', f'"{here}/data"')
        path.write_text(text.replace('"digits"', '"mine"'))
    for index, case in enumerate(cases):
        if reader.together:
            shutil.copytree(base / DONE, here / _run_of(index))
        if case.file:
            file = case.file
            if reader.together:
                file = file.replace(DONE, _run_of(index))
            for path in sorted(here.glob(file)):
                case.damage.apply(path)


def _run_of(index: int) -> str:
    return f"study/case{index:02}x-seed0"


def run(cases: Sequence[Case], base: Path, here: Path, limit: float) -> str | list[str]:
    """Runs cases of a command; what is wrong with all, or with each."""
    prepare(cases, base, here)
    before, case = damage.contents(here), cases[0]
    name, *arguments = commands(case.reader.command, here)
    with captured() as printed, timed(limit):
        code = call(name, arguments)
        gc.collect()
    text = printed()
    if isinstance(code, str):
        return code
    wrong = judge(cases, code, text)
    if not wrong and (name := damage.lost(case, code, before, damage.contents(here))):
        wrong = f"loses or changes {name} (status {code})"
    if wrong:
        return f"{wrong}\n    {shown(text)}"
    if not case.reader.together:
        return ["" if is_named(case, text) else f"is silent\n    {shown(text)}"]
    page = text + (here / "report" / "index.html").read_text()
    return [
        "" if is_named(c, page, _run_of(i)) else "is silent"
        for i, c in enumerate(cases)
    ]


def shown(text: str) -> str:
    """The end of what was printed."""
    return " / ".join(text.strip().splitlines()[-3:])[-400:]


def judge(cases: Sequence[Case], code: int, text: str) -> str:
    """What is wrong with how a command ended and with what it said; else ''."""
    case = cases[0]
    if code not in (0, 2):
        return f"ends with status {code}"
    if "Traceback (most recent call last)" in text:
        return f"prints a traceback (status {code})"
    if re.search(r"\.py:\d+: \w*Warning", text):
        return "prints Python's warnings"
    if len(text) > MOST_PRINTED * len(cases):
        return f"prints {len(text):,} characters"
    if found := CONTROL.search(text):
        return f"prints a control character, {found[0]!r}"
    if code and (case.damage is UNDAMAGED or case.reader.together):
        return "refuses what is sound"
    last = (text.strip().splitlines() or [""])[-1]
    if code and not any(name in last for name in names(case)):
        return "refuses without naming the file"
    return ""


def names(case: Case) -> list[str]:
    """What a sentence about the file may call it."""
    parts = case.file.split("/")
    found = [parts[-1].rstrip("*"), *parts[2:3]]
    if parts[0] == "data":
        found += [f"data set {parts[1]!r}", f"data.name={parts[1]!r}"]
    if parts[0] in ("study", "runs") and not case.damage.plain:
        found.append(parts[1])
    if parts[-1] == "mine.py":
        found.append("'late'")  # the function's name
    if parts[-1] == "labels.csv":
        found.append("has no label")  # a picture
    if parts[-1].endswith("-points.json"):
        found.append("No point that was measured is finite")  # infinity is a value, too
    if parts[-1] == "my_config.py":
        found.append("holds a run with another config")
    return [name for name in found if name]


def is_named(case: Case, text: str, run: str = "") -> bool:
    """Whether what must be noticed was."""
    quiet = any(Path(case.file).match(each) for each in case.reader.quiet)
    if not case.damage.plain or quiet:
        return True
    if not run:
        return any(name in text for name in names(case))
    file, run = Path(case.file).name, Path(run).name
    near = rf"{run}(?:(?!-seed\d).){{0,400}}?{re.escape(file)}"
    return bool(re.search(near, text, re.DOTALL))


def call(name: str, arguments: list[str]) -> int | str:
    """Runs a command as its file does; its status, or how it failed."""
    from experiments import cli

    main = __import__(f"experiments.{name}", fromlist=["main"]).main
    handlers = logging.getLogger("edm_jax").handlers
    kept = list(handlers)
    sys.argv = [f"{name}.py", *arguments]
    try:
        cli.run(main)
        return 0
    except SystemExit as leaving:
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
            return 1
        return leaving.code or 0
    except Hang:
        where = traceback.extract_tb(sys.exc_info()[2])[-1]
        return f"hangs in {where.filename}:{where.lineno}"
    except BaseException as error:  # noqa: BLE001  that is what is looked for
        frames = traceback.extract_tb(error.__traceback__)
        own = [each for each in frames if str(damage_base.ROOT) in each.filename]
        where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in own[:-5:-1])
        return f"{type(error).__name__}: {str(error)[:200]} at {where}"
    finally:
        handlers[:] = kept


@contextlib.contextmanager
def captured() -> Iterator[Callable[[], str]]:
    """What this process prints, by Python or not."""
    with tempfile.TemporaryFile() as file:
        saved = [os.dup(each) for each in (1, 2)]
        streams = sys.stdout, sys.stderr
        for stream in streams:
            stream.flush()
        for each in (1, 2):
            os.dup2(file.fileno(), each)
        sys.stdout, sys.stderr = map(_stream, (1, 2))
        text = ""
        try:
            yield lambda: text
        finally:
            sys.stdout, sys.stderr = streams
            for each, old in zip((1, 2), saved, strict=True):
                os.dup2(old, each)
                os.close(old)
            file.seek(0)
            text = file.read().decode(errors="surrogateescape")


def _stream(descriptor: int) -> io.TextIOWrapper:
    raw = io.FileIO(descriptor, "w", closefd=False)
    errors = "surrogatepass"  # half characters are for the judge to find
    return io.TextIOWrapper(raw, "utf-8", errors=errors, write_through=True)


@contextlib.contextmanager
def timed(seconds: float) -> Iterator[None]:
    """Raises Hang in what computes for longer, or waits for `PATIENCE` times as long.

    Others may keep the machine busy: it is not the wall clock that tells a hang.
    """

    def ring(*_: object) -> None:
        raise Hang

    timers = {
        signal.SIGPROF: (signal.ITIMER_PROF, seconds),
        signal.SIGALRM: (signal.ITIMER_REAL, PATIENCE * seconds),
    }
    for number, (timer, limit) in timers.items():
        signal.signal(number, ring)
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for timer, _ in timers.values():
            signal.setitimer(timer, 0)


def run_here() -> None:
    """Makes launchers start no processes."""
    from experiments import backends

    backends.Local.slots = lambda self, runs: backends.local.cpu_slots(1)
    backends.local.run = lambda tasks, *_: {task.name: "done" for task in tasks}


def main() -> None:
    """Make what is damaged, then run the cases whose names come in."""
    base = Path(sys.argv[1])
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("MPLBACKEND", "agg")
    os.environ.pop("EDM_JAX_CLAIM", None)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    networks.NETWORKS["effnetlite0"] = tiny_features.tiny()
    with shared_steps():
        if not (base / "ready").exists():
            shutil.rmtree(base, ignore_errors=True)
            base.mkdir(parents=True)
            damage_base.make(base)
            (base / "ready").touch()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        warnings.simplefilter("always")
        run_here()
        print("ready", file=out, flush=True)
        for each in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), each)
        _answer(base, out)


def _answer(base: Path, out: IO[str]) -> None:
    by_name = {case.name: case for case in damage.cases(base)}
    warm: set[str] = set()
    for line in sys.stdin:
        cases = [by_name[name] for name in json.loads(line)]
        reader = cases[0].reader
        if reader.command not in warm:
            warm.add(reader.command)
            _in_a_place([Case(reader, "", UNDAMAGED)], base, 90.0)
            gc.freeze()  # collected after each case, which what is there would slow
        answer = _in_a_place(cases, base, LIMIT_S + 0.3 * len(cases))
        print(json.dumps(answer), file=out, flush=True)


def _in_a_place(cases: Sequence[Case], base: Path, limit: float) -> str | list[str]:
    with tempfile.TemporaryDirectory(dir=base.parent) as place:
        back = os.getcwd()
        here = Path(place).resolve()
        os.chdir(here)
        try:
            return run(cases, base, here, limit)
        finally:
            os.chdir(back)


if __name__ == "__main__":
    main()
