"""One self-contained HTML page about a run: figures with their protocol, pictures, curves, codebook, config, environment."""

import collections
import datetime
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import vimlab
from vimlab import paths, pictures
from vimlab.config import flatten
from vimlab.evals import EVALUATORS, charts, page, svg, workdir
from vimlab.evals.wording import CARDS, METRICS, PICTURES, heading_of, key_of, name_of, value_of

SHOWN_EVENTS = 20
LONGEST_VALUE = 400
FAILURES = ("drawn_unlike", "alignment_failed", "clip_score_lowest", "reconstruction_worst")
DRAWN = ("prompts", "samples", "drawn", "neighbours", "alignment", "clip_score")  # Pictures of the model's own making: what people look at first.


def write_report(directory: str | os.PathLike) -> paths.Path:
    """Writes `report.html` into a workdir from whatever the run has left there so far.

    Returns:
      the report's path.

    Raises:
      ConfigError: the workdir holds nothing of a run.
    """
    run = workdir.read(directory)
    body = "\n".join(filter(None, (part(run) for part in SECTIONS)))
    path = paths.place(directory) / "report.html"
    pictures.write_whole(path, page.page(f"{run.name} · vimlab", body).encode())
    return path


def head(run: workdir.Run) -> str:
    """Name, state and size of the run, and its most telling figures."""
    total = run.info.get("total_steps")
    finished = total is not None and run.last_step >= total
    state = f"Finished, {total:,} steps" if finished else f"Step {run.last_step:,}" + (f" of {total:,}" if total else "")
    facts = [f'<span class="status{" good" * finished}">{state}</span>']
    facts += [f"<span>{page.escape(f)}</span>" for f in (_duration(run), _speed(run), run.info.get("devices")) if f]
    latest = {name: records[-1]["metrics"] for name, records in run.results.items()}
    cards = [
        page.card(title, *value_of(metric, latest[name][metric]))
        for name, metric, title in CARDS
        if latest.get(name, {}).get(metric) is not None
    ]
    cards = f'<div class="cards">{"".join(cards)}</div>' if cards else ""
    return (
        f'<header><div class="kicker">vimlab · run report</div><h1>{page.escape(run.name)}</h1>'
        f'<div class="facts">{"".join(facts)}</div>{cards}</header>'
    )


def alarms(run: workdir.Run) -> str:
    """What went wrong on the way: non-finite losses, collapse, unreadable data."""
    if not run.events:
        return ""
    rows = ""
    for e in run.events[-SHOWN_EVENTS:]:
        steps = f"{e['step']:,}" + (f" – {e['until']:,}" if e["until"] > e["step"] else "")
        rows += f"<tr><td>{steps}</td><td>{page.escape(e['event'])}</td><td>{page.escape(e.get('message', ''))}</td></tr>"
    older = len(run.events) - SHOWN_EVENTS
    more = (
        f'<p class="note">The newest {SHOWN_EVENTS} of {len(run.events)}; the others are in metrics.jsonl.</p>'
        if older > 0
        else ""
    )
    return (
        f'<section class="alarms"><h2>Alarms and events</h2><div class="scroll"><table>'
        "<tr><th>Step</th><th>Event</th><th>Message</th></tr>"
        f"{rows}</table></div>{more}</section>"
    )


def figures(run: workdir.Run) -> str:
    """The newest result of each evaluator, each with its protocol."""
    tables = []
    for name, records in sorted(run.results.items(), key=lambda item: _rank(EVALUATORS, item[0])):
        protocol, metrics = records[-1]["protocol"], records[-1]["metrics"]
        rows = []
        for metric, value in sorted(metrics.items(), key=lambda item: (_rank(METRICS, key_of(item[0])), item[0])):
            text, unit = value_of(metric, value)
            rows.append(f'<tr><td>{page.escape(name_of(metric))}</td><td class="num">{page.escape(f"{text} {unit}".strip())}</td></tr>')
        note = f"{protocol['count']:,} images ({_short(protocol['split'])}), step {protocol['step']:,}"
        tables.append(
            f'<figure><h3>{page.escape(protocol.get("benchmark", heading_of(name)))}</h3><p class="note">{page.escape(note)}</p>'
            f"<table>{''.join(rows)}</table>"
            f"{page.folded('Protocol: how these figures came about', page.pairs(_plain(protocol)))}</figure>"
        )
    return page.section("Final figures", f'<div class="pair">{"".join(tables)}</div>' if tables else "")


