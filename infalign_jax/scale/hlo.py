"""Reading collectives out of optimised HLO text: how often each runs, how many bytes it moves, between whom."""

import re
from typing import NamedTuple

import numpy as np

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}  # fmt: skip
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    type: str
    opcode: str
    operands: list
    text: str


class Collective(NamedTuple):
    """A collective of the program. `times`: how often a device runs it in one call of the program.

    result: bytes of its result; shape: of its largest array; received: bytes a device receives, once, by a ring (or directly);
    group: devices that take part in one; crosses: whether a group has devices of several slices.
    """

    kind: str
    result: int
    shape: tuple
    received: float
    group: int
    times: int
    crosses: bool
    name: str
    source: str


def parse(text):
    """(entry name, {computation: {instruction name: Instruction}, in order}) of a module's text."""
    entry, computations, current = None, {}, None
    for line in text.splitlines():
        if current is None:
            if match := _HEAD.match(line):
                current = computations.setdefault(match[2], {})
                entry = match[2] if match[1] else entry
        elif line.startswith("}"):
            current = None
        elif " = " in line:
            instruction = _instruction(line)
            current[instruction.name] = instruction
    return entry, computations


def _instruction(line):
    name, _, rest = line.strip().partition(" = ")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, call = rest[:end], rest[end:].lstrip()
    opcode, _, _ = call.partition("(")
    close = _closing(call, len(opcode))
    operands = re.findall(r"%([\w.\-]+)", call[len(opcode) : close])
    return Instruction(
        name.removeprefix("ROOT ").lstrip("%"), kind, opcode, operands or [call[len(opcode) + 1 : close]], line
    )


def _closing(text, start):
    """Where the bracket opened at `start` closes."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    return len(text)


def sizes(kind):
    """Bytes of each array in a type, `bf16[2,3]{1,0}` or a tuple of such; token and opaque types have none."""
    found = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", kind)
    return [
        _BYTES[name] * int(np.prod([int(d) for d in shape.split(",") if d])) for name, shape in found if name in _BYTES
    ]


def _shape(kind):
    """Dimensions of the largest array of a type."""
    found = re.findall(r"\b[a-z]+\d*\[([\d,]*)\]", kind)
    shapes = [tuple(int(d) for d in shape.split(",") if d) for shape in found]
    return max(shapes, key=lambda shape: int(np.prod(shape)))


def collectives(text, slice_of=None):
    """Every `Collective` of a module, loops multiplied in.

    Args:
      text: `compiled.as_text()`.
      slice_of: sequence, the slice of each device in the order of the program's partitions; None for a single slice.

    A loop whose condition also depends on data (decoding stops when all have ended) counts with all its passes.
    """
    entry, computations = parse(text)
    times, found, split = _executions(entry, computations), [], set()
    for name, count in times.items():
        for instruction in computations[name].values():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS or not count:
                continue
            # One asynchronous collective is spread over several fusions, each of which repeats its line.
            parts = re.search(r'channel_id=(\d+).*chain_id="(\d+)"', instruction.text)
            if parts and (parts.groups(), count) in split:
                continue
            split |= {(parts.groups(), count)} if parts else set()
            arrays = sizes(instruction.type)
            started, size = instruction.opcode.endswith("-start"), sum(arrays)
            if started:  # (operands, results, context): gathers grow, the others keep their size
                size = max(arrays)
            groups = _groups(instruction.text)
            ways = len(groups[0]) if kind != "collective-permute" else 2
            crosses = slice_of is not None and any(len({slice_of[i] for i in group}) > 1 for group in groups)
            source = re.search(r'op_name="([^"]*)"', instruction.text)
            found.append(
                Collective(
                    kind,
                    size,
                    _shape(instruction.type),
                    _received(kind, size, ways),
                    ways,
                    count,
                    crosses,
                    instruction.name,
                    source[1] if source else "",
                )
            )
    return [each for each in found if each.group > 1]


def _received(kind, size, ways):
    if kind == "all-reduce":
        return 2 * size * (ways - 1) / ways
    if kind == "reduce-scatter":
        return size * (ways - 1)
    return size if kind == "collective-permute" else size * (ways - 1) / ways


def _executions(entry, computations):
    """{computation: how often it runs}, in an order in which callers come first."""
    order, seen = [], set()

    def visit(name):
        if name in seen or name not in computations:
            return
        seen.add(name)
        for instruction in computations[name].values():
            for callee in _callees(instruction):
                visit(callee)
        order.append(name)

    visit(entry)
    times = dict.fromkeys(reversed(order), 0)
    times[entry] = 1
    for name in times:
        for instruction in computations[name].values():
            passes = trips(instruction, computations[name], computations) if instruction.opcode == "while" else 1
            for callee in _callees(instruction):
                if callee in times:
                    times[callee] += times[name] * passes
    return times


def _callees(instruction):
    names = _CALLED.findall(instruction.text)
    for group in _BRANCHES.findall(instruction.text):
        names += [name.strip().lstrip("%") for name in group.split(",")]
    return names


def trips(loop, computation, computations):
    """Passes of a while loop that counts up to a constant: (bound - start) / stride, from its condition and body."""
    if known := re.search(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)', loop.text):
        return int(known[1])
    condition = computations[re.search(r"condition=%?([\w.\-]+)", loop.text)[1]]
    bound = _bound(condition, computations)
    counter = _counter(condition, computations)
    if bound is None:
        raise ValueError(f"loop {loop.name} does not count up to a constant; its passes are not known")
    if counter is None:
        return bound
    start = _start(loop, counter, computation, computations)
    body = computations[re.search(r"body=%?([\w.\-]+)", loop.text)[1]]
    return max(0, -(-(bound - start) // _stride(body, counter)))


def _integer(instruction):
    match = re.search(r"\bconstant\((-?\d+)\)", instruction.text)
    return int(match[1]) if match and re.match(r"[su]\d+\[\]", instruction.type) else None


def _bound(condition, computations):
    """The largest integer constant that a condition, or what it calls, mentions."""
    found = [value for each in condition.values() if (value := _integer(each)) is not None]
    for instruction in condition.values():
        found += [_bound(computations[name], computations) for name in _callees(instruction) if name in computations]
    return max((value for value in found if value is not None), default=None)


def _counter(condition, computations):
    """The tuple index of the integer that a condition compares."""
    for instruction in condition.values():
        if instruction.opcode == "get-tuple-element" and re.match(r"[su]\d+\[\]", instruction.type):
            return int(re.search(r"index=(\d+)", instruction.text)[1])
    return None


def _start(loop, counter, computation, computations):
    """The integer that a counter starts from; where another loop left it, if it was one's; 0 if it cannot be told."""
    packed = computation.get(loop.operands[0])
    if packed is None or packed.opcode != "tuple":
        return 0
    each = computation.get(packed.operands[counter])
    while each is not None and each.opcode in ("copy", "bitcast"):
        each = computation.get(each.operands[0])
    if each is None:
        return 0
    if each.opcode == "get-tuple-element" and computation.get(each.operands[0], each).opcode == "while":
        before = computation[each.operands[0]]
        condition = computations[re.search(r"condition=%?([\w.\-]+)", before.text)[1]]
        return _bound(condition, computations) or 0
    return _integer(each) or 0


