"""A plan as a text that is read from top to bottom, and the table of a search."""

from collections.abc import Iterator, Sequence
from typing import Any

from vimlab.parallel.rules import show


def text(plan: dict[str, Any], config: str) -> str:
    """The plan of the config that was given as `config`."""
    where = plan["topology"]
    head = f"{plan['what']} of {config} on {where['name']}: {where['chips']} x {where['chip']}, {where['hosts']} hosts, mesh {show(plan['mesh'])}"
    sections = [("assumed", plan["assumed"]), ("notes", plan["notes"])]
    lines = [head, *_bullets(sections), "", *_memory(plan["memory"]), "", *_step(plan), *_pipeline(plan["pipeline"]), *_run(plan)]
    if "compile" in plan:
        lines += ["", f"compiled in {plan['compile']['seconds']:.0f} s{'' if plan['compile']['full'] else ', up to the assignment of buffers'}"]
    return "\n".join([*lines, *_bullets([("warnings", plan["warnings"]), ("next", plan.get("advice", []))])])


def _bullets(sections: Sequence[tuple[str, Sequence[str]]]) -> Iterator[str]:
    for title, items in sections:
        if items:
            yield from ["", title, *(f"  {item}" for item in items)]


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= 0.1 * scale or unit == "KiB":
            return f"{count / scale:.2f} {unit}"
    raise AssertionError


def _memory(memory: dict[str, Any]) -> Iterator[str]:
    yield "memory of a chip"
    for kind, count in memory["given"].items():
        if count >= 1 << 10:
            yield f"  {kind:22}{size(count):>12}"
    yield f"  {'activations, estimate':22}{size(memory['activations']):>12}"
    verdict, budget = "fits" if memory["fits"] else "does not fit", size(memory["budget"])
    if compiled := memory.get("compiled"):
        kinds = ("arguments", "outputs", "temporaries", "program")
        yield "  of the compiler: " + ", ".join(f"{kind} {size(compiled[kind])}" for kind in kinds if compiled.get(kind, 0) >= 1 << 10)
        if memory["idle"] >= 1 << 10:
            yield f"  {'held, but not read':22}{size(memory['idle']):>12}"
        code = "" if "program" in compiled else " (the program's code, up to some 0.3 GiB, comes on top; --full tells its size)"
        yield f"  {'all':22}{size(compiled['total'] + memory['idle']):>12} of {budget}: {verdict}{code}"
    elif "refusal" in memory:
        yield f"  does not fit: {memory['refusal']}"
    else:
        yield f"  {'all, estimate':22}{size(memory['estimate']):>12} of {budget}: {verdict} by the estimate"
    yield "  largest before the step:"
    for a in memory["largest_given"]:
        yield f"  {size(a['bytes']):>12}  {a['dtype']}{a['shape']} in {a['parts']} parts  {a['name']}"
    if memory.get("largest_compiled"):
        yield "  largest at its worst moment, padded to the chip's tiles (compiler):"
    for line in memory.get("largest_compiled", [])[:5]:
        number, unit, shapes = line.split(" ", 2)
        yield f"  {number:>8} {unit}  {shapes}"
    yield "  largest at its worst moment, with what makes them (estimate):"
    for a in memory["largest_activations"]:
        yield f"  {size(a['bytes']):>12}  {a['dtype']}{list(a['shape'])}  {a['name']}"


def _step(plan: dict[str, Any]) -> Iterator[str]:
    step = plan["step"]
    roof, by = step["roofline"], step["by"]
    yield "a step"
    yield f"  FLOPs of the model    {step['model_flops']:.3e}"
    yield f"  FLOPs executed        {step['executed_flops']:.3e}, with recomputation{' and what idle stages compute' if plan['pipeline'] else ''}"
    yield f"  memory traffic        {size(step['bytes'])} a chip ({by})"
    yield f"  collectives ({by}): runs, size on a chip, what a chip sends" if step["collectives"] else "  collectives           none"
    for c in step["collectives"][:8]:
        yield f"    {c['kind']:18} of {c['group']:<5} {c['count']:>8g} x {size(c['bytes']):>12} {size(c['wire']):>12}"
    times = ", ".join(f"{name} {roof[name]:.3g} s" for name in ("compute", "memory", "interconnect"))
    yield f"  roofline              {roof['seconds']:.3g} s, bound by {roof['bound']} ({times}); MFU at most {step['roofline_mfu']:.0%}"


def _pipeline(pipelines: dict[str, Any]) -> Iterator[str]:
    for name, p in pipelines.items():
        yield f"  pipeline of the {name}: {p['stages']} stages, {p['microbatches']} microbatches, {p['rounds']} rounds; a stage waits {p['bubble']:.1%} of the time"
        yield "    layers of the stages: " + "; ".join(_ranges(layers) for layers in p["layers"])


def _ranges(numbers: Sequence[int]) -> str:
    """`0-3, 16-19` of ascending numbers."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and runs[-1][-1] == n - 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)


def _run(plan: dict[str, Any]) -> Iterator[str]:
    if "run" not in plan:
        return
    run = plan["run"]
    yield from ["", f"the run: {run['steps']:,} steps, {run['examples']:.3e} examples"]
    for row in run["at"]:
        beyond = "" if row["within_roofline"] else "  (beyond the roofline)"
        yield f"  at {row['mfu']:.0%} MFU  {row['step_seconds']:8.3g} s a step  {_count(row['hours']):>8} hours  {_count(row['chip_hours']):>10} chip-hours{beyond}"


def _count(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (header, *rows))