def samples(run: workdir.Run) -> str:
    """What a generator drew, and how that changes with the scale of guidance."""
    records = run.results.get("alignment")
    arrays = records[-1]["arrays"] if records else {}
    plots = charts.guidance_plots(arrays["curve"], arrays["ceiling"]) if arrays else ""
    return page.section("Samples", _pictures(run, [name for name in DRAWN if name in run.pictures]), plots)


def shown_pictures(run: workdir.Run) -> str:
    """All other pictures."""
    return page.section("Pictures", _pictures(run, [name for name in run.pictures if name not in (*DRAWN, *FAILURES)]))


def failures(run: workdir.Run) -> str:
    """What the model is worst at."""
    records, note = run.results.get("alignment"), ""
    if records and (failed := records[-1]["arrays"]["failed"]):
        missed = collections.Counter(name.split()[0] for f in failed for name in f["wrong"])
        kinds = ", ".join(f"{kind} ({count:,})" for kind, count in missed.most_common())
        note = f"<p>{len(failed):,} of {records[-1]['protocol']['count']:,} captions are not shown in full. Statements missed, by kind: {kinds}.</p>"
    return page.section("Failures", note, _pictures(run, [name for name in FAILURES if name in run.pictures], history=False))


def curves(run: workdir.Run) -> str:
    """The named plots."""
    marks = '<p class="note">Dashed red lines mark the alarms and events above.</p>' if run.events else ""
    plots = charts.named_plots(run)
    return page.section("Curves", plots and marks + plots)


def codebook(run: workdir.Run) -> str:
    """How evenly the codes are used, sorted from the busiest."""
    records = run.results.get("codebook")
    if not records or not np.any(records[-1]["arrays"]["counts"]):
        return ""
    protocol, drawings = records[-1]["protocol"], []
    for g, counts in enumerate(np.asarray(records[-1]["arrays"]["counts"])):
        title = "Uses of each code, from the busiest" + (f" (sub-code {g})" if len(records[-1]["arrays"]["counts"]) > 1 else "")
        drawings.append(page.plot(title, svg.frequencies(counts, title=title)))
    metrics = records[-1]["metrics"]
    used, busy = svg.percent(metrics["usage"]), svg.percent(metrics["top_code_share"])
    text = (
        f"The {protocol['count']:,} images ({_short(protocol['split'])}) use {used} of {protocol['codes']:,} codes; "
        f"{svg.number(metrics['dead_codes'])} are never used, and the busiest takes {busy} of all tokens. "
        f"The perplexity says that the set is as varied as {metrics['perplexity']:,.0f} codes in even use."
    )
    busiest = ", ".join(f"{k} ({count:,})" for _, k, count in records[-1]["arrays"].get("top_codes", ()))
    note = f'<p class="note">Busiest codes (uses): {busiest}</p>' if busiest else ""
    return page.section("Codebook", f'<div class="pair">{"".join(drawings)}<div><p>{page.escape(text)}</p>{note}</div></div>')


