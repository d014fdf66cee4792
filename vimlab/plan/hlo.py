"""Reads a compiled program's text (HLO): its collectives, and what it moves to and from memory, loops counted as often as they run."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

BITS = {"pred": 8, "token": 0, "opaque": 0}  # Others carry theirs in their name: bf16, s32, f8e4m3.
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute", "collective-broadcast")
# Names of other arrays, or what costs no memory traffic of its own.
FREE = {
    "parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional", "call", "async-update", "async-done", "after-all",
    "partition-id", "replica-id", "opt-barrier", "copy-done", "iota",
}  # fmt: skip
SLICES = {"dynamic-slice", "slice", "gather"}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line. shape: as it is written; operands: names; rest: what follows them."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str

    def called(self, *keys: str) -> list[str]:
        """Names of the computations that it names under some keys."""
        found = re.findall(rf"\b(?:{'|'.join(keys)})=(\{{[^}}]*\}}|%[\w.\-]+)", self.rest)
        return [name for text in found for name in re.findall(r"%([\w.\-]+)", text)]


@dataclasses.dataclass(frozen=True)
class Module:
    """computations: {name: {instruction name: Instruction}}; entry: name of the first to run; devices: that it is compiled for."""

    computations: dict[str, dict[str, Instruction]]
    entry: str
    devices: int


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind over groups of one size.

    Attributes:
      kind: one of KINDS.
      group: devices that take part together.
      count: how often such run in a step.
      bytes: of the whole array on each device, gathered or not yet scattered, all runs together.
    """

    kind: str
    group: int
    count: int
    bytes: float

    @property
    def wire(self) -> float:
        """Bytes that each device sends, in a ring."""
        if self.kind in ("collective-permute", "collective-broadcast"):
            return self.bytes
        return (2 if self.kind == "all-reduce" else 1) * self.bytes * (self.group - 1) / self.group


def parse(text: str) -> Module:
    """The module of `jax.stages.Compiled.as_text()`."""
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        if line[:1] in ("%", "E") and line.endswith("{"):
            name = re.match(r"(?:ENTRY )?%?([\w.\-]+)", line)[1]
            current = computations.setdefault(name, {})
            entry = name if line.startswith("ENTRY") else entry
        elif line.startswith("  ") and " = " in line and (instruction := _instruction(line)):
            current[instruction.name] = instruction
    devices = re.search(r"num_partitions=(\d+)", text[:100_000])
    return Module(computations, entry, int(devices[1]) if devices else 1)


def _instruction(line: str) -> Instruction | None:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end].rstrip(), rest[end:].lstrip()
    start = rest.find("(")
    if start < 1:
        return None
    end = _closing(rest, start)
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[start:end])) if rest[:start] != "constant" else ()
    # A constant's value and a parameter's number stand where operands do.
    rest_of = rest[start + 1 : end - 1] if rest[:start] in ("constant", "parameter") else rest[end:]
    return Instruction(name.removeprefix("%"), shape, rest[:start], operands, rest_of)


