"""The first paragraph of the page: what was trained, according to the configs."""

from collections.abc import Sequence
from html import escape

from edm_jax.report.runs import Entry

NO_BREAK_HYPHEN = "\u2011"
_PAPER = (
    "Karras et al., “Analyzing and Improving the Training Dynamics of Diffusion Models” "
    "(arXiv 2312.02696)"
)


def introduction(entries: Sequence[Entry]) -> str:
    """Says what was trained on what, for how long and when, and what a config is."""
    runs = [run for entry in entries for run in entry.runs]
    counts = sorted({run.status.total_nimg for run in runs if run.status.total_nimg})
    workloads = sorted({run.workload for run in runs} - {""})
    dates = sorted({run.start_time[:10] for run in runs} - {""})
    said = _subject(entries)
    if workloads:
        said += f", trained on {' and '.join(workloads)}"
    if len(counts) > 2:
        said += f" for {counts[0]:,} to {counts[-1]:,} images"
    elif counts:
        said += f" for {' or '.join(f'{count:,}' for count in counts)} images each"
    if dates:
        when = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
        said += f", started {when}".replace("-", NO_BREAK_HYPHEN)
    done = sum(run.measured for run in runs)
    said += f". {_count(len(runs), 'run')}, "
    said += "all finished." if done == len(runs) else f"{done} finished."
    if any(entry.reference for entry in entries):
        letters = {entry.letter for entry in entries}
        is_ladder = len(letters) > 1 and not any(entry.variant for entry in entries)
        said += (
            " Each config is the one before it plus the changes listed under it."
            if is_ladder
            else " Each config lists its changes against its parent."
        )
    return f"<p>{escape(said)}</p>"


def _subject(entries: Sequence[Entry]) -> str:
    """Describes the configs: of the ablation ladder, variants of these, or others."""
    steps = [e.letter.upper() for e in entries if e.variant == 0 and len(e.letter) == 1]
    steps = [letter for letter in steps if letter in "ABCDEFG"]
    altered = [e.letter.upper() for e in entries if e.variant and e.letter]
    parts = []
    if steps:
        label = ", ".join(steps)
        if len(steps) > 1 and len(steps) == ord(steps[-1]) - ord(steps[0]) + 1:
            label = f"{steps[0]} to {steps[-1]}"
        configs = "Config" if len(steps) == 1 else "Configs"
        parts.append(f"{configs} {label} of the ablations of {_PAPER}")
    if altered:
        of = ", ".join(sorted(set(altered)))
        count = _count(len(altered), "variant")
        parts.append(f"{count} of config {of}" + ("" if steps else f" of {_PAPER}"))
    if others := len(entries) - len(steps) - len(altered):
        parts.append(_count(others, "config"))
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"