def _stride(body, counter):
    """What a body adds to its counter; 1 if it cannot be told."""
    root = next((each for each in body.values() if "ROOT" in each.text.split("=")[0]), None)
    if root is None or root.opcode != "tuple":
        return 1
    added = body.get(root.operands[counter])
    if added is None or added.opcode != "add":
        return 1
    steps = [_integer(body[name]) for name in added.operands if name in body]
    return next((step for step in steps if step), 1)


def _groups(text):
    """The groups of devices of a collective, as lists of partition numbers."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}?,", text):
        return [[int(a), int(b)] for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs[0])]
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((?P<ids>[^)]*)\))? ?\{([^}]*)\}", text):
        return _mesh_groups(named[1], named[3], named["ids"])
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape = [int(n) for n in iota[3].split(",")]
        ids = np.arange(np.prod(shape)).reshape(shape)
        if iota[4]:
            ids = ids.transpose([int(n) for n in iota[4].split(",")])
        return ids.reshape(int(iota[1]), int(iota[2])).tolist()
    listed = re.search(r"replica_groups=\{(\{.*?\})\}", text)
    return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])] if listed else [[0]]


def _mesh_groups(axes, over, ids):
    names, lengths = zip(*re.findall(r"'([^']+)'=(\d+)", axes), strict=True)
    shape = [int(n) for n in lengths]
    grid = np.arange(np.prod(shape)).reshape(shape) if ids is None else _iota(ids).reshape(shape)
    chosen = [names.index(name) for name in re.findall(r"'([^']+)'", over)]
    rest = [i for i in range(len(names)) if i not in chosen]
    return grid.transpose(rest + chosen).reshape(-1, int(np.prod([shape[i] for i in chosen]))).tolist()


def _iota(text):
    """Device numbers from '[8,2]T(1,0)' (an iota of that shape, transposed) or from a plain list."""
    shape = [int(n) for n in re.search(r"\[([\d,]+)\]", text)[1].split(",")]
    ids = np.arange(np.prod(shape)).reshape(shape)
    order = re.search(r"T\(([\d,]+)", text)
    return ids.transpose([int(n) for n in order[1].split(",")]) if order else ids
