"""A gallery of prompts: one self-contained page by category and by challenge, and a picture for each category."""

import base64
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vimlab import pictures
from vimlab.evals import page
from vimlab.evals.prompt_folders import Entry, square
from vimlab.paths import Path

PAGE, GRIDS = "gallery.html", "grids"
PAGE_BYTES = 20_000_000  # What still goes by mail, or opens at once; a larger page links to the files instead.
AS_IT_IS = 16_000  # Bytes of a PNG that is not made smaller, unless it is wide.
WIDTH = 256  # Of a picture in the page or in a grid, at most; the files keep every pixel.
SHARP = 128  # Narrower pictures are enlarged with their pixels visible, not blurred.
COLUMNS = 8
OTHER = "Other"  # What has no category, or no challenge, in a list where others have one.


@dataclasses.dataclass(frozen=True)
class Gallery:
    """What a page shows.

    Attributes:
      folder: of the pictures; the page and the grids go there.
      title: of the page.
      facts: a few words each, under the title.
      entries: the prompts, with a file for each picture.
      protocol: how the pictures came about.
    """

    folder: Path
    title: str
    facts: Sequence[str]
    entries: Sequence[Entry]
    protocol: Mapping[str, Any]

    def write(self) -> list[Path]:
        """Writes the page and the grids, in this order."""
        kinds = {"Category": self._groups("category"), "Challenge": self._groups("challenge")}
        kinds = {kind: groups for kind, groups in kinds.items() if groups}
        sources, where = self._sources()
        sections = "".join(self._section(name, group, sources) for name, group in (kinds.get("Category") or {"": self.entries}).items())
        tabs = "".join(f'<button data-by="{kind.lower()}" aria-pressed="false">By {kind.lower()}</button>' for kind in kinds)
        bar = (
            f'<nav class="bar" hidden><span class="tabs">{tabs}</span><input type="search" placeholder="Find in the prompts" '
            f'aria-label="Find in the prompts"><output></output><div class="chips"></div></nav>'
        )
        cards = [("Prompts", len(self.entries)), ("Pictures", sum(len(e.seeds) for e in self.entries))]
        cards += [({"Category": "Categories", "Challenge": "Challenges"}[kind], len(groups)) for kind, groups in kinds.items()]
        head = (
            f'<header><div class="kicker">vimlab · prompt gallery</div><h1>{page.escape(self.title)}</h1><div class="facts">'
            + "".join(f"<span>{page.escape(fact)}</span>" for fact in self.facts)
            + f'</div><div class="cards">{"".join(page.card(name, f"{count:,}") for name, count in cards)}</div></header>'
        )
        protocol = page.section("How these pictures came about", page.pairs(self.protocol))
        body = f'{head}\n{bar}\n<div id="prompts">{sections}</div>\n{protocol}'
        html = page.page(f"{self.title} · vimlab", body, style=STYLE, script=SCRIPT, images=where)
        pictures.write_whole(self.folder / PAGE, html.encode())
        return [self.folder / PAGE, *self._write_grids(kinds.get("Category") or {"all": self.entries})]

    def _groups(self, key: str) -> dict[str, list[Entry]]:
        """The entries by category or challenge, in the list's order, what has none last; nothing where all have none."""
        groups: dict[str, list[Entry]] = {}
        for entry in self.entries:
            groups.setdefault(getattr(entry.prompt, key) or OTHER, []).append(entry)
        last = {OTHER: groups.pop(OTHER)} if OTHER in groups else {}
        return groups | last if groups else {}

    def _sources(self) -> tuple[dict[str, str], str]:
        """Each file as the page names it, and the policy's word for that: inside the page, or beside it where they are too much."""
        files, sources, total = [file for entry in self.entries for file in entry.files], {}, 0
        for file in files:
            sources[file] = _data(self.folder / file)
            total += len(sources[file])
            if total > PAGE_BYTES:
                return {file: file for file in files}, "'self' file:"
        return sources, "data:"

    def _section(self, name: str, entries: Sequence[Entry], sources: Mapping[str, str]) -> str:
        figures = "".join(_figure(entry, sources, self.folder) for entry in entries)
        head = f'<h2>{page.escape(name)} <span class="count">{len(entries):,}</span></h2>' if name else ""
        return f'<section>{head}<div class="wall">{figures}</div></section>\n'

    def _write_grids(self, groups: Mapping[str, Sequence[Entry]]) -> list[Path]:
        written = []
        for name, entries in groups.items():
            tiles = np.stack([square(np.stack([_small(self.folder / file, WIDTH) for file in e.files])) for e in entries])
            columns = -(-len(entries) // -(-len(entries) // COLUMNS))  # Rows of one length, nearly.
            stem = re.sub(r"\W+", "_", name.lower()).strip("_") or OTHER
            written.append(self.folder / GRIDS / f"{stem}.png")
            pictures.save_png(written[-1], pictures.captioned(tiles, [e.prompt.text for e in entries], columns=columns, pad=4))
        return written


def _figure(entry: Entry, sources: Mapping[str, str], folder: Path) -> str:
    """One prompt with its pictures."""
    prompt, shots = entry.prompt, ""
    for file, seed in zip(entry.files, entry.seeds, strict=True):
        size = _size(folder / file)
        sharp = ' class="sharp"' if size[0] < SHARP else ""
        name = page.escape(f"{prompt.text}, seed {seed}")
        shots += f'<img{sharp} src="{sources[file]}" width="{size[0]}" height="{size[1]}" alt="{name}" title="{name}" loading="lazy">'
    seeds = f"seed {entry.seeds[0]}" if len(entry.seeds) == 1 else f"seeds {entry.seeds[0]}–{entry.seeds[-1]}"
    tags = "".join(f'<span class="tag {key}">{page.escape(value)}</span>' for key in ("category", "challenge") if (value := getattr(prompt, key)))
    notes = f'<p class="note">{page.escape(prompt.note)}</p>' if prompt.note else ""
    notes += f'<p class="note cut">The model reads only: {page.escape(entry.read)}</p>' if entry.read else ""
    return (
        f'<figure class="prompt" data-category="{page.escape(prompt.category)}" data-challenge="{page.escape(prompt.challenge)}">'
        f'<div class="shots{" many" * (len(entry.files) > 1)}">{shots}</div><figcaption><b>{page.escape(prompt.text)}</b>{notes}'
        f'<div class="tags">{tags}<span class="seed" title="row {entry.row} of the file">{seeds}</span></div></figcaption></figure>\n'
    )


def _size(file: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(io.BytesIO(file.read_bytes())) as image:
        return image.size


def _small(file: Path, width: int) -> np.ndarray:
    """uint8[h,w,3] of a file, at most `width` wide and high."""
    from PIL import Image

    with Image.open(io.BytesIO(file.read_bytes())) as image:
        image = image.convert("RGB")
        image.thumbnail((width, width), Image.Resampling.LANCZOS)
        return np.asarray(image)


def _data(file: Path) -> str:
    """A file as a URI that holds it: as it is where it is small, else as a JPEG of WIDTH pixels."""
    from PIL import Image

    data, kind = file.read_bytes(), "png"
    if len(data) > AS_IT_IS or _size(file)[0] > WIDTH:
        buffer, kind = io.BytesIO(), "jpeg"
        Image.fromarray(_small(file, WIDTH)).save(buffer, "JPEG", quality=90)
        data = buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


STYLE = """
main { max-width: 1320px; } .bar { position: sticky; top: 0; z-index: 1; background: var(--paper); margin: 30px 0 -14px;
  padding: 12px 0 12px; border-bottom: 1px solid var(--line); display: flex; flex-wrap: wrap; gap: 10px 14px; align-items: center; }
.bar[hidden], figure[hidden], .tabs:empty, .chips:empty { display: none; }
.bar button { font: inherit; font-size: 13.5px; color: var(--soft); background: none; border: 1px solid var(--line); padding: 4px 12px;
  border-radius: 99px; cursor: pointer; } .bar button:hover { color: var(--ink); border-color: var(--soft); }
.bar button[aria-pressed=true] { color: var(--card); background: var(--ink); border-color: var(--ink); }
.bar button i { font-style: normal; opacity: .65; margin-left: 6px; font-variant-numeric: tabular-nums; }
.tabs { display: flex; } .tabs button { border-radius: 0; } .tabs button:first-child { border-radius: 8px 0 0 8px; }
.tabs button:last-child { border-radius: 0 8px 8px 0; } .tabs button:only-child { border-radius: 8px; } .tabs button + button { border-left: 0; }
.bar input { font: inherit; font-size: 13.5px; color: var(--ink); background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 4px 12px; width: 220px; } .bar output { color: var(--soft); font-size: 13.5px; margin-left: auto; font-variant-numeric: tabular-nums; }
.chips { display: flex; flex-wrap: wrap; gap: 6px; flex-basis: 100%; }
.count { color: var(--soft); font-weight: 500; font-size: 14px; margin-left: 4px; font-variant-numeric: tabular-nums; }
.wall { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 230px), 1fr)); gap: 16px; }
.wall figure { padding: 10px 10px 12px; display: flex; flex-direction: column; } .wall figcaption { padding: 10px 4px 0; font-size: 14px;
  display: flex; flex-direction: column; flex: 1; } .wall figcaption b { font-weight: 600; overflow-wrap: anywhere; line-height: 1.4; }
.wall .note { margin: 3px 0 0; font-size: 12.5px; line-height: 1.45; } .wall .cut { color: var(--bad); }
.shots { display: grid; gap: 4px; border-radius: 6px; overflow: hidden; } .shots.many { grid-template-columns: 1fr 1fr; }
.shots img { display: block; width: 100%; height: auto; background: #fff; } .sharp { image-rendering: pixelated; }
.tags { display: flex; flex-wrap: wrap; gap: 4px 6px; margin-top: auto; padding-top: 9px; font-size: 12px; color: var(--soft); align-items: center; }
.tag { background: var(--wash); border: 1px solid var(--line); border-radius: 99px; padding: 0 8px; }
.seed { margin-left: auto; font-variant-numeric: tabular-nums; } #prompts.category .tag.category, #prompts.challenge .tag.challenge { display: none; }
@media (max-width: 700px) { .bar { position: static; } .bar input { width: 100%; } }
@media print { .bar { display: none; } .wall { grid-template-columns: repeat(4, 1fr); gap: 10px; } .shots img { print-color-adjust: exact; } }
"""
# Without scripts the page is whole, by category; with them it can be regrouped and searched.
SCRIPT = f"""
const box = document.getElementById("prompts"), bar = document.querySelector(".bar"), chips = bar.querySelector(".chips");
const figures = [...box.querySelectorAll(".prompt")], tabs = [...bar.querySelectorAll(".tabs button")], search = bar.querySelector("input");
let by = tabs.length ? tabs[0].dataset.by : "", chosen = null;
const groupOf = f => by ? f.dataset[by] || "{OTHER}" : "";
function make(tag, text, parent) {{ const e = document.createElement(tag); e.textContent = text; parent.append(e); return e; }}
function regroup() {{
  const groups = new Map();
  for (const f of figures) groups.set(groupOf(f), [...(groups.get(groupOf(f)) || []), f]);
  if (groups.has("{OTHER}")) {{ const rest = groups.get("{OTHER}"); groups.delete("{OTHER}"); groups.set("{OTHER}", rest); }}
  box.replaceChildren(); chips.replaceChildren(); box.className = by; chosen = null;
  for (const t of tabs) t.setAttribute("aria-pressed", t.dataset.by === by);
  if (by) chip(null, "All", figures.length);
  for (const [name, list] of groups) {{
    const section = make("section", "", box), wall = document.createElement("div");
    section.dataset.group = name;
    if (by) {{ make("span", "", make("h2", name + " ", section)).className = "count"; chip(name, name, list.length); }}
    wall.className = "wall"; wall.append(...list); section.append(wall);
  }}
  filter();
}}
function chip(group, text, count) {{
  const b = make("button", text, chips); make("i", count, b); b.dataset.group = group ?? "";
  b.onclick = () => {{ chosen = chosen === group ? null : group; filter(); }};
}}
function filter() {{
  const words = search.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let shown = 0;
  for (const section of box.children) {{
    const mine = [...section.querySelectorAll(".prompt")];
    for (const f of mine) {{
      const text = f.querySelector("figcaption").textContent.toLowerCase();
      f.hidden = (chosen !== null && section.dataset.group !== chosen) || !words.every(w => text.includes(w));
    }}
    const count = mine.filter(f => !f.hidden).length;
    section.hidden = !count; shown += count;
    if (by) section.querySelector(".count").textContent = count === mine.length ? count : count + " of " + mine.length;
  }}
  for (const b of chips.children) b.setAttribute("aria-pressed", b.dataset.group === (chosen ?? ""));
  bar.querySelector("output").textContent = shown + " of " + figures.length + " prompts";
}}
for (const t of tabs) t.onclick = () => {{ by = t.dataset.by; regroup(); }};
search.oninput = filter; bar.hidden = false; regroup();
"""
