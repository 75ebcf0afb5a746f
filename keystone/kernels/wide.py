"""Intrinsics that read, compare and copy many bytes at once (unaligned; LLVM picks AVX2, AVX-512 or SSE2).

Every function trusts its index: callers keep ``PADDING`` spare bytes behind each buffer. All are little-endian.
"""

# mypy: ignore-errors
# numba calls the inner functions with its own types; annotations here would describe nothing that runs.

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

WIDTH = 32
_BIT, _BYTE, _WORD = ir.IntType(1), ir.IntType(8), ir.IntType(64)
_LANES = ir.VectorType(_BYTE, WIDTH)


def _pointer(context, builder, array_type, array, index, pointee):
    base = context.make_array(array_type)(context, builder, array).data
    raw = builder.bitcast(base, _BYTE.as_pointer())
    size = context.get_abi_sizeof(context.get_data_type(array_type.dtype))
    place = builder.mul(index, ir.Constant(_WORD, size))
    return builder.bitcast(builder.gep(raw, [place]), pointee.as_pointer())


@intrinsic
def load_u64(typing, array, index):
    """Eight bytes from ``array[index:]`` as one uint64 (``array`` of any dtype; ``index`` in its items)."""

    def codegen(context, builder, signature, args):
        return builder.load(_pointer(context, builder, signature.args[0], args[0], args[1], _WORD), align=1)

    return types.uint64(array, types.int64), codegen


@intrinsic
def store_u64(typing, array, index, value):
    """Write ``value`` as eight bytes at ``array[index:]``."""

    def codegen(context, builder, signature, args):
        builder.store(args[2], _pointer(context, builder, signature.args[0], args[0], args[1], _WORD), align=1)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.uint64), codegen


@intrinsic
def copy_32(typing, target, target_index, source, source_index):
    """Copy 32 bytes whether wanted or not; the caller advances by the wanted length."""

    def codegen(context, builder, signature, args):
        read = builder.load(_pointer(context, builder, signature.args[2], args[2], args[3], _LANES), align=1)
        builder.store(read, _pointer(context, builder, signature.args[0], args[0], args[1], _LANES), align=1)
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64), codegen


@intrinsic
def string_stops(typing, array, index):
    """uint64 with bit i (i < 32) set where byte ``index + i`` is a quote, a backslash, below 0x20 or above 0x7f."""

    def codegen(context, builder, signature, args):
        lanes = builder.load(_pointer(context, builder, signature.args[0], args[0], args[1], _LANES), align=1)

        def every(byte):
            return ir.Constant(_LANES, [byte] * WIDTH)

        quote = builder.icmp_unsigned("==", lanes, every(0x22))
        escape = builder.icmp_unsigned("==", lanes, every(0x5C))
        other = builder.icmp_signed("<", lanes, every(0x20))  # signed: bytes above 0x7f are negative
        stops = builder.or_(builder.or_(quote, escape), other)
        return builder.zext(builder.bitcast(stops, ir.IntType(WIDTH)), _WORD)

    return types.uint64(array, types.int64), codegen


@intrinsic
def equal_32(typing, array, index, byte):
    """uint64 with bit i (i < 32) set where byte ``index + i`` equals ``byte``."""

    def codegen(context, builder, signature, args):
        lanes = builder.load(_pointer(context, builder, signature.args[0], args[0], args[1], _LANES), align=1)
        one = builder.trunc(args[2], _BYTE)
        first = builder.insert_element(ir.Constant(_LANES, ir.Undefined), one, ir.Constant(ir.IntType(32), 0))
        spread = builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH))
        same = builder.icmp_unsigned("==", lanes, spread)
        return builder.zext(builder.bitcast(same, ir.IntType(WIDTH)), _WORD)

    return types.uint64(array, types.int64, types.uint64), codegen


@intrinsic
def prefetch(typing, array, index):
    """Ask for the cache line of ``array[index]``, soon to be read and written."""

    def codegen(context, builder, signature, args):
        place = _pointer(context, builder, signature.args[0], args[0], args[1], _BYTE)
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), i32, i32, i32])
        hint = builder.module.globals.get("llvm.prefetch.p0i8") or ir.Function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(hint, [place, ir.Constant(i32, 1), ir.Constant(i32, 3), ir.Constant(i32, 1)])
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


@intrinsic
def trailing_zeros(typing, value):
    """Number of zero bits below the lowest set bit; undefined for 0."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(_BIT, 1))

    return types.int64(types.uint64), codegen


@intrinsic
def swap_bytes(typing, value):
    """The eight bytes of ``value`` in the opposite order."""

    def codegen(context, builder, signature, args):
        return builder.bswap(args[0])

    return types.uint64(types.uint64), codegen


@intrinsic
def multiply_high(typing, left, right):
    """The upper 64 bits of the 128-bit product: a full-width mix in one instruction."""

    def codegen(context, builder, signature, args):
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), _WORD)

    return types.uint64(types.uint64, types.uint64), codegen


@intrinsic
def same_32(typing, left, left_index, right, right_index):
    """uint64 with bit i (i < 32) set where ``left[left_index + i] == right[right_index + i]``."""

    def codegen(context, builder, signature, args):
        a = builder.load(_pointer(context, builder, signature.args[0], args[0], args[1], _LANES), align=1)
        b = builder.load(_pointer(context, builder, signature.args[2], args[2], args[3], _LANES), align=1)
        return builder.zext(builder.bitcast(builder.icmp_unsigned("==", a, b), ir.IntType(WIDTH)), _WORD)

    return types.uint64(left, types.int64, right, types.int64), codegen


@intrinsic
def item(typing, array, index):
    """``array[index]`` for a one-dimensional contiguous array and an index known to be in range.

    Plain indexing also serves negative indices: a compare and a select on every read, on the decoder's critical path.
    """

    def codegen(context, builder, signature, args):
        dtype = signature.args[0].dtype
        pointee = context.get_data_type(dtype)
        return builder.load(_pointer(context, builder, signature.args[0], args[0], args[1], pointee), align=1)

    return array.dtype(array, types.int64), codegen


@intrinsic
def ones(typing, value):
    """Number of set bits."""

    def codegen(context, builder, signature, args):
        return builder.ctpop(args[0])

    return types.int64(types.uint64), codegen
