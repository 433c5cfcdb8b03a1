"""Reading collectives out of optimised HLO text: how often each runs, how many bytes it moves."""

import re
from typing import NamedTuple

import numpy as np

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}  # fmt: skip
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# A fused sum and slice, which a TPU runs as one reduce-scatter: nobody receives more than the share it keeps.
_SCATTER = "all-reduce-scatter"
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_NAMED = re.compile(r"\s+(ROOT )?%?[\w.\-]+ = ")
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
    group: devices (or slices) that take part in one; crosses: whether it is between slices.
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
        elif line == "}":  # an attribute of several lines may begin one with a bracket, too
            current = None
        elif _NAMED.match(line):
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


def collectives(text):
    """Every `Collective` of a module, from `compiled.as_text()`, loops multiplied in.

    A loop whose condition also depends on data (decoding stops when all have ended) counts with all its passes.
    """
    entry, computations = parse(text)
    executions, found, seen = _executions(entry, computations), [], set()
    for name, instructions in computations.items():
        times = executions.get(name, 0)
        for instruction in instructions.values():
            kind = instruction.opcode.removesuffix("-start")
            if times and kind == "recv" and "xla_megascale_runtime" in instruction.text:
                found.append(_across_slices(instruction, times))
            if not times or kind not in KINDS:
                continue
            # One asynchronous collective is spread over several fusions, each of which repeats its line.
            part = re.search(r'channel_id=(\d+).*chain_id="(\d+)"', instruction.text)
            if part and (*part.groups(), times) in seen:
                continue
            seen |= {(*part.groups(), times)} if part else set()
            arrays = sizes(instruction.type)
            # The type of a start is (operands, results, context): gathers grow, the others keep their size.
            size = max(arrays) if instruction.opcode.endswith("-start") else sum(arrays)
            ways = 2 if kind == "collective-permute" else _group_size(instruction.text)
            if kind == "all-reduce" and name.startswith(_SCATTER):
                kind, size = "reduce-scatter", size // ways
            shape, received = _shape(instruction.type), _received(kind, size, ways)
            found.append(
                Collective(kind, size, shape, received, ways, times, False, instruction.name, _source(instruction))
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


def _group_size(text):
    """How many devices take part in one collective."""
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        lengths = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        return int(np.prod([int(lengths[axis]) for axis in re.findall(r"'([^']+)'", named[2])]))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
        return int(iota[1])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", text)
    return len(listed[1].split(",")) if listed else 1


def _across_slices(instruction, times):
    """A `Collective` over the data centre network, which is a host transfer of libtpu's in the program of one slice."""
    what = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.text)
    kind = what[1].lower().replace("_", "-") if what else "send-recv"
    size = sizes(instruction.type)[0]
    return Collective(
        kind, size, _shape(instruction.type), size, 2, times, True, instruction.name, _source(instruction)
    )


def _source(instruction):
    match = re.search(r'op_name="([^"]*)"', instruction.text)
    return match[1] if match else ""
