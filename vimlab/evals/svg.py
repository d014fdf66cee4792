"""Plots as SVG text without any library: curves, sorted frequencies, maps. Colours come from the page's style."""

import dataclasses
import html
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

POINTS = 500


@dataclasses.dataclass(frozen=True)
class Frame:
    """The room of a plot, in units of its text (11 high); `ticks` is about how many labels an axis bears."""

    width: int = 460
    height: int = 230
    ticks: int = 5
    left: int = 50
    top: int = 10

    @property
    def right(self) -> int:
        return self.width - 14

    @property
    def bottom(self) -> int:
        return self.height - 26


LARGE, SMALL = Frame(), Frame(270, 140, 3)


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve: x f64[P] ascending, y f64[P] finite; `sparse` ones are drawn with a dot at every point.

    `colour` is one of the page's six; `spread` f64[P], not negative, is drawn as a bar that reaches as far up and down; a `faint` one is drawn
    thin, and as it is.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    sparse: bool = False
    colour: int = 0
    spread: np.ndarray | None = None
    faint: bool = False


def number(value: float) -> str:
    """Four significant digits for people: 1,024 · 23.41 · 0.0031 · 2.5e-05."""
    if not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if value == int(value) and size < 1e9:
        return f"{int(value):,}"
    if size >= 1000:
        return f"{value:,.0f}" if size < 1e9 else f"{value:.3g}"
    return f"{value:.4g}" if size >= 1e-3 else f"{value:.2e}"


def percent(value: float) -> str:
    """A share as per cent."""
    if not math.isfinite(value):
        return "not finite"
    return f"{100 * value:.3g}%" if abs(value) < 0.9995 or value == 1 else f"{100 * value:.2f}%"


def compact(value: float) -> str:
    """A tick's label: 20k, 1.5M, 0.25."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.6g}{letter}"
    return f"{value:.6g}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten inside [low, high], about `count` of them."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(math.log(s / rough)))
    return [round(i * step, 12) + 0.0 for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten inside [low, high]; with 2 and 5 times them where these are few."""
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    inside = lambda factors: [
        f * 10.0**e for e in exponents for f in factors if low * (1 - 1e-9) <= f * 10.0**e <= high * (1 + 1e-9)
    ]
    decades = inside((1,))
    if len(decades) > 6:
        return decades[:: math.ceil(len(decades) / 6)]
    return decades if len(decades) > 2 else inside((1, 2, 5))


