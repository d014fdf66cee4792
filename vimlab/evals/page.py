"""The look of a report: one style for screen (light and dark), telephone and paper, and the few HTML pieces it is made of."""

import base64
import hashlib
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vimlab.paths import Path

PICTURE_WIDTH, PICTURE_BYTES = 1600, 400_000  # Beyond these a picture is reduced.
STYLE = """
:root { color-scheme: light dark;
  --paper: #fff; --card: #fff; --ink: #1c2430; --soft: #5d6878; --line: #e2e6ec; --rule: #edf0f4; --wash: #f6f8fa; --bad:
  #b3261e;
  --badwash: #fdf1f0; --good: #1a7f4b; --c0: #2f6fd0; --c1: #d9730d; --c2: #15906a; --c3: #a33fb0; --c4: #c43a4b; --c5:
  #7a6a10; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #12161c; --card: #181d25; --ink: #e4e8ee; --soft: #98a3b3; --line: #2b323d; --rule: #242b35; --wash: #1c222b;
  --bad: #ff8a80;
  --badwash: #2c1a1c; --good: #5fd39a; --c0: #6ea8ff; --c1: #ffa657; --c2: #4fd1a5; --c3: #d993e6; --c4: #ff8591; --c5:
  #d6c455; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue",
  "Liberation Sans", Arial, sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 28px 56px; }
h1 { font-size: 30px; line-height: 1.2; margin: 2px 0 6px; letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 44px 0 14px; letter-spacing: -.01em; }
h3 { font-size: 14px; font-weight: 600; margin: 0 0 6px; }
p { margin: 0 0 12px; max-width: 75ch; }
.kicker, .note { color: var(--soft); } .kicker { font-size: 13px; letter-spacing: .04em; } .note { font-size: 13.5px; } .after { margin-top: 14px; }
.facts { color: var(--soft); display: flex; flex-wrap: wrap; gap: 2px 18px; }
.status { font-weight: 600; color: var(--ink); } .status.good { color: var(--good); } .status.bad { color: var(--bad); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 26px 0 0; }
.card { border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px 13px; background: var(--card); }
.card .name { color: var(--soft); font-size: 13px; } .card .value { font-size: 25px; font-weight: 650; letter-spacing:
  -.02em; line-height: 1.25;
  font-variant-numeric: tabular-nums; } .card .unit { font-size: 15px; font-weight: 500; color: var(--soft); margin-left:
  3px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 16px; align-items:
  start; }
.small { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 240px), 1fr)); gap: 12px; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 10px; padding: 13px 14px 8px; background: var(--card);
  break-inside: avoid; min-width: 0; }
.small figure { padding: 10px 10px 4px; } .small h3 { font-size: 13px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
.legend { display: flex; flex-wrap: wrap; gap: 0 16px; font-size: 13px; color: var(--soft); margin: 0 0 6px;
  font-variant-numeric: tabular-nums; }
.legend b { font-weight: 600; color: var(--ink); margin-left: 5px; }
.key { display: inline-block; width: 14px; height: 3px; border-radius: 2px; vertical-align: middle; margin-right: 6px;
  background: currentColor;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); } .c4 { --c: var(--c4); } .c5
  { --c: var(--c5); }
.key { color: var(--c); }
.line, .raw { fill: none; stroke: var(--c); stroke-width: 1.7; stroke-linejoin: round; stroke-linecap: round; }
.raw { stroke-width: 1; opacity: .28; } .dot { fill: var(--c); stroke: var(--card); stroke-width: 1; } .area { fill:
  var(--c); opacity: .75; }
.rule { stroke: var(--rule); } .axis { stroke: var(--soft); stroke-width: .8; } .mark { stroke: var(--bad);
  stroke-dasharray: 3 3; opacity: .7; }
.even { stroke: var(--ink); stroke-dasharray: 5 4; stroke-width: 1; } .tick { fill: var(--soft); font-size: 11px;
  font-variant-numeric: tabular-nums; }
.pictures { display: grid; gap: 16px; } .pictures img { display: block; max-width: 100%; height: auto; border-radius: 4px;
  background: #fff; }
.pictures figcaption { font-size: 13.5px; color: var(--soft); margin: 0 0 8px; } .pictures figcaption b { color: var(--ink);
  font-weight: 600; }
.pictures figure { padding-bottom: 14px; } .pictures + .pair { margin-top: 16px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 14px 6px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
td { overflow-wrap: anywhere; } td:first-child { min-width: 13em; } th { font-weight: 500; color: var(--soft); font-size: 13px; } td.num { text-align: right; padding-right: 0; font-weight:
  600; white-space: nowrap; }
td.code { font: 12.5px/1.6 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; overflow-wrap: anywhere;
  }
td.code:first-child { color: var(--soft); width: 34%; }
details { border: 1px solid var(--line); border-radius: 10px; padding: 0 16px; margin: 12px 0; background: var(--card); }
summary { cursor: pointer; padding: 9px 0; font-size: 13.5px; color: var(--soft); } details[open] { padding-bottom: 12px; }
.alarms { border: 1px solid var(--bad); border-radius: 10px; background: var(--badwash); padding: 4px 18px 8px; margin-top:
  26px; break-inside: avoid; }
.alarms h2 { margin: 10px 0 4px; font-size: 16px; color: var(--bad); } .alarms td, .alarms th { border: 0; padding-bottom:
  2px; }
footer { margin-top: 48px; padding-top: 14px; border-top: 1px solid var(--line); color: var(--soft); font-size: 13px; }
@media (max-width: 560px) { main { padding: 24px 16px 40px; } h1 { font-size: 24px; } .tick { font-size: 13px; } }
@media print { :root { color-scheme: light; --paper: #fff; --card: #fff; --ink: #111; --soft: #555; --line: #ccc; --rule:
  #e6e6e6; --c0: #2f6fd0;
  --c1: #d9730d; --c2: #15906a; --c3: #a33fb0; --c4: #c43a4b; --c5: #7a6a10; --bad: #b3261e; --badwash: #fff; }
  main { max-width: none; padding: 0; } body { font-size: 11pt; } h2 { break-after: avoid; } details:not([open]) { display:
  none; }
  .pair { grid-template-columns: 1fr 1fr; } .small { grid-template-columns: 1fr 1fr 1fr; } h2 + .note { break-after: avoid; } }
@page { margin: 16mm; }
"""


