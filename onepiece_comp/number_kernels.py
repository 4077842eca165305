"""Compiled readers of the smallest parts of JSON: whole numbers, keys that are numbers, null, commas.

Used by `line_kernels.py`. Numbers are read eight bytes at a time, without a branch per digit: which bytes are digits,
how many stand in front, what they are worth, in a dozen operations. All positions are offsets into a buffer of bytes
with sixteen zero bytes behind what counts; -1 is returned for what is not recognised, and recognised nowhere.
"""

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

_compiled = numba.njit(nogil=True, cache=True, boundscheck=False)
_inlined = numba.njit(nogil=True, cache=True, boundscheck=False, inline="always")

_SPACE, _QUOTE, _COMMA, _COLON, _ZERO, _NINE = 32, 34, 44, 58, 48, 57
_DIGITS = 17  # a number of more is left to the plain parser
_U = np.uint64
_ZEROS, _TO_TEN, _HIGH = _U(0x3030303030303030), _U(0x7676767676767676), _U(0x8080808080808080)
_KEY, _KEY_MASK = _U(0x20_3A_22_30_30_30_22), _U(0xFF_FF_FF_F0_F0_F0_FF)  # `"000": ` and what a three-digit key shares
_KEY_CARRY, _KEY_DIGITS = _U(0x06_06_06_00), _U(0xF0_F0_F0_00)  # carries where a digit is above nine


@intrinsic
def _word(_, buffer, at):
    """The eight bytes from `at` as a number, the first of them lowest."""
    def load(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.gep(array.data, [arguments[1]])
        return builder.load(builder.bitcast(pointer, ir.IntType(64).as_pointer()), align=1)

    return numba.uint64(buffer, numba.int64), load


@intrinsic
def _low_zeros(_, word):
    """Zero bits below the lowest set one; 64 of zero."""
    def count(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return numba.int64(numba.uint64), count


@_inlined
def skip(buffer, at):
    """The position of what follows spaces."""
    while buffer[at] == _SPACE:
        at += 1
    return at


@_inlined
def _digits(word):
    """Decimal digits at the start of eight bytes."""
    rest = word ^ _ZEROS
    return _low_zeros(((rest + _TO_TEN) | rest) & _HIGH) >> 3


@_inlined
def _value(word, digits):
    """The number that the first `digits` (1 to 8) of eight bytes write: pairs, then fours, then all eight at once."""
    eight = (word ^ _ZEROS) << _U(64 - 8 * digits)
    pairs = ((eight * _U(10)) + (eight >> _U(8))) & _U(0x00FF00FF00FF00FF)
    fours = ((pairs * _U(100)) + (pairs >> _U(16))) & _U(0x0000FFFF0000FFFF)
    return np.int64((fours * _U(10000) + (fours >> _U(32))) & _U(0xFFFFFFFF))


@_compiled
def _long_number(buffer, at):
    start, value = at, np.int64(0)
    while _ZERO <= buffer[at] <= _NINE:
        value = value * 10 + (buffer[at] - _ZERO)
        at += 1
    return (np.int64(0), -1) if buffer[start] == _ZERO or at - start > _DIGITS else (value, at)


@_inlined
def whole_number(buffer, at):
    """(value, position behind it) of a whole number from 0 without leading zeros."""
    word = _word(buffer, at)
    digits = _digits(word)
    if digits == 8:
        value, at = _long_number(buffer, at)
    elif digits == 0 or (buffer[at] == _ZERO and digits > 1):
        value, at = np.int64(0), -1
    else:
        value, at = _value(word, digits), at + digits
    return value, at


@_inlined
def null(buffer, at):
    """The position behind null."""
    if buffer[at] == 110 and buffer[at + 1] == 117 and buffer[at + 2] == 108 and buffer[at + 3] == 108:
        return at + 4
    return -1


@_inlined
def comma(buffer, at):
    """The position of what follows a comma."""
    at = skip(buffer, at)
    return skip(buffer, at + 1) if buffer[at] == _COMMA else -1


@_inlined
def feature_id(buffer, at):
    """(number, position of the value) of `"number": `."""
    word = _word(buffer, at)
    if (word & _KEY_MASK == _KEY and (word + _KEY_CARRY) & _KEY_DIGITS == _KEY & _KEY_DIGITS
            and buffer[at + 1] != _ZERO and buffer[at + 7] != _SPACE):
        number = np.int64(_U(100) * (word >> _U(8) & _U(15)) + _U(10) * (word >> _U(16) & _U(15)) + (word >> _U(24) & _U(15)))
        at += 7
    else:
        number, at = _other_feature_id(buffer, at)
    return number, at


@_compiled
def _other_feature_id(buffer, at):
    if buffer[at] != _QUOTE:
        return np.int64(0), -1
    number, at = whole_number(buffer, at + 1)
    if at < 0 or buffer[at] != _QUOTE:
        return np.int64(0), -1
    at = skip(buffer, at + 1)
    return number, (skip(buffer, at + 1) if buffer[at] == _COLON else -1)