def thin(x: np.ndarray, y: np.ndarray, limit: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` points, each the mean of a run of neighbours; the first and last stay where they are."""
    if len(x) <= limit:
        return x, y
    edges = np.linspace(1, len(x) - 1, limit - 1).astype(int)
    inner = [(x[a:b].mean(), y[a:b].mean()) for a, b in itertools.pairwise(edges)]
    points = [(x[0], y[0]), *inner, (x[-1], y[-1])]
    return np.array([p[0] for p in points]), np.array([p[1] for p in points])


def smooth(y: np.ndarray, share: float = 0.015) -> np.ndarray:
    """Lines fitted locally, weighted by a Gaussian over about `share` of the curve: unlike means, right up to the ends."""
    index = np.arange(len(y), dtype=float)
    away = index - index[:, None]
    weights = np.exp(-0.5 * np.square(away / max(share * len(y), 1.0)))
    w0, w1, w2 = weights.sum(1), (weights * away).sum(1), (weights * away**2).sum(1)
    return (w2 * (weights @ y) - w1 * ((weights * away) @ y)) / (w0 * w2 - w1**2)


def curves(
    series: Sequence[Series],
    *,
    title: str,
    last_step: float,
    log: bool = False,
    smoothed: bool = True,
    from_zero: bool = False,
    form: Callable[[float], str] = compact,
    marks: Sequence[float] = (),
    frame: Frame = LARGE,
    log_x: bool = False,
    labels_x: Sequence[tuple[float, str]] | None = None,
) -> str:
    """Curves over training steps, or over whatever else begins at 0, or on a logarithmic axis at 1.

    Args:
      title: for those who hear the page.
      last_step: right end of the x axis, the same in all plots of training.
      log: logarithmic y; falls back to linear where a value is not positive or the range is under a factor of 5.
      smoothed: draws long curves faintly under their smoothed form.
      from_zero: the y axis reaches down to zero at least.
      form: formats the labels of the y axis.
      marks: steps to mark with a vertical line.
      log_x: logarithmic x, from 1.
      labels_x: places on the x axis and what stands there, instead of numbers.
    """
    drawn = [(s, *thin(s.x, s.y)) for s in series]
    bars = [s for s in series if s.spread is not None]
    values = np.concatenate([y for _, _, y in drawn] + [s.y + sign * s.spread for s in bars for sign in (-1, 1)])
    low, high = float(values.min()), float(values.max())
    log = log and low > 0 and high / low >= 5
    if log:
        low, high = low / 1.15, high * 1.15
        labels, place = log_ticks(low, high), np.log
    else:
        low = min(low, 0) if from_zero else low
        room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        low, high = low if from_zero and low == 0 else low - room, high + room
        labels, place = ticks(low, high, frame.ticks), np.asarray
    along = (lambda v: np.log(v) / np.log(max(last_step, 2))) if log_x else (lambda v: np.asarray(v, float) / max(last_step, 1))
    at_x = lambda v: frame.left + along(v) * (frame.right - frame.left)
    at_y = lambda v: frame.bottom - (place(v) - place(low)) / (place(high) - place(low)) * (frame.bottom - frame.top)
    parts = _axes(
        frame,
        [(float(at_y(v)), form(v)) for v in labels],
        [(float(at_x(v)), label) for v, label in labels_x]
        if labels_x is not None
        else [(float(at_x(v)), compact(v)) for v in (log_ticks(1, last_step) if log_x else ticks(0, last_step, frame.ticks))],
    )
    parts += [
        f'<line class="mark" x1="{at_x(m):.1f}" x2="{at_x(m):.1f}" y1="{frame.top}" y2="{frame.bottom}"/>'
        for m in marks
        if m <= last_step
    ]
    for s in bars:
        tops, feet = at_y(s.y + s.spread), at_y(s.y - s.spread)
        parts += [_path(np.array([x, x]), np.array(ends), f"raw c{s.colour}") for x, *ends in zip(at_x(s.x), tops, feet, strict=True)]
    for s, x, y in drawn:
        soft = smoothed and not s.sparse and not s.faint and len(x) >= 40
        parts += [_path(at_x(x), at_y(y), f"raw c{s.colour}")] * soft
        # A smoothed line stays within what was measured, so that it is positive where the axis is logarithmic.
        parts.append(_path(at_x(x), at_y(np.clip(smooth(y), y.min(), y.max()) if soft else y), f"{'raw' if s.faint else 'line'} c{s.colour}"))
        if (s.sparse or len(x) == 1) and not s.faint and len(x) <= 60:
            parts += [
                f'<circle class="dot c{s.colour}" cx="{a:.1f}" cy="{b:.1f}" r="2.4"/>'
                for a, b in zip(at_x(x), at_y(y), strict=True)
            ]
    return _svg(frame, title, parts)


def frequencies(counts: np.ndarray, *, title: str, frame: Frame = LARGE) -> str:
    """Uses of the codes, i64[K], sorted from the busiest, on a logarithmic axis; a dashed line where all would be equal."""
    ordered = -np.sort(-counts.astype(float))
    groups = np.array_split(ordered, min(len(ordered), POINTS))
    mean, used = ordered.mean(), ordered[ordered > 0]
    low, high = min(used.min(), mean) / 1.5, used.max() * 1.3
    at_x = lambda rank: frame.left + rank / len(ordered) * (frame.right - frame.left)
    at_y = lambda v: frame.bottom - math.log(max(v, low) / low) / math.log(high / low) * (frame.bottom - frame.top)
    parts = _axes(
        frame, [(at_y(v), compact(v)) for v in log_ticks(low, high)], [(at_x(v), compact(v)) for v in ticks(0, len(ordered))]
    )
    edges = np.cumsum([0] + [len(g) for g in groups])
    outline = [
        f"{at_x(a):.1f},{y:.1f} {at_x(b):.1f},{y:.1f}"
        for a, b, y in zip(edges[:-1], edges[1:], [at_y(g.mean()) for g in groups], strict=True)
    ]
    parts.append(
        f'<polygon class="area c0" points="{frame.left},{frame.bottom} {" ".join(outline)} {frame.right},{frame.bottom}"/>'
    )
    parts.append(f'<line class="even" x1="{frame.left}" x2="{frame.right}" y1="{at_y(mean):.1f}" y2="{at_y(mean):.1f}"/>')
    parts.append(f'<text class="tick" x="{frame.right - 2}" y="{at_y(mean) - 5:.1f}" text-anchor="end">even use</text>')
    return _svg(frame, title, parts)


def heat_map(values: np.ndarray, *, title: str, form: Callable[[float], str] = number, frame: Frame = LARGE) -> str:
    """A map of f64[rows, columns], the fuller the colour the higher, with a scale from the lowest value to the highest."""
    low, high = float(values.min()), float(values.max())
    full = lambda v: 0.06 + 0.94 * ((v - low) / (high - low) if high > low else 0.5)
    side = (frame.bottom - frame.top) / max(values.shape)
    parts = [
        f'<rect class="area c0" style="opacity:{full(v):.3f}" x="{frame.left + j * side:.2f}" y="{frame.top + i * side:.2f}" '
        f'width="{side:.2f}" height="{side:.2f}"><title>{form(v)}</title></rect>'
        for i, row in enumerate(values)
        for j, v in enumerate(row)
    ]
    x, step = frame.left + side * values.shape[1] + 24, (frame.bottom - frame.top) / 20
    for n, v in enumerate(np.linspace(high, low, 20)):
        parts.append(
            f'<rect class="area c0" style="opacity:{full(v):.3f}" x="{x:.1f}" y="{frame.top + n * step:.2f}" width="12" height="{step:.2f}"/>'
        )
    parts += [f'<text class="tick" x="{x + 18:.1f}" y="{y:.1f}">{form(v)}</text>' for y, v in ((frame.top + 8, high), (frame.bottom, low))]
    return _svg(frame, title, parts)


def _svg(frame: Frame, title: str, parts: Sequence[str]) -> str:
    name = html.escape(title, quote=True)
    return (
        f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{name}"><title>{name}</title>'
        f"{''.join(parts)}</svg>"
    )


def _axes(frame: Frame, labels_y: Sequence[tuple[float, str]], labels_x: Sequence[tuple[float, str]]) -> list[str]:
    parts = []
    for y, label in labels_y:
        parts.append(f'<line class="rule" x1="{frame.left}" x2="{frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{frame.left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>')
    parts.append(f'<line class="axis" x1="{frame.left}" x2="{frame.right}" y1="{frame.bottom}" y2="{frame.bottom}"/>')
    for x, label in labels_x:
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.bottom}" y2="{frame.bottom + 4}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{frame.bottom + 17}" text-anchor="middle">{label}</text>')
    return parts


def _path(x: np.ndarray, y: np.ndarray, style: str) -> str:
    return f'<polyline class="{style}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))}"/>'