def escape(value: Any) -> str:
    """Text that HTML shows as it is."""
    return html.escape(str(value), quote=True)


def page(title: str, body: str, *, style: str = "", script: str = "", images: str = "data:") -> str:
    """A whole document that loads nothing from anywhere, unless `images`, a source list of a content security policy, says so.

    Args:
      title, body: text, and HTML.
      style: CSS after the common one.
      script: JavaScript, the only one that the page may run.
      images: where pictures may come from.
    """
    allowed = f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" if script else ""
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src {images}{allowed}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{STYLE}{style}</style></head>\n<body><main>\n{body}\n</main>{f'<script>{script}</script>' if script else ''}</body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading with what belongs under it; nothing where nothing does."""
    inner = "\n".join(filter(None, parts))
    return f"<section><h2>{escape(title)}</h2>\n{inner}\n</section>" if inner else ""


def folded(summary: str, inner: str) -> str:
    """Something to open."""
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>"


def pairs(values: Mapping[str, Any]) -> str:
    """A table of names and values as a machine writes them."""
    rows = "".join(f'<tr><td class="code">{escape(k)}</td><td class="code">{escape(v)}</td></tr>' for k, v in values.items())
    return f'<div class="scroll"><table>{rows}</table></div>'


def table(heads: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Rows of a name and cells under headings, of which the first is of the names."""
    top = "".join(f"<th>{escape(h)}</th>" for h in heads)
    body = "".join(f"<tr><td>{escape(name)}</td>{''.join(f'<td>{escape(c)}</td>' for c in cells)}</tr>" for name, cells in rows)
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'


def picture(lead: str, title: str, file: Path) -> str:
    """A picture file within the page under a caption; one that is large is reduced, and says so."""
    from PIL import Image

    data, kind = file.read_bytes(), "png"
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    if len(data) > PICTURE_BYTES or width > PICTURE_WIDTH:
        # The page is to be mailed about; the file beside it keeps every bit.
        buffer, kind = io.BytesIO(), "jpeg"
        image = image.convert("RGB")
        image.thumbnail((PICTURE_WIDTH, 2 * PICTURE_WIDTH))
        image.save(buffer, "JPEG", quality=90)
        data = buffer.getvalue()
        title += f" (reduced; {file.parent.name}/{file.name} is the original)"
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return (
        f"<figure><figcaption><b>{escape(lead)}</b> · {escape(title)}</figcaption>"
        f'<img src="{source}" width="{width}" height="{height}" alt="{escape(f"{title}, {lead.lower()}")}"></figure>'
    )


def card(name: str, value: str, unit: str = "") -> str:
    """One figure, large."""
    unit = f'<span class="unit">{escape(unit)}</span>' if unit else ""
    return f'<div class="card"><div class="name">{escape(name)}</div><div class="value">{escape(value)}{unit}</div></div>'


def plot(title: str, svg: str, legend: Iterable[tuple[int, str, str]] = ()) -> str:
    """A drawing under its title and a legend of (colour, label, last value)."""
    keys = "".join(f'<span><i class="key c{i}"></i>{escape(k)}<b>{escape(v)}</b></span>' for i, k, v in legend)
    return f'<figure><h3>{escape(title)}</h3>{f"""<div class="legend">{keys}</div>""" if keys else ""}{svg}</figure>'
