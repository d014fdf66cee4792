"""A sweep's figures as Markdown and CSV."""

import csv
import io
from collections.abc import Sequence

from vimlab.evals.wording import value_of
from vimlab.sweep.results import Group, Results, Statistic, shared_protocols, without_folders
from vimlab.sweep.trials import SEED, short_keys


def heads(results: Results) -> list[str]:
    """The columns' names for a table: the fewest last parts that tell them apart, with the unit."""
    short = short_keys(key.replace("/", ".") for key in results.columns)
    units = [next((unit for g in results.groups if c in g.figures for unit in [value_of(c, g.figures[c].mean)[1]]), "") for c in results.columns]
    names = [short[c.replace("/", ".")].replace("_", " ") for c in results.columns]
    return [name + (f" ({unit})" if unit and not name.endswith(unit) else "") for name, unit in zip(names, units, strict=True)]


def cell(figure: str, statistic: Statistic | None, *, signed: bool = False) -> str:
    """`22.74 ± 0.03`; without spread where there is but one seed, a dash where there is none."""
    if statistic is None:
        return "—"
    sign = "+" if signed and statistic.mean > 0 else ""
    mean = sign + value_of(figure, statistic.mean)[0]
    return mean if statistic.spread is None else f"{mean} ± {value_of(figure, statistic.spread)[0]}"


def number(figure: str, value: float | None) -> str:
    """One trial's figure; a dash where there is none."""
    return "—" if value is None else value_of(figure, value)[0]


def done(group: Group) -> str:
    """How many of a group's trials are done: `3`, or `1 of 3`."""
    count = sum(o.state == "done" for o in group.outcomes)
    return str(count) if count == len(group.outcomes) else f"{count} of {len(group.outcomes)}"


def means(results: Results) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: what a group changes, how many seeds it has, mean ± spread of each column."""
    keys = changed(results)
    short = short_keys(keys)
    top = [*(short[k] for k in keys), "seeds", *heads(results)]
    rows = [[*_changes(g, keys), done(g), *(cell(c, g.figures.get(c)) for c in results.columns)] for g in results.groups]
    return top, rows


def differences(results: Results) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the paired differences from the baseline; no rows where nothing is compared."""
    keys = changed(results)
    short = short_keys(keys)
    top = [*(short[k] for k in keys), "pairs", *heads(results)]
    compared = [g for g in results.groups if g.differences]
    pairs = lambda g: str(max(len(s.values) for s in g.differences.values()))
    rows = [[*_changes(g, keys), pairs(g), *(cell(c, g.differences.get(c), signed=True) for c in results.columns)] for g in compared]
    return top, rows


def failures(results: Results) -> list[list[str]]:
    """Names of the trials that failed, and their sentences."""
    return [[o.trial.name, o.message] for o in results.outcomes if o.state == "failed"]


def changed(results: Results) -> list[str]:
    """The keys that groups differ in, in the order of their first change."""
    return list(dict.fromkeys(key for group in results.groups for key in group.changes))


def _changes(group: Group, keys: Sequence[str]) -> list[str]:
    return [group.changes.get(key, "") for key in keys]


def markdown(results: Results) -> str:
    """All tables, in a form that is read as it is, too."""
    parts = [f"# {results.report.title}"] if results.report.title else []
    parts += results.findings()
    parts.append(aligned(*means(results)))
    top, rows = differences(results)
    if rows:
        parts.append(f"Differences from {results.baseline}, seed by seed: mean ± spread.")
        parts.append(aligned(top, rows))
    if results.report.reference:
        title, top, rows = results.report.reference
        parts += [title, aligned(top, rows)]
    if failed := failures(results):
        parts += ["Failed:", aligned(["trial", "why"], failed)]
    _, unlike = shared_protocols(results.outcomes)
    if unlike:
        parts.append(f"The trials' figures did not come about in the same way; these keys of their protocols differ: {', '.join(unlike)}.")
    return "\n\n".join(parts) + "\n"


def aligned(top: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up."""
    safe = [[c.replace("|", "\\|") for c in row] for row in (top, *rows)]
    widths = [max(len(row[i]) for row in safe) for i in range(len(top))]
    lines = ["| " + " | ".join(f"{c:{w}}" for c, w in zip(row, widths, strict=True)) + " |" for row in safe]
    return "\n".join([lines[0], "| " + " | ".join("-" * max(w, 3) for w in widths) + " |", *lines[1:]])


def as_csv(results: Results) -> str:
    """One row a trial: its name and state, the keys that change, its seed, the columns at full precision, and what went wrong."""
    keys = changed(results)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", *keys, SEED, *results.columns, "message"])
    for outcome in results.outcomes:
        changes = [without_folders(outcome.trial.changes.get(key, "")) for key in keys]
        figures = [outcome.figures.get(column, "") for column in results.columns]
        writer.writerow([outcome.trial.name, outcome.state, *changes, outcome.seed, *figures, outcome.message])
    return text.getvalue()
