"""One self-contained HTML page about a sweep: findings, figures over seeds, differences, plots against what was swept, curves, trials."""

import shlex
from collections.abc import Sequence

import numpy as np

import vimlab
from vimlab.evals import page, svg
from vimlab.evals.wording import CARDS, is_share, name_of
from vimlab.sweep import tables
from vimlab.sweep.experiment import Against
from vimlab.sweep.results import Group, Results, shared_protocols, without_folders
from vimlab.sweep.trials import short_keys

# The common style has six colours; a sweep's curves want more.
MORE = ("#5b8c00", "#e0559a", "#008a9e", "#8a5a2b", "#6a5acd", "#7d8896")
STYLE = "".join(f".c{6 + i} {{ --c: {colour}; }}\n" for i, colour in enumerate(MORE)) + "th.num { text-align: right; padding-right: 0; } td.num, th.num { padding-left: 16px; } td { white-space: nowrap; } td.code { white-space: normal; }\n"
COLOURS = 6 + len(MORE)
CURVES = ("train/loss", "train/psnr", "train/bits_per_token", "train/codebook_usage")
MOST_PLOTS = 4


def as_page(results: Results) -> str:
    """The whole page."""
    title = results.report.title or f"{without_folders(results.sweep.base)}: a sweep"
    parts = (_head(results, title), _failures(results), _figures(results), _reference(results), _against(results), _curves(results), _trials(results))
    foot = f"<footer>Written by vimlab {vimlab.__version__}.</footer>"
    return page.page(title, "\n".join([*filter(None, parts), foot]), style=STYLE)


def _head(results: Results, title: str) -> str:
    states = [o.state for o in results.outcomes]
    facts = [f"{states.count(s)} {s}" for s in dict.fromkeys(states)]
    good = " good" * (set(states) == {"done"})
    facts = f'<span class="status{good}">{len(states)} trials: {page.escape(", ".join(facts))}</span><span>{page.escape(without_folders(results.sweep.base))}</span>'
    findings = "".join(f"<p>{page.escape(sentence)}</p>" for sentence in results.findings())
    return f'<header><div class="kicker">vimlab · sweep</div><h1>{page.escape(title)}</h1><div class="facts">{facts}</div></header>{findings}'


def _failures(results: Results) -> str:
    rows = "".join(f"<tr><td>{page.escape(name)}</td><td>{page.escape(why)}</td></tr>" for name, why in tables.failures(results))
    return f'<section class="alarms"><h2>Failed</h2><div class="scroll"><table>{rows}</table></div></section>' if rows else ""


def _figures(results: Results) -> str:
    top, rows = tables.means(results)
    numbers = len(results.columns)
    means = page.section("Figures", '<p class="note">Mean ± standard deviation over seeds.</p>', _table(top, rows, numbers), _protocols(results))
    top, rows = tables.differences(results)
    note = f'<p class="note">Seed by seed: the mean of the differences ± their standard deviation. Baseline: {page.escape(results.baseline)}.</p>'
    return means + (page.section("Differences from the baseline", note, _table(top, rows, numbers)) if rows else "")


def _table(top: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 0) -> str:
    """A table whose last `numbers` columns are figures."""
    style = lambda i: ' class="num"' if i >= len(top) - numbers else ""
    line = lambda cells, tag: "<tr>" + "".join(f"<{tag}{style(i)}>{page.escape(c)}</{tag}>" for i, c in enumerate(cells)) + "</tr>"
    return f'<div class="scroll"><table>{line(top, "th")}{"".join(line(row, "td") for row in rows)}</table></div>'


def _protocols(results: Results) -> str:
    shared, unlike = shared_protocols(results.outcomes)
    warning = f'<p class="note">Not the same protocol in all trials: {page.escape(", ".join(unlike))}.</p>' if unlike else ""
    return warning + "".join(page.folded(f"Protocol of {name.replace('_', ' ')}", page.pairs(protocol)) for name, protocol in shared.items())


def _reference(results: Results) -> str:
    if not results.report.reference:
        return ""
    title, top, rows = results.report.reference
    return page.section("For comparison", f'<p class="note">{page.escape(title)}</p>', _table(top, rows))


def _against(results: Results) -> str:
    asked = [p for p in results.report.plots if isinstance(p, Against)]
    plots = [_drawn_against(results, p) for p in (asked or _all_against(results))]
    return page.section("Against what was swept", f'<div class="pair">{"".join(plots)}</div>' if any(plots) else "")


def _all_against(results: Results) -> list[Against]:
    """The most telling columns against each key with more than two values; lines for the values of one other key, if there is one."""
    keys = tables.changed(results)
    several = [k for k in keys if len({g.changes.get(k) for g in results.groups}) > 2]
    by = lambda key: next((k for k in keys if k != key), None)
    telling = [f"{evaluator}/{figure}" for evaluator, figure, _ in CARDS if f"{evaluator}/{figure}" in results.columns]
    return [Against(column, key, by(key)) for key in several for column in (telling or results.columns)[:MOST_PLOTS]]


