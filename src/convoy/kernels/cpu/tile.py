"""The innermost loops of products: sums that stay in registers, twelve vectors of them.

    multiply_tile   sums[6, 16] = left[depth, 6]^T x right[depth, 16]    16 of float32, 8 of float64
    multiply_rows   sums[3, 4] = left[3, length] x right[4, length]^T

The first reads both sides in the order in which they lie ("packed"): a step of the depth is two
loads of vectors, six numbers that are spread over one, and twelve multiplications and additions.
The second goes along the rows of both, and sums the vectors up at the end. They are written in
LLVM's own language, since Numba has no vectors; LLVM makes AVX, NEON or whatever there is of them.

Source: K. Goto and R. van de Geijn, "Anatomy of high-performance matrix multiplication", ACM
Transactions on Mathematical Software 34 (3), 2008, sections 4 and 5.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

ROWS = 6
"""Of a tile of `multiply_tile`."""
LEFT_ROWS, RIGHT_ROWS = 3, 4
"""Of `multiply_rows`: four sums of a vector each become one vector by adding neighbours twice."""
LINE_BYTES = 64
"""Of a row of a tile: two vectors of 32 bytes."""


def columns_of(itemsize: int) -> int:
    """How many numbers a row of a tile has."""
    return LINE_BYTES // itemsize


class _Emitter:
    """What both loops write with."""

    def __init__(self, context: Any, builder: Any, number: Any) -> None:
        self.context, self.builder = context, builder
        self.size = number.bitwidth // 8
        self.width = columns_of(self.size) // 2
        self.scalar = context.get_value_type(number)
        self.vector = ir.VectorType(self.scalar, self.width)

    def start(self, kind: Any, array: Any, at: Any) -> Any:
        """Where an array's element is."""
        data = self.context.make_array(kind)(self.context, self.builder, array).data
        return self.builder.gep(data, [at])

    def const(self, value: int) -> Any:
        """An index."""
        return ir.Constant(ir.IntType(64), value)

    def vector_at(self, pointer: Any, at: Any) -> Any:
        """Where a vector is, `at` elements from there."""
        there = self.builder.gep(pointer, [at])
        return self.builder.bitcast(there, self.vector.as_pointer())

    def load(self, pointer: Any, at: Any) -> Any:
        """A vector; it may lie anywhere."""
        loaded = self.builder.load(self.vector_at(pointer, at))
        loaded.align = self.size
        return loaded

    def store(self, vector: Any, pointer: Any, at: Any) -> None:
        """Likewise."""
        self.builder.store(vector, self.vector_at(pointer, at)).align = self.size

    def spread(self, pointer: Any, at: Any) -> Any:
        """A vector of one number."""
        number = self.builder.load(self.builder.gep(pointer, [at]))
        undefined = ir.Constant(self.vector, ir.Undefined)
        single = self.builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), self.width), [0] * self.width)
        return self.builder.shuffle_vector(single, undefined, everywhere)

    def add_product(self, total: Any, one: Any, other: Any) -> Any:
        """total + one x other, fused where the processor can."""
        flags = ("contract",)
        product = self.builder.fmul(one, other, flags=flags)
        return self.builder.fadd(total, product, flags=flags)

    def add_neighbours(self, one: Any, other: Any | None) -> Any:
        """Sums of every two lanes: those of `one`, then those of `other` if there is another."""
        count = 2 * self.width if other is not None else self.width
        beside = ir.Constant(self.vector, ir.Undefined) if other is None else other
        masks = [
            ir.Constant(ir.VectorType(ir.IntType(32), count // 2), list(range(first, count, 2)))
            for first in range(2)
        ]
        return self.builder.fadd(
            *(self.builder.shuffle_vector(one, beside, mask) for mask in masks)
        )

    def loop(self, steps: Any, by: int, count: int, body: Any) -> list[Any]:
        """`body(step, sums)` for steps from 0, one at least; sums begin as zeros."""
        builder = self.builder
        before = builder.block
        loop, after = builder.append_basic_block("loop"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        step = builder.phi(ir.IntType(64))
        step.add_incoming(self.const(0), before)
        zeros = ir.Constant(self.vector, [ir.Constant(self.scalar, 0.0)] * self.width)
        sums = [builder.phi(self.vector) for _ in range(count)]
        found = body(step, sums)
        following = builder.add(step, self.const(by))
        step.add_incoming(following, builder.block)
        for old, new in zip(sums, found, strict=True):
            old.add_incoming(zeros, before)
            old.add_incoming(new, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, steps), loop, after)
        builder.position_at_end(after)
        return list(found)


@intrinsic  # type: ignore[untyped-decorator]
def multiply_tile(
    _typing: Any,
    left: Any,
    left_at: Any,
    right: Any,
    right_at: Any,
    depth: Any,
    start: Any,
    start_at: Any,
    adds: Any,
    into: Any,
    into_at: Any,
    into_row: Any,
) -> Any:
    """Write a tile, or add to what is there; called from compiled code.

    Args:
        left: one-dimensional; from `left_at` on [depth, ROWS].
        right: likewise; from `right_at` on [depth, COLUMNS].
        depth: at least 1.
        start: likewise; from `start_at` on [ROWS], with which rows begin that are not added.
        adds: whether to add to `into`, without `start`.
        into: likewise; from `into_at` on, ROWS rows of COLUMNS, `into_row` apart.
    """
    index = types.int64
    signature = types.void(
        left, index, right, index, index, start, index, types.boolean, into, index, index
    )

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        a, a_at, b, b_at, steps, s, s_at, is_added, c, c_at, c_row = arguments
        emit = _Emitter(context, builder, left.dtype)
        width = emit.width
        pa, pb, ps, pc = (
            emit.start(*of)
            for of in ((left, a, a_at), (right, b, b_at), (start, s, s_at), (into, c, c_at))
        )

        def body(step: Any, sums: list[Any]) -> list[Any]:
            line = builder.mul(step, emit.const(2 * width))
            halves = [emit.load(pb, builder.add(line, emit.const(h * width))) for h in range(2)]
            first = builder.mul(step, emit.const(ROWS))
            found = []
            for row in range(ROWS):
                spread = emit.spread(pa, builder.add(first, emit.const(row)))
                pair = sums[2 * row : 2 * row + 2]
                found += [
                    emit.add_product(total, spread, half)
                    for total, half in zip(pair, halves, strict=True)
                ]
            return found

        made = emit.loop(steps, 1, 2 * ROWS, body)
        places = [
            builder.add(builder.mul(c_row, emit.const(row)), emit.const(half * width))
            for row in range(ROWS)
            for half in range(2)
        ]
        with builder.if_else(is_added) as (then, otherwise):
            with then:
                for at, total in zip(places, made, strict=True):
                    emit.store(builder.fadd(emit.load(pc, at), total), pc, at)
            with otherwise:
                for number, (at, total) in enumerate(zip(places, made, strict=True)):
                    begin = emit.spread(ps, emit.const(number // 2))
                    emit.store(builder.fadd(begin, total), pc, at)
        return context.get_dummy_value()

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def multiply_rows(
    _typing: Any,
    left: Any,
    left_at: Any,
    left_row: Any,
    right: Any,
    right_at: Any,
    right_row: Any,
    length: Any,
    into: Any,
    into_at: Any,
    into_row: Any,
) -> Any:
    """Add products of rows to `into`; called from compiled code.

    Args:
        left: one-dimensional; from `left_at` on, LEFT_ROWS rows `left_row` apart.
        right: likewise; RIGHT_ROWS rows.
        length: of a row, more than 0 and a multiple of a vector's.
        into: likewise; from `into_at` on, LEFT_ROWS rows of RIGHT_ROWS, `into_row` apart.
    """
    index = types.int64
    signature = types.void(left, index, index, right, index, index, index, into, index, index)

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        a, a_at, a_row, b, b_at, b_row, steps, c, c_at, c_row = arguments
        emit = _Emitter(context, builder, left.dtype)
        pa, pb, pc = (
            emit.start(*of) for of in ((left, a, a_at), (right, b, b_at), (into, c, c_at))
        )
        of_left = [builder.mul(a_row, emit.const(row)) for row in range(LEFT_ROWS)]
        of_right = [builder.mul(b_row, emit.const(row)) for row in range(RIGHT_ROWS)]

        def body(step: Any, sums: list[Any]) -> list[Any]:
            ones = [emit.load(pa, builder.add(row, step)) for row in of_left]
            found = {}
            for column, row in enumerate(of_right):  # one at a time: registers are few
                other = emit.load(pb, builder.add(row, step))
                for number, one in enumerate(ones):
                    at = number * RIGHT_ROWS + column
                    found[at] = emit.add_product(sums[at], one, other)
            return [found[at] for at in range(len(sums))]

        made = emit.loop(steps, emit.width, LEFT_ROWS * RIGHT_ROWS, body)
        narrow = ir.VectorType(emit.scalar, RIGHT_ROWS)
        for row in range(LEFT_ROWS):
            four = made[row * RIGHT_ROWS : (row + 1) * RIGHT_ROWS]
            first, second = (emit.add_neighbours(*four[:2]), emit.add_neighbours(*four[2:]))
            total = emit.add_neighbours(first, second)
            if emit.width > RIGHT_ROWS:
                total = emit.add_neighbours(total, None)
            there = builder.gep(pc, [builder.mul(c_row, emit.const(row))])
            pointer = builder.bitcast(there, narrow.as_pointer())
            before = builder.load(pointer)
            before.align = emit.size
            builder.store(builder.fadd(before, total), pointer).align = emit.size
        return context.get_dummy_value()

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def copy_line(_typing: Any, source: Any, source_at: Any, into: Any, into_at: Any) -> Any:
    """Copy LINE_BYTES of one one-dimensional array to another; called from compiled code."""
    index = types.int64

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        a, a_at, b, b_at = arguments
        emit = _Emitter(context, builder, source.dtype)
        pa, pb = emit.start(source, a, a_at), emit.start(into, b, b_at)
        halves = [emit.load(pa, emit.const(half * emit.width)) for half in range(2)]
        for half, loaded in enumerate(halves):
            emit.store(loaded, pb, emit.const(half * emit.width))
        return context.get_dummy_value()

    return types.void(source, index, into, index), generate


def _emit_run(
    context: Any, builder: Any, kinds: Any, arguments: Any, combine: Any, *, is_read: bool
) -> Any:
    """Go through two arrays by vectors, then by halves of one: runs are short, and loops slow."""
    a, a_at, b, b_at, number = arguments
    emit = _Emitter(context, builder, kinds[0].dtype)
    pa, pb = emit.start(kinds[0], a, a_at), emit.start(kinds[1], b, b_at)

    def some(at: Any, width: int) -> None:
        kind = ir.VectorType(emit.scalar, width).as_pointer()
        pointers = [builder.bitcast(builder.gep(p, [at]), kind) for p in (pa, pb)]
        loaded = [builder.load(pointer) for pointer in pointers[: 1 + is_read]]
        for one in loaded:
            one.align = emit.size
        builder.store(combine(*loaded), pointers[1]).align = emit.size

    step = emit.const(emit.width)
    whole = builder.and_(number, emit.const(-emit.width))
    with cgutils.for_range_slice(builder, emit.const(0), whole, step) as (at, _):
        some(at, emit.width)
    width = emit.width // 2
    while width:
        bit = builder.and_(number, emit.const(width))
        with builder.if_then(builder.icmp_signed("!=", bit, emit.const(0))):
            some(builder.and_(number, emit.const(-2 * width)), width)
        width //= 2
    return context.get_dummy_value()


@intrinsic  # type: ignore[untyped-decorator]
def add_run(_typing: Any, source: Any, source_at: Any, into: Any, into_at: Any, count: Any) -> Any:
    """Add `count` numbers of one one-dimensional array to another's; called from compiled code."""
    index = types.int64

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kinds = (source, into)
        return _emit_run(context, builder, kinds, arguments, builder.fadd, is_read=True)

    return types.void(source, index, into, index, index), generate


@intrinsic  # type: ignore[untyped-decorator]
def copy_run(_typing: Any, source: Any, source_at: Any, into: Any, into_at: Any, count: Any) -> Any:
    """Copy them; likewise."""
    index = types.int64

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kinds = (source, into)
        return _emit_run(context, builder, kinds, arguments, lambda one: one, is_read=False)

    return types.void(source, index, into, index, index), generate
