"""Reading the text of an optimised XLA program: what runs on the device, and what it writes."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_DTYPE_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}  # the others' names end in their width

# Instructions that neither compute nor move anything, or whose work is in the computations they call.
_NO_KERNEL = {
    *("after-all", "bitcast", "call", "conditional", "constant", "get-tuple-element", "opt-barrier"),
    *("parameter", "partition-id", "tuple", "while"),
}
_MOVES = {
    "copy",
    "transpose",
    "gather",
    "slice",
    "dynamic-slice",
    "convert",
}  # a result of other bytes' values

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|[^ (]+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_FUSED = re.compile(r"calls=%?([\w.\-]+)")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    opcode: str
    shape: str
    rest: str  # operands, attributes and metadata
    is_root: bool

    @property
    def nbytes(self) -> int:
        return shape_bytes(self.shape)

    @property
    def op_name(self) -> str:
        """Where in the traced function it comes from; a fusion's is that of its root."""
        match = _OP_NAME.search(self.rest)
        return match[1] if match else ""


class Placed(NamedTuple):
    """An instruction that the device runs, and whether once or in a loop."""

    instruction: Instruction
    in_loop: bool


class Module(NamedTuple):
    """A program's computations by name."""

    computations: dict[str, list[Instruction]]
    entry: str

    def executed(self) -> Iterator[Placed]:
        """The instructions of the entry, of loops and of branches, each once; fusions' interiors are not."""
        return self._walk(self.entry, False)

    def _walk(self, name: str, in_loop: bool) -> Iterator[Placed]:
        for instruction in self.computations[name]:
            yield Placed(instruction, in_loop)
            if instruction.opcode in ("while", "conditional", "call"):
                for called in called_computations(instruction):
                    yield from self._walk(called, in_loop or instruction.opcode == "while")

    def moves(self, instruction: Instruction) -> bool:
        """Whether an instruction, or the root of a fusion, only puts values elsewhere or in another dtype."""
        if instruction.opcode != "fusion":
            return instruction.opcode in _MOVES
        match = _FUSED.search(instruction.rest)
        interior = self.computations.get(match[1], []) if match else []
        by_name = {inner.name: inner for inner in interior}
        root = next((inner for inner in interior if inner.is_root), None)
        while root is not None and root.opcode == "bitcast":
            root = by_name.get(operands(root)[0])
        return root is not None and root.opcode in _MOVES and root.opcode != "convert"  # that ends arithmetic


def parse(text: str) -> Module:
    """The computations of `Compiled.as_text()`."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = computations.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current.append(Instruction(match[2], match[4], match[3], match[5], bool(match[1])))
    return Module(computations, entry)


def shape_bytes(shape: str) -> int:
    """Bytes of an array or of a tuple's arrays, e.g. of '(bf16[64,128]{1,0}, s32[])'."""
    total = 0
    for dtype, dims in _ARRAY.findall(shape):
        width = re.search(r"\d+", dtype)
        bits = _DTYPE_BITS.get(dtype, int(width[0]) if width else 8)
        total += math.prod(int(dim) for dim in dims.split(",") if dim) * bits // 8
    return total


def operands(instruction: Instruction) -> list[str]:
    """Names of the operands."""
    return re.findall(r"%([\w.\-]+)", instruction.rest.split("), ", 1)[0])


def called_computations(instruction: Instruction) -> list[str]:
    """What a while, a conditional or a call runs."""
    called = _CALLED.findall(instruction.rest)
    if match := _BRANCHES.search(instruction.rest):
        called += re.findall(r"%?([\w.\-]+)", match[1])
    return called


def is_kernel(instruction: Instruction) -> bool:
    """Whether it is launched on the device."""
    return instruction.opcode not in _NO_KERNEL


def large_moves(module: Module, limit: int) -> list[Placed]:
    """Copies, transposes, gathers, slices and conversions of more than `limit` bytes, fused ones too."""
    return [p for p in module.executed() if p.instruction.nbytes > limit and module.moves(p.instruction)]


def collectives(module: Module) -> dict[str, int]:
    """What devices exchange: how often each kind of it is executed, a turn of a loop once."""
    found = collections.Counter(placed.instruction.opcode for placed in module.executed())
    kinds = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    counts = {kind: found[kind] + found[f"{kind}-start"] for kind in kinds}
    return {kind: count for kind, count in counts.items() if count}


def trip_counts(module: Module, scope: str = "") -> list[int | None]:
    """Turns of each loop that comes from a scope of the traced function, where the compiler knows them: then
    nobody reads a predicate after each turn."""
    instructions = (placed.instruction for placed in module.executed())
    loops = (loop for loop in instructions if loop.opcode == "while" and scope in loop.op_name)
    found = (_TRIP_COUNT.search(loop.rest) for loop in loops)
    return [int(match[1]) if match else None for match in found]


def unwritten_outputs(module: Module) -> list[str]:
    """Parameters that the program returns as they came. An aliased output that nothing wrote is a bug: the
    bytes are shared, and the update is lost."""
    entry = module.computations[module.entry]
    parameters = {instruction.name for instruction in entry if instruction.opcode == "parameter"}
    root = next(instruction for instruction in entry if instruction.is_root)
    return [name for name in operands(root) if name in parameters]


def num_readers(module: Module, parameter: str) -> int:
    """Kernels of the entry that read a parameter, by the beginning of its name."""
    entry = module.computations[module.entry]
    names = {i.name for i in entry if i.opcode == "parameter" and i.name.split(".")[0] == parameter}
    return sum(is_kernel(i) and not names.isdisjoint(operands(i)) for i in entry)


def num_rematerialised(module: Module) -> int:
    """Instructions that XLA computes once more, rather than keep what they gave."""
    return sum(".remat" in i.name for computation in module.computations.values() for i in computation)


def bytes_written(module: Module, *, shape: str, scope: str) -> int:
    """By kernels, each once; but for arrays of a shape, such as "[800,", and for kernels of a scope."""
    arrays = [
        f"{dtype}[{dims}]"
        for placed in module.executed()
        if is_kernel(placed.instruction) and scope not in placed.instruction.op_name
        for dtype, dims in _ARRAY.findall(placed.instruction.shape)
    ]
    return sum(shape_bytes(array) for array in arrays if shape not in array)


def num_command_buffers(thunks: str) -> int:
    """CUDA graphs in XLA's dump of what it launches, those in loops' bodies included."""
    return len(re.findall(r"^\s*\d+: kCommandBuffer\b", thunks, re.MULTILINE))


def num_host_branches(thunks: str) -> int:
    """Conditionals outside of CUDA graphs: for each, the host waits for the device to learn the branch."""
    number, graph = 0, math.inf  # the indentation of the graph that a line is in
    for indent, kind in re.findall(r"^(\s*)\d+: k(\w+)", thunks, re.MULTILINE):
        if len(indent) <= graph:
            graph = len(indent) if kind == "CommandBuffer" else math.inf
        number += kind == "Conditional" and math.isinf(graph)
    return number