def language(run: workdir.Run) -> str:
    """The tokens as a language: how frequent, how new, how varied from place to place."""
    records = run.results.get("token_language")
    if not records:
        return ""
    fixed, metrics = np.log2(records[-1]["protocol"]["codes"]), records[-1]["metrics"]
    text = (
        f"A token takes {fixed:.2f} bits as a number, {metrics['entropy_bits']:.2f} as one of its frequency, and "
        f"{metrics['lzma_bits']:.2f} after LZMA. Straight lines are the laws of natural language: frequency falls as a power of the "
        "rank (Zipf), and new tokens appear as a power of those seen (Heaps), until a codebook has no more."
    )
    return page.section("Token language", f"<p>{page.escape(text)}</p>", charts.language_plots(records[-1]["arrays"]))


def probe(run: workdir.Run) -> str:
    """How well a linear classifier tells classes from each block of a generator."""
    records = run.results.get("probe")
    if not records or "blocks" not in records[-1]["arrays"]:
        return ""
    arrays, metrics = records[-1]["arrays"], records[-1]["metrics"]
    baselines = {name: metrics[f"{name}_accuracy"] for name in ("latents", "pixels", "chance")}
    plot = charts.probe_plot(arrays["blocks"], baselines)
    text = (
        f"Block {metrics['best_block']:.0f} of {len(arrays['blocks'])} does best on held-out training examples, and tells "
        f"{svg.percent(metrics['block_accuracy'])} of the evaluation set's pictures right."
    )
    return page.section("Linear probe", f'<div class="pair">{plot}<p>{page.escape(text)}</p></div>')


def more_curves(run: workdir.Run) -> str:
    """All metrics without a named plot."""
    return page.section("More curves", charts.more_plots(run))


def setting(run: workdir.Run) -> str:
    """What was run, and on what."""
    config = page.folded("Resolved config", page.pairs(_plain(run.config))) if run.config else ""
    return page.section("Config and environment", page.pairs(_plain(run.info)) if run.info else "", config)


def foot(run: workdir.Run) -> str:
    """Who wrote the page, and when."""
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"<footer>Written by vimlab {vimlab.__version__} on {date} from {page.escape(run.workdir)}.</footer>"


SECTIONS: Sequence[Callable[[workdir.Run], str]] = (
    head,
    alarms,
    samples,
    figures,
    shown_pictures,
    failures,
    curves,
    codebook,
    language,
    probe,
    more_curves,
    setting,
    foot,
)


def _rank(order: Mapping[str, Any], name: str) -> tuple[int, str]:
    """Known names in their order, then the others."""
    return (list(order).index(name) if name in order else len(order)), name


def _plain(tree: dict[str, Any]) -> dict[str, str]:
    """Nested JSON as dotted keys and one-line values, long ones (a thousand class names) cut short."""
    text = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in flatten(tree).items()}
    return {k: v if len(v) <= LONGEST_VALUE else f"{v[:LONGEST_VALUE]}… ({len(v):,} characters)" for k, v in text.items()}


def _pictures(run: workdir.Run, names: Sequence[str], *, history: bool = True) -> str:
    """Of each series of pictures the newest, and with `history` from the way there the first and the middle one."""
    parts = []
    for name in names:
        files = run.pictures[name]
        early = [files[i] for i in sorted({0, (len(files) - 1) // 2} - {len(files) - 1})] if history else []
        title = PICTURES.get(name, name.replace("_", " ").capitalize())
        parts.append(_picture(title, *files[-1]))
        if early:
            parts.append(f'<div class="pair">{"".join(_picture("Earlier", *f) for f in early)}</div>')
    return f'<div class="pictures">{"".join(parts)}</div>' if parts else ""


def _picture(title: str, step: int, file: paths.Path) -> str:
    return page.picture(f"Step {step:,}", title, file)


def _short(path: str) -> str:
    """A data set's name without its folders."""
    return path.rstrip("/").rsplit("/", 1)[-1]


def _duration(run: workdir.Run) -> str:
    seconds = round(run.train_seconds)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    text = f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"
    return f"{text} of training" if seconds else ""


def _speed(run: workdir.Run) -> str:
    speed = charts.speed(run)
    return f"{svg.number(float(f'{speed:.3g}'))} images/s" if speed else ""