def _closing(text: str, start: int) -> int:
    """The place after the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return start + match.end()
    return len(text)


def arrays(shape: str) -> list[tuple[float, bool]]:
    """The arrays of a written shape: bytes, without padding, and whether they are in main memory."""
    found = []
    for kind, dims, layout in re.findall(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?", shape):
        digits = re.search(r"\d+", kind)
        bits = BITS[kind] if kind in BITS else int(digits[0]) if digits else 0
        count = math.prod(int(n.lstrip("<=")) for n in dims.split(",") if n)
        found.append((count * bits / 8, not re.search(r"S\([1-9]", layout or "")))
    return found


def size(shape: str) -> float:
    """Bytes of a written shape, all its arrays together."""
    return sum(b for b, _ in arrays(shape))


def runs(module: Module) -> Iterator[tuple[int, dict[str, Instruction], Instruction]]:
    """Every instruction outside of fusions, with its computation, and how often it runs. Of branches, the one that moves most."""
    yield from _runs(module, module.entry, 1)


def _runs(module: Module, name: str, times: int) -> Iterator[tuple[int, dict[str, Instruction], Instruction]]:
    computation = module.computations[name]
    for instruction in computation.values():
        yield times, computation, instruction
        if instruction.opcode == "while":
            count = trips(module, computation, instruction)
            for body in instruction.called("body"):
                yield from _runs(module, body, times * (count or 1))
        elif instruction.opcode == "conditional":
            branches = instruction.called("branch_computations", "true_computation", "false_computation")
            yield from max((list(_runs(module, b, times)) for b in branches), key=lambda found: sum(t * size(i.shape) for t, _, i in found))
        elif instruction.opcode in ("call", "async-start"):
            for called in instruction.called("calls", "to_apply", "called_computation"):
                yield from _runs(module, called, times)


def trips(module: Module, computation: dict[str, Instruction], loop: Instruction) -> int | None:
    """How often a `while` runs: stated, or read from a condition `i < constant` whose i begins at a constant; None if neither."""
    stated = re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop.rest)
    if stated:
        return int(stated[1])
    condition = module.computations[loop.called("condition")[0]]
    compare = _inside(module, condition, "compare")
    if compare is None or not re.search(r"direction=(LT|GT|LE|GE|NE)", compare.rest):
        return None
    limits = [int(i.rest) for i in condition.values() if i.opcode == "constant" and re.fullmatch(r"-?\d+", i.rest)]
    limits += [int(i.rest) for c in _fused(module, condition) for i in c.values() if i.opcode == "constant" and re.fullmatch(r"-?\d+", i.rest)]
    counters = [re.search(r"index=(\d+)", i.rest) for i in condition.values() if i.opcode == "get-tuple-element"]
    start = computation.get(loop.operands[0])
    if len(limits) != 1 or len(counters) != 1 or start is None:
        return None
    first = _constant(computation, start.operands[int(counters[0][1])]) if start.opcode == "tuple" else None
    inclusive = re.search(r"direction=[LG]E", compare.rest) is not None
    return None if first is None else abs(limits[0] - first) + inclusive


def _fused(module: Module, computation: dict[str, Instruction]) -> list[dict[str, Instruction]]:
    return [module.computations[name] for i in computation.values() if i.opcode == "fusion" for name in i.called("calls")]


def _inside(module: Module, computation: dict[str, Instruction], opcode: str) -> Instruction | None:
    """The one instruction of its kind in a computation or in what it fuses."""
    found = [i for c in (computation, *_fused(module, computation)) for i in c.values() if i.opcode == opcode]
    return found[0] if len(found) == 1 else None


def _constant(computation: dict[str, Instruction], name: str) -> int | None:
    """The value of a scalar that is a constant, or a copy of one."""
    instruction = computation.get(name)
    while instruction is not None and instruction.opcode in ("copy", "bitcast", "convert") and instruction.operands:
        instruction = computation.get(instruction.operands[0])
    if instruction is None or instruction.opcode != "constant" or not re.fullmatch(r"-?\d+", instruction.rest):
        return None
    return int(instruction.rest)


def unknown_loops(module: Module) -> int:
    """Loops whose length is not written in the program, counted as one turn."""
    return sum(i.opcode == "while" and trips(module, c, i) is None for _, c, i in runs(module))


# ---- collectives ----


def collectives(module: Module) -> list[Collective]:
    """The collectives of a step, those of one kind and group size together, the most expensive first."""
    found: dict[tuple[str, int], list[float]] = collections.defaultdict(lambda: [0, 0.0])
    for times, computation, instruction in runs(module):
        for name, where, inner in _with_fused(module, "", computation, instruction):
            kind = inner.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            if name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"  # A TPU's compiler writes it as a fusion of this name.
            group = _group(inner.rest, module.devices)
            if group > 1:
                entry = found[kind, group]
                entry[0] += times
                entry[1] += times * _payload(where, inner, kind)
    return sorted((Collective(*key, int(n), b) for key, (n, b) in found.items()), key=lambda c: -c.wire)


def _with_fused(
    module: Module, name: str, computation: dict[str, Instruction], instruction: Instruction
) -> Iterator[tuple[str, dict[str, Instruction], Instruction]]:
    """An instruction, and those inside where it is a fusion, each with the fusion's name and its computation."""
    yield name, computation, instruction
    if instruction.opcode == "fusion":
        for called in instruction.called("calls"):
            inside = module.computations[called]
            for inner in inside.values():
                yield from _with_fused(module, called, inside, inner)


