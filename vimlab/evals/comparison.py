"""Results of several runs side by side: their figures, and in what their protocols differ."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from vimlab import paths
from vimlab.config import ConfigError, flatten
from vimlab.evals import page, workdir
from vimlab.evals.wording import heading_of, name_of

# What says where a figure came from, and nothing of how it was found.
ORIGIN = ("command", "date", "step", "evaluator", "version", "code", "jax")


@dataclasses.dataclass(frozen=True)
class Column:
    """The results of one run.

    Attributes:
      title: what people call it.
      results: evaluator name → its record.
      pictures: picture name → its file.
    """

    title: str
    results: dict[str, dict[str, Any]]
    pictures: dict[str, paths.Path]


@dataclasses.dataclass(frozen=True)
class Table:
    """One evaluator's figures.

    Attributes:
      evaluator: its name.
      figures: (name, one value a column; None where it has none).
      differences: (protocol key, one value a column) where they are not all the same, those of ORIGIN left out.
      origin: the same of ORIGIN alone.
    """

    evaluator: str
    figures: list[tuple[str, list[float | None]]]
    differences: list[tuple[str, list[str]]]
    origin: list[tuple[str, list[str]]]


def read(place: str) -> Column:
    """A column from `WORKDIR`, `WORKDIR@STEP` or one result file. Raises ConfigError where there is no result."""
    paths.check(paths.place(place), "the place")
    path, _, step = place.rpartition("@") if not paths.place(place).exists() and "@" in place else (place, "", "")
    path = paths.place(path)
    if path.is_file():
        record = _record(path)
        return Column(path.stem, {record["protocol"].get("evaluator", path.stem): record}, {})
    if not (path / "evals").is_dir():
        raise ConfigError(f"{path} holds no evals folder and is no result file; run `vimlab eval --workdir {path}` first")
    if step and not step.isdigit():
        raise ConfigError(f"in {place!r}, {step!r} is no step; write WORKDIR@STEP")
    run = workdir.read(path)
    of_step = lambda found: not step or found == int(step)
    results = {name: [r for r in records if of_step(r["protocol"].get("step"))][-1:] for name, records in run.results.items()}
    results = {name: records[0] for name, records in results.items() if records}
    if not results:
        raise ConfigError(f"{path} holds no result of step {step}; its results are of steps {sorted(_steps(run))}")
    shown = {name: [file for at, file in files if of_step(at)][-1:] for name, files in run.pictures.items()}
    return Column(run.name + (f" @{step}" if step else ""), results, {name: files[0] for name, files in shown.items() if files})


def _record(path: paths.Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
        record["protocol"], record["metrics"]
    except (ValueError, KeyError, TypeError, UnicodeDecodeError):
        raise ConfigError(f"{path} is no result of `vimlab eval`: it has no protocol and metrics") from None
    return record


def _steps(run: workdir.Run) -> set[int]:
    return {record["protocol"].get("step") for records in run.results.values() for record in records}


def tables(columns: Sequence[Column]) -> list[Table]:
    """A table for each evaluator that more than one column has. Raises ConfigError where there is none."""
    names = [name for name in columns[0].results if sum(name in c.results for c in columns) > 1]
    names += [n for c in columns[1:] for n in c.results if n not in names and sum(n in other.results for other in columns) > 1]
    if not names:
        raise ConfigError("no evaluator has results in two of them: " + "; ".join(f"{c.title} has {sorted(c.results)}" for c in columns))
    return [_table(name, [c.results.get(name) for c in columns]) for name in dict.fromkeys(names)]


def _table(name: str, records: Sequence[dict[str, Any] | None]) -> Table:
    metrics = dict.fromkeys(key for r in records if r for key in r["metrics"])
    figures = [(key, [r["metrics"].get(key) if r else None for r in records]) for key in metrics]
    protocols = [flatten(r["protocol"]) if r else None for r in records]
    keys = dict.fromkeys(key for p in protocols if p is not None for key in p)
    rows = [(key, ["" if p is None else _word(p.get(key, "—")) for p in protocols]) for key in keys]
    unlike = [(key, words) for key, words in rows if len({w for w, p in zip(words, protocols, strict=True) if p is not None}) > 1]
    return Table(name, figures, [r for r in unlike if r[0] not in ORIGIN], [r for r in unlike if r[0] in ORIGIN])


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def number(value: float | None) -> str:
    """Six digits; a dash where there is none."""
    return "—" if value is None else f"{value:.6g}"


def as_text(columns: Sequence[Column], found: Sequence[Table]) -> str:
    """Tables for a terminal."""
    parts = []
    for table in found:
        rows = [(table.evaluator, [c.title for c in columns])] + [(name, [number(v) for v in values]) for name, values in table.figures]
        parts.append(_aligned(rows))
        if table.differences:
            parts.append("  not the same protocol:\n" + _aligned([(f"  {key}", words) for key, words in table.differences], widest=40))
        else:
            parts.append("  the same protocol")
    return "\n".join(parts)


def _aligned(rows: Sequence[tuple[str, list[str]]], widest: int = 28) -> str:
    cut = lambda text: text if len(text) <= widest else text[: widest - 1] + "…"
    rows = [[name, *map(cut, cells)] for name, cells in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def as_page(columns: Sequence[Column], found: Sequence[Table]) -> str:
    """A self-contained HTML page: tables with their protocols' differences, pictures of the same kind side by side."""
    heads = [c.title for c in columns]
    parts = ["<h1>" + page.escape(" against ".join(heads)) + "</h1>"]
    for table in found:
        rows = [(name_of(name), [number(v) for v in values]) for name, values in table.figures]
        if table.differences:
            verdict = '<p class="note after">Not the same protocol; the figures compare only as far as these differences do not matter:</p>'
            verdict += page.table(["protocol", *heads], table.differences)
        else:
            verdict = '<p class="note after">The same protocol.</p>'
        where = page.folded("Where these figures are from", page.table(["", *heads], table.origin)) if table.origin else ""
        parts.append(page.section(heading_of(table.evaluator), page.table(["", *heads], rows), verdict, where))
    shared = [name for name in columns[0].pictures if all(name in c.pictures for c in columns)]
    for name in shared:
        figures = "".join(page.picture(c.title, name.replace("_", " "), c.pictures[name]) for c in columns)
        parts.append(page.section(name.replace("_", " ").capitalize(), f'<div class="pictures pair">{figures}</div>'))
    return page.page(" against ".join(heads), "\n".join(parts))