def _drawn_against(results: Results, plot: Against) -> str:
    """A figure's mean and spread, a line for each value of a second key; values stand in order, equally far apart."""
    groups = [g for g in results.groups if plot.figure in g.figures]
    if not groups:
        return ""
    values = sorted({_value(g, plot.key) for g in groups}, key=_order)
    lines: dict[str, list[Group]] = {}
    for group in groups:
        lines.setdefault(_value(group, plot.by) if plot.by else "", []).append(group)
    series = []
    for n, (label, members) in enumerate(lines.items()):
        means: dict[int, list] = {}
        for group in members:  # Groups that differ in a third key share a point.
            means.setdefault(values.index(_value(group, plot.key)), []).append(group.figures[plot.figure])
        x = sorted(means)
        y = np.array([np.mean([s.mean for s in means[i]]) for i in x])
        spread = np.array([np.mean([s.spread or 0.0 for s in means[i]]) for i in x])
        short = short_keys(tables.changed(results))
        name = f"{short[plot.by]} {label}" if plot.by else short[plot.key]
        series.append(svg.Series(name, np.array(x, float), y, sparse=True, colour=n % COLOURS, spread=spread))
    title = f"{name_of(plot.figure)} against {plot.key}"
    form = svg.percent if is_share(plot.figure) else svg.compact
    labels = [(float(i), v) for i, v in enumerate(values)]
    drawing = svg.curves(series, title=title, last_step=len(values) - 1, form=form, labels_x=labels)
    return page.plot(title, drawing, [(s.colour, s.label, "") for s in series] if plot.by else ())


def _value(group: Group, key: str) -> str:
    return group.outcomes[0].trial.overrides.get(key, "as in the config")


def _order(value: str) -> tuple[int, float, str]:
    try:
        return 0, float(value), value
    except ValueError:
        return 1, 0.0, value


def _curves(results: Results) -> str:
    asked = [p for p in results.report.plots if isinstance(p, str)]
    known = {name for o in results.outcomes for name, (x, _) in o.series.items() if len(x) > 1}
    metrics = [m for m in asked or [*CURVES, *(f"eval/{c}" for c in results.columns)] if m in known]
    plots = [_drawn_curves(results, metric, title, groups) for metric in metrics for title, groups in _panels(results.groups)]
    note = '<p class="note">Means over the steps that all seeds have come to; thin lines are single seeds.</p>'
    return page.section("Curves", note + f'<div class="pair">{"".join(plots)}</div>' if any(plots) else "")


def _panels(groups: Sequence[Group]) -> list[tuple[str, list[Group]]]:
    """Groups that share a plot: all, or where colours would run out those of one value of the key that has the fewest."""
    if len(groups) <= COLOURS:
        return [("", list(groups))]
    keys = dict.fromkeys(k for g in groups for k in g.changes)
    key = min(keys, key=lambda k: len({g.changes.get(k) for g in groups}))
    panels: dict[str, list[Group]] = {}
    for group in groups:
        panels.setdefault(f"{short_keys(keys)[key]} {_value(group, key)}", []).append(group)
    return list(panels.items())


def _drawn_curves(results: Results, metric: str, panel: str, groups: Sequence[Group]) -> str:
    """One metric over steps, a line a group: its mean over seeds, with the seeds faintly behind it."""
    series, seeds = [], []
    for n, group in enumerate(groups):
        curves = [o.series[metric] for o in group.outcomes if metric in o.series]
        runs = [dict(zip(x, y, strict=True)) for x, y in curves]
        steps = sorted(set.intersection(*map(set, runs))) if runs else []
        if steps:
            y = np.array([np.mean([run[s] for run in runs]) for s in steps])
            series.append(svg.Series(group.name, np.array(steps, float), y, sparse=not metric.startswith("train/"), colour=n % COLOURS))
            seeds += [svg.Series("", x, y, colour=n % COLOURS, faint=True) for x, y in curves if len(curves) > 1]
    if not series:
        return ""
    title = f"{metric}" + (f", {panel}" if panel else "")
    form = svg.percent if is_share(metric) else svg.compact
    last = max(s.x[-1] for s in [*seeds, *series])
    drawing = svg.curves([*seeds, *series], title=f"{title} over training steps", last_step=last, log=metric.endswith("loss"), form=form)
    final = svg.percent if is_share(metric) else svg.number
    return page.plot(title, drawing, [(s.colour, s.label, final(float(s.y[-1]))) for s in series])


def _trials(results: Results) -> str:
    commands = {o.trial.name: shlex.join(["vimlab", *o.trial.train(without_folders(results.sweep.base), "DIR")]) for o in results.outcomes}
    rows = [[o.trial.name, o.state, str(o.seed), *(tables.number(c, o.figures.get(c)) for c in results.columns)] for o in results.outcomes]
    table = _table(["trial", "state", "seed", *tables.heads(results)], rows, len(results.columns))
    return page.section("Trials", page.folded("Every trial", table), page.folded("Their commands", page.pairs(commands)))
