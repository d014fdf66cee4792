"""Reads a compiled program's text (HLO): its instructions, and how often each of them runs."""

import dataclasses
import math
import re
from collections.abc import Iterator

CALLED = ("calls", "to_apply", "called_computation", "body", "branch_computations", "true_computation", "false_computation")
BITS = {"pred": 8, "token": 0, "opaque": 0}  # Others carry theirs in their name: bf16, s32, f8e4m3.


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


def runs(module: Module, rare: float = 1.0) -> Iterator[tuple[float, dict[str, Instruction], Instruction]]:
    """Every instruction outside of fusions, with its computation, and how often it runs.

    Of branches, the one that moves most counts; it is taken `rare` often where it computes products and another does not.
    """
    yield from _runs(module, module.entry, 1, rare)


def _runs(module: Module, name: str, times: float, rare: float) -> Iterator[tuple[float, dict[str, Instruction], Instruction]]:
    computation = module.computations[name]
    for instruction in computation.values():
        yield times, computation, instruction
        if instruction.opcode == "while":
            count = trips(module, computation, instruction)
            for body in instruction.called("body"):
                yield from _runs(module, body, times * (count or 1), rare)
        elif instruction.opcode == "conditional":
            branches = instruction.called("branch_computations", "true_computation", "false_computation")
            most = max(branches, key=lambda branch: sum(t * size(i.shape) for t, _, i in _runs(module, branch, 1, rare)))
            seldom = _products(module, most) and not all(_products(module, branch) for branch in branches)
            yield from _runs(module, most, times * (rare if seldom else 1), rare)
        elif instruction.opcode in ("call", "async-start"):
            for called in instruction.called("calls", "to_apply", "called_computation"):
                yield from _runs(module, called, times, rare)


def _products(module: Module, name: str) -> bool:
    """Whether a computation, or any that it calls, has a matrix product or a convolution."""
    instructions = module.computations[name].values()
    return any(i.opcode in ("dot", "convolution") or any(_products(module, called) for called in i.called(*CALLED)) for i in instructions)


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