def _payload(computation: dict[str, Instruction], instruction: Instruction, kind: str) -> float:
    """Bytes of the whole array on one device."""
    given = sum(size(computation[name].shape) for name in instruction.operands if name in computation)
    if kind == "all-gather":
        return size(instruction.shape) - (given if instruction.opcode.endswith("-start") else 0)
    return given


def _group(text: str, devices: int) -> int:
    """Devices in one group of a collective."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", text):
        return devices if pairs[1] else 1
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        sizes = {name: int(n) for name, n in re.findall(r"['\"]?([\w.\-]+)['\"]?=(\d+)", axes[1])}
        named = re.findall(r"['\"]?([A-Za-z_][\w.\-]*)['\"]?(?::\(\d+\)(\d+))?", axes[2])
        return math.prod(int(part) if part else sizes[name] for name, part in named)
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
        return int(iota[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return listed[1].count(",") + 1
    return devices


# ---- traffic ----


def traffic(module: Module) -> float:
    """Bytes that a step reads from and writes to a device's main memory: operands and results of every operation, once each."""
    return sum(times * _moved(module, computation, i) for times, computation, i in runs(module) if i.opcode not in FREE)


def _moved(module: Module, computation: dict[str, Instruction], instruction: Instruction) -> float:
    if instruction.opcode.endswith("-done"):
        return 0.0
    result = sum(b for b, main in arrays(instruction.shape) if main)
    operands = [computation[name] for name in instruction.operands if name in computation]
    given = [sum(b for b, main in arrays(o.shape) if main) for o in operands]
    if instruction.opcode in SLICES:
        return 2 * result
    if instruction.opcode in ("dynamic-update-slice", "scatter"):
        return 2 * sum(given[1:])
    if instruction.opcode == "fusion":
        name = instruction.called("calls")[0]
        return max(result - _kept(module, name), 0) + sum(_read(module, name, n, whole) for n, whole in enumerate(given))
    return result + sum(given)


def _read(module: Module, name: str, number: int, whole: float) -> float:
    """Bytes that a fusion reads of its operand of this number: only the slices that it takes, and nothing of what it updates in place."""
    inside = module.computations[name]
    names = [i.name for i in inside.values() if i.opcode == "parameter" and i.rest == str(number)]
    total = 0.0
    while names:
        source = names.pop()
        for reader in (i for i in inside.values() if source in i.operands):
            if reader.opcode == "bitcast":
                names.append(reader.name)
            elif reader.opcode == "fusion":
                total += _read(module, reader.called("calls")[0], reader.operands.index(source), whole)
            elif reader.opcode in SLICES and reader.operands[0] == source:
                total += size(reader.shape)
            elif not (reader.opcode == "dynamic-update-slice" and reader.operands[0] == source):
                total += whole
    return min(whole, total)


def _kept(module: Module, name: str) -> float:
    """Bytes of a fusion's result that it leaves as they are, for it updates only a slice of them."""
    inside, kept = module.computations[name], 0.0
    for i in inside.values():
        if i.opcode == "dynamic-update-slice":
            kept += size(i.shape) - (size(inside[i.operands[1]].shape) if i.operands[1] in inside else 0)
        elif i.opcode == "fusion":
            kept += _kept(module, i.called("calls")[0])
    return kept
