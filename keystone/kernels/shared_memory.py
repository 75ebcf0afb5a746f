"""Intrinsics for memory that several processes map: ordered loads and stores of one aligned int64, and a plain copy."""

# mypy: ignore-errors

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from keystone.kernels.wide import _BYTE, _WORD, _pointer


@intrinsic
def load_acquire(typing, array, index):
    """``array[index]`` (int64); no later read of ours is done before it."""

    def codegen(context, builder, signature, args):
        place = _pointer(context, builder, signature.args[0], args[0], args[1], _WORD)
        return builder.load_atomic(place, ordering="acquire", align=8)

    return types.int64(array, types.int64), codegen


@intrinsic
def store_release(typing, array, index, value):
    """``array[index] = value`` (int64); seen by nobody before all our earlier writes."""

    def codegen(context, builder, signature, args):
        place = _pointer(context, builder, signature.args[0], args[0], args[1], _WORD)
        builder.store_atomic(args[2], place, ordering="release", align=8)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), codegen


@intrinsic
def load_ordered(typing, array, index):
    """``array[index]`` (int64), in the one order that all loads, swaps and raises of this kind have for everybody.

    A swap or a raise of ours before it is seen by all before this load is done, which acquire and release do not give.
    """

    def codegen(context, builder, signature, args):
        place = _pointer(context, builder, signature.args[0], args[0], args[1], _WORD)
        return builder.load_atomic(place, ordering="seq_cst", align=8)

    return types.int64(array, types.int64), codegen


@intrinsic
def swap(typing, array, index, value):
    """Atomic ``array[index] = value`` (int64); returns what was there. In one order: see ``load_ordered``."""

    def codegen(context, builder, signature, args):
        place = _pointer(context, builder, signature.args[0], args[0], args[1], _WORD)
        return builder.atomic_rmw("xchg", place, args[2], "seq_cst")

    return types.int64(array, types.int64, types.int64), codegen


@intrinsic
def raise_to(typing, array, index, value):
    """Atomic ``array[index] = max(array[index], value)`` (int64); returns what was there. In one order: see ``load_ordered``."""

    def codegen(context, builder, signature, args):
        place = _pointer(context, builder, signature.args[0], args[0], args[1], _WORD)
        return builder.atomic_rmw("max", place, args[2], "seq_cst")

    return types.int64(array, types.int64, types.int64), codegen


@intrinsic
def copy_bytes(typing, target, target_index, source, source_index, size):
    """The C library's memcpy between two uint8 arrays (streaming stores of its own end in a fence)."""

    def codegen(context, builder, signature, args):
        to = _pointer(context, builder, signature.args[0], args[0], args[1], _BYTE)
        origin = _pointer(context, builder, signature.args[2], args[2], args[3], _BYTE)
        cgutils.raw_memcpy(builder, to, origin, args[4], ir.Constant(_WORD, 1))
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64, types.int64), codegen
