"""Compiled byte scanner of embedding tables as JSON lines; needs numba, `embedding_blocks.py` does without.

It accepts exactly `{"anonymous_cid": id, "emb": [numbers]}` with vectors of the width asked for, and stops before the
first line of anything else, about which the plain parser decides. Numbers come out as `float32(float(text))`, bit for
bit: where the quick conversion cannot prove that, the line is left to the plain parser too. Positions are offsets
into a buffer whose last byte is a newline; -1 = not recognised.
"""

import numba
import numpy as np

_compiled = numba.njit(nogil=True, cache=True, boundscheck=False)

_NEWLINE, _SPACE, _TAB, _RETURN = 10, 32, 9, 13
_QUOTE, _PLUS, _COMMA, _MINUS, _DOT, _ZERO, _NINE, _COLON = 34, 43, 44, 45, 46, 48, 57, 58
_OPEN_LIST, _CLOSE_LIST, _OPEN, _CLOSE, _SMALL_E, _LARGE_E = 91, 93, 123, 125, 101, 69
_ID_KEY = np.frombuffer(b'"anonymous_cid"', np.uint8)
_VECTOR_KEY = np.frombuffer(b'"emb"', np.uint8)
_POWER = np.array([float(f"1e{n}") for n in range(23)])  # exact in float64 up to 1e22
_FULL = np.uint64(10 ** 18)  # a mantissa of 19 digits: one more might not fit 64 bits
_SLACK = 2.0 ** -49  # sixteen roundings of float64; the conversion below makes at most four


@_compiled
def _skip(buffer, at):
    while buffer[at] == _SPACE or buffer[at] == _TAB or buffer[at] == _RETURN:
        at += 1
    return at


@_compiled
def _to_float32(mantissa, exponent):
    """mantissa * 10 ** exponent as float32(float64) would round it; NaN where that is not certain."""
    value = np.float64(mantissa)
    exact = mantissa <= np.uint64(1 << 53) and -22 <= exponent <= 22
    if exponent < -44 or exponent > 44:
        return np.float32(np.nan)
    while exponent < 0:
        step = min(-exponent, 22)
        value /= _POWER[step]
        exponent += step
    while exponent > 0:
        step = min(exponent, 22)
        value *= _POWER[step]
        exponent -= step
    result = np.float32(value)
    if not exact and np.float32(value * (1.0 + _SLACK)) != np.float32(value * (1.0 - _SLACK)):
        return np.float32(np.nan)
    return result if np.isfinite(result) else np.float32(np.nan)


@_compiled
def _exponent(buffer, at):
    """(value, position behind) of what follows the letter e."""
    negative = buffer[at] == _MINUS
    if negative or buffer[at] == _PLUS:
        at += 1
    first, value = at, np.int64(0)
    while _ZERO <= buffer[at] <= _NINE:
        value = value * 10 + (buffer[at] - _ZERO)
        at += 1
        if at - first > 4:
            return np.int64(0), -1
    return (-value if negative else value), (at if at > first else -1)


@_compiled
def _number(buffer, at):
    """(float32, position behind) of a JSON number."""
    negative = buffer[at] == _MINUS
    if negative:
        at += 1
    mantissa, exponent, first = np.uint64(0), np.int64(0), at
    while _ZERO <= buffer[at] <= _NINE and mantissa < _FULL:
        mantissa = mantissa * np.uint64(10) + np.uint64(buffer[at] - _ZERO)
        at += 1
    if at == first or (buffer[first] == _ZERO and at - first > 1):
        return np.float32(0), -1
    whole = buffer[at] != _DOT
    if not whole:
        at += 1
        first = at
        digit = np.uint64(buffer[at]) - np.uint64(_ZERO)  # wraps around below 0: one comparison, not two
        while digit <= np.uint64(9) and mantissa < _FULL:
            mantissa = mantissa * np.uint64(10) + digit
            at += 1
            digit = np.uint64(buffer[at]) - np.uint64(_ZERO)
        exponent = np.int64(first - at)
        while _ZERO <= buffer[at] <= _NINE:  # beyond 19 digits the value moves by less than the slack
            at += 1
        if at == first:
            return np.float32(0), -1
    if buffer[at] == _SMALL_E or buffer[at] == _LARGE_E:
        power, at = _exponent(buffer, at + 1)
        if at < 0:
            return np.float32(0), -1
        whole = False
        exponent += power
    value = np.float32(0) if mantissa == np.uint64(0) else _to_float32(mantissa, exponent)
    if np.isnan(value):
        return value, -1
    return (-value if negative and not (whole and value == 0) else value), at


@_compiled
def _key(buffer, at, key):
    """The position of the value of `"key": `."""
    for byte in key:
        if buffer[at] != byte:
            return -1
        at += 1
    at = _skip(buffer, at)
    return _skip(buffer, at + 1) if buffer[at] == _COLON else -1


@_compiled
def _id(buffer, at):
    """(creative id, position behind) of a number or a number in quotes."""
    quoted = buffer[at] == _QUOTE
    if quoted:
        at += 1
    first, value = at, np.int64(0)
    while _ZERO <= buffer[at] <= _NINE:
        value = value * 10 + (buffer[at] - _ZERO)
        at += 1
        if at - first > 18:
            return np.int64(0), -1
    if at == first or (buffer[first] == _ZERO and at - first > 1) or (quoted and buffer[at] != _QUOTE):
        return np.int64(0), -1
    return value, _skip(buffer, at + quoted)


@_compiled
def _vector(buffer, at, row):
    """The position behind a list of as many numbers as `row` has places, which it fills."""
    if buffer[at] != _OPEN_LIST:
        return -1
    at += 1
    for i in range(len(row)):
        value, at = _number(buffer, _skip(buffer, at))
        if at < 0:
            return -1
        row[i] = value
        at = _skip(buffer, at)
        if buffer[at] != (_COMMA if i + 1 < len(row) else _CLOSE_LIST):
            return -1
        at += 1
    return _skip(buffer, at)


@_compiled
def _record(buffer, at, row):
    """(creative id, has a vector, position of the newline) of one line."""
    at = _skip(buffer, at)
    if buffer[at] != _OPEN:
        return np.int64(0), False, -1
    at = _key(buffer, _skip(buffer, at + 1), _ID_KEY)
    if at < 0:
        return np.int64(0), False, -1
    creative_id, at = _id(buffer, at)
    if at < 0:
        return creative_id, False, -1
    there = buffer[at] == _COMMA
    if there:
        at = _key(buffer, _skip(buffer, at + 1), _VECTOR_KEY)
        if at >= 0:
            at = _vector(buffer, at, row)
    if at < 0 or buffer[at] != _CLOSE:
        return creative_id, there, -1
    at = _skip(buffer, at + 1)
    return creative_id, there, (at if buffer[at] == _NEWLINE else -1)


@_compiled
def scan_vectors(buffer, at, creative_id, vectors, filled):
    """Read lines from `at` on: (position reached, lines, places filled, records without a vector).

    `buffer` uint8, its last byte a newline; `creative_id` int64 [n] and `vectors` float32 [n, w] are filled from place
    `filled` on. Ends at the buffer's end, at a line of another form, or where the places are full.
    """
    lines, empty = 0, 0
    while at < len(buffer) and filled < len(vectors):
        value, there, end = _record(buffer, at, vectors[filled])
        if end < 0:
            break
        if there:
            creative_id[filled] = value
            filled += 1
        else:
            empty += 1
        at, lines = end + 1, lines + 1
    return at, lines, filled, empty
