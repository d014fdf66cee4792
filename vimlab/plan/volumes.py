"""What a compiled program sends to other devices, and what it moves to and from memory, loops counted as often as they run."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

from vimlab.plan.hlo import Instruction, Module, arrays, runs, size

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute", "collective-broadcast")
# Names of other arrays, or what costs no memory traffic of its own.
FREE = {
    "parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional", "call", "async-start", "async-update", "async-done", "after-all",
    "partition-id", "replica-id", "opt-barrier", "copy-done", "iota",
}  # fmt: skip
SLICES = {"dynamic-slice", "slice", "gather"}


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind over groups of one size.

    Attributes:
      kind: one of KINDS.
      group: devices that take part together.
      count: how often such run in a step, on average.
      bytes: of the whole array on each device, gathered or not yet scattered, all runs together.
    """

    kind: str
    group: int
    count: float
    bytes: float

    @property
    def wire(self) -> float:
        """Bytes that each device sends, in a ring."""
        if self.kind in ("collective-permute", "collective-broadcast"):
            return self.bytes
        return (2 if self.kind == "all-reduce" else 1) * self.bytes * (self.group - 1) / self.group


def collectives(module: Module, rare: float = 1.0) -> list[Collective]:
    """The collectives of a step, those of one kind and group size together, the most expensive first; `rare` as of `hlo.runs`."""
    found: dict[tuple[str, int], list[float]] = collections.defaultdict(lambda: [0, 0.0])
    for times, name, where, inner in _collectives(module, rare):
        kind = inner.opcode.removesuffix("-start")
        if name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # A TPU's compiler writes it as a fusion of this name.
        group = _group(inner.rest, module.devices)
        if group > 1:
            entry = found[kind, group]
            entry[0] += times
            entry[1] += times * _payload(where, inner, kind)
    return sorted((Collective(*key, n, b) for key, (n, b) in found.items()), key=lambda c: -c.wire)


def _collectives(module: Module, rare: float) -> Iterator[tuple[float, str, dict[str, Instruction], Instruction]]:
    """Each collective: how often it runs, the fusion that it stands in or "", its computation, and itself."""
    known: set[tuple[int, str]] = set()
    for times, computation, instruction in runs(module, rare):
        for name, where, inner in _with_fused(module, "", computation, instruction):
            if inner.opcode.removesuffix("-start") not in KINDS:
                continue
            if name and (channel := re.search(r"channel_id=(\d+)", inner.rest)):
                # One that goes on beside products stands in each fusion that has a part of it.
                if (id(computation), channel[1]) in known:
                    continue
                known.add((id(computation), channel[1]))
            yield times, name, where, inner


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


def traffic(module: Module, rare: float = 1.0) -> float:
    """Bytes that a step moves to and from a device's main memory: operands and results of every operation, once each; `rare` as of `hlo.runs`."""
    total = sum(times * _moved(module, computation, i) for times, computation, i in runs(module, rare) if i.opcode not in FREE)
    # Of fusions, `_moved` leaves out what is gathered.
    fused = ((times, where, i) for times, name, where, i in _collectives(module, rare) if name and i.opcode == "all-gather")
    return total + sum(times * (_main(i.shape) + sum(_main(where[name].shape) for name in i.operands)) for times, where, i in fused)


def _moved(module: Module, computation: dict[str, Instruction], instruction: Instruction) -> float:
    if instruction.opcode.endswith("-done"):
        return 0.0
    result = _main(instruction.shape)
    operands = [computation[name].shape for name in instruction.operands if name in computation]
    given = [_main(shape) for shape in operands]
    if instruction.opcode in SLICES:
        return result + (size(instruction.shape) if any(given[:1]) else 0)
    if instruction.opcode in ("dynamic-update-slice", "scatter"):
        update = 1 if instruction.opcode == "dynamic-update-slice" else 2  # The operand that is written.
        return sum(given[1:]) + (size(operands[update]) if given[0] else 0)
    if instruction.opcode == "fusion":
        name = instruction.called("calls")[0]
        return max(result - _kept(module, name), 0) + sum(_read(module, name, n, whole) for n, whole in enumerate(given))
    if instruction.opcode.endswith("-start"):
        return max(result - sum(given), 0) + sum(given)  # Its result names its operands again.
    return result + sum(given)


def _main(shape: str) -> float:
    """Bytes of a written shape in main memory."""
    return sum(b for b, there in arrays(shape) if there)


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
            elif reader.opcode != "all-gather" and not (reader.opcode == "dynamic-update-slice" and reader.operands[0] == source):
                total += whole
    return min(whole, total)


def _kept(module: Module, name: str) -> float:
    """Bytes of a fusion's result that it leaves as they are, for it updates only a slice of them, or that are gathered."""
    inside, kept = module.computations[name], 0.0
    for i in inside.values():
        if i.opcode == "dynamic-update-slice":
            kept += size(i.shape) - (size(inside[i.operands[1]].shape) if i.operands[1] in inside else 0)
        elif i.opcode == "all-gather":
            kept += _main(i.shape)
        elif i.opcode == "fusion":
            kept += _kept(module, i.called("calls")[0])
    return kept
