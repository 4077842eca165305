"""Compiled byte scanners of the competition's JSON: sequence lines, and the item features within them.

They accept exactly the form that the organisers' files have and stop at the first byte of anything else, so that the
plain parser decides about it: what comes out is what `formats.parse_user_line` gives, or nothing. Needs numba, which
the platform's container has; `json_lines.py` does without where it is missing. All positions are offsets into a buffer
of bytes whose last is zero; a parser returns -1 when it does not recognise what it sees, and recognises nothing there.
"""

from typing import NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

_compiled = numba.njit(nogil=True, cache=True, boundscheck=False)
_inlined = numba.njit(nogil=True, cache=True, boundscheck=False, inline="always")
_SPACE, _QUOTE, _COMMA, _COLON, _ZERO, _NINE = 32, 34, 44, 58, 48, 57
_BACKSLASH, _NEWLINE, _RETURN = 92, 10, 13
_OPEN_LIST, _CLOSE_LIST, _OPEN, _CLOSE = 91, 93, 123, 125
UNSEEN, IGNORED = -1, -2  # columns of a feature outside the schema, and of one that is left out on purpose
MOST_FEATURES = 62  # columns that one bit mask can hold
_DIGITS = 17  # a number of more is left to the plain parser
_U = np.uint64
_ZEROS, _TO_TEN, _HIGH = _U(0x3030303030303030), _U(0x7676767676767676), _U(0x8080808080808080)
_KEY, _KEY_MASK = _U(0x20_3A_22_30_30_30_22), _U(0xFF_FF_FF_F0_F0_F0_FF)  # `"000": ` and what a three-digit key shares
_KEY_CARRY, _KEY_DIGITS = _U(0x06_06_06_00), _U(0xF0_F0_F0_00)  # carries where a digit is above nine


class FeatureColumns(NamedTuple):
    """Where features go."""

    column_of: np.ndarray  # int64, by feature number: a column, UNSEEN or IGNORED
    size: np.ndarray  # int64, of each column's vocabulary


class TokenColumns(NamedTuple):
    """Where the tokens of a profile come from."""

    columns: FeatureColumns
    offset: np.ndarray  # int64, of each column in the joint vocabulary
    most: int  # values of a list that are kept


class EventColumns(NamedTuple):
    """Room for the events of a chunk."""

    item: np.ndarray  # int64
    action: np.ndarray  # int8
    time_seconds: np.ndarray  # int64
    feature_at: np.ndarray  # int64, where the event's features stand
    none: np.ndarray  # int32, empty: features are found here and read later
    odd: np.ndarray  # int64 [2], not counted here


class LineColumns(NamedTuple):
    """Room for what is known of each line, a user, int64 each."""

    events_until: np.ndarray  # its end
    tokens_until: np.ndarray
    profile_place: np.ndarray  # events before the profile record, or -1
    line_start: np.ndarray


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
        number = np.int64(_U(100) * (word >> _U(8) & _U(15)) + _U(10) * (word >> _U(16) & _U(15))
                          + (word >> _U(24) & _U(15)))
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


@_compiled
def _item_features(buffer, at, columns, values, odd):
    """Position behind an object of whole-number features; where `values` is not empty it fills what is 0 there.

    `odd` counts [features outside the schema, values outside the vocabulary].
    """
    if buffer[at] != _OPEN:
        return -1
    at, met = skip(buffer, at + 1), np.int64(0)
    if buffer[at] == _CLOSE:
        return at + 1
    while True:
        number, at = feature_id(buffer, at)
        if at < 0:
            return -1
        value, at = whole_number(buffer, at)
        if at < 0:
            return -1
        column = columns.column_of[number] if number < len(columns.column_of) else UNSEEN
        if column >= 0:
            if met >> column & 1:
                return -1  # a key that stands twice: the plain parser takes the last
            met |= np.int64(1) << column
        if len(values):
            if column >= 0:
                if not 0 < value < columns.size[column]:
                    odd[1] += 1
                elif values[column] == 0:
                    values[column] = value
            elif column == UNSEEN:
                odd[0] += 1
        at = skip(buffer, at)
        if buffer[at] == _CLOSE:
            return at + 1
        if buffer[at] != _COMMA:
            return -1
        at = skip(buffer, at + 1)


@_compiled
def _profile(buffer, at, users, token, tokens, odd):
    """(position behind a profile's object, tokens so far); `users` are TokenColumns.

    `odd` counts [features outside the schema, values outside the vocabulary, lists, values beyond the most].
    """
    columns = users.columns
    first, met = tokens, np.int64(0)
    if buffer[at] != _OPEN:
        return -1, tokens
    at = skip(buffer, at + 1)
    if buffer[at] == _CLOSE:
        return at + 1, tokens
    while True:
        number, at = feature_id(buffer, at)
        if at < 0:
            return -1, first
        column = columns.column_of[number] if number < len(columns.column_of) else UNSEEN
        if column >= 0:
            if met >> column & 1:
                return -1, first
            met |= np.int64(1) << column
        else:
            odd[0] += 1
        listed, taken = buffer[at] == _OPEN_LIST, 0
        if listed:
            at = skip(buffer, at + 1)
            odd[2] += column >= 0
        while not (listed and taken == 0 and buffer[at] == _CLOSE_LIST):
            value, at = whole_number(buffer, at)
            if at < 0:
                return -1, first
            if column >= 0 and taken < users.most:
                if 0 < value < columns.size[column]:
                    token[tokens] = users.offset[column] + value
                    tokens += 1
                else:
                    odd[1] += 1
            elif column >= 0:
                odd[3] += 1
            taken += 1
            at = skip(buffer, at)
            if not listed or buffer[at] == _CLOSE_LIST:
                break
            if buffer[at] != _COMMA:
                return -1, first
            at = skip(buffer, at + 1)
        at = skip(buffer, at + 1 if listed else at)
        if buffer[at] == _CLOSE:
            token[first:tokens].sort()
            return at + 1, tokens
        if buffer[at] != _COMMA:
            return -1, first
        at = skip(buffer, at + 1)


@_compiled
def _user(buffer, at):
    """Position behind a user: a whole number, or a string without escapes."""
    if buffer[at] != _QUOTE:
        return whole_number(buffer, at)[1]
    at += 1
    while buffer[at] != _QUOTE:
        if buffer[at] == _BACKSLASH or buffer[at] < _SPACE or buffer[at] > 126:
            return -1
        at += 1
    return at + 1


@_compiled
def _event(buffer, at, most_item, columns, events, count):
    """Position behind `item, null, features, action, time`, which fill place `count` of `events`."""
    value, at = whole_number(buffer, at)
    if at < 0 or value < 1 or value > most_item:
        return -1
    events.item[count] = value
    at = comma(buffer, null(buffer, comma(buffer, at)))
    events.feature_at[count] = at
    at = _item_features(buffer, at, columns, events.none, events.odd) if buffer[at] == _OPEN else null(buffer, at)
    at = comma(buffer, at)
    if 48 <= buffer[at] <= 50:
        events.action[count] = buffer[at] - _ZERO
        at += 1
    else:
        events.action[count], at = 3, null(buffer, at)
    value, at = whole_number(buffer, comma(buffer, at))
    if at < 0 or value >= 1 << 40:
        return -1
    events.time_seconds[count] = value
    return at


@_compiled
def _profile_record(buffer, at, users, token, tokens, odd):
    """(position behind `null, features, null, null, time`, tokens so far)."""
    at = comma(buffer, null(buffer, at))
    if buffer[at] == _OPEN:
        at, tokens = _profile(buffer, at, users, token, tokens, odd)
    else:
        at = null(buffer, at)
    for _ in range(2):
        at = null(buffer, comma(buffer, at))
    at = comma(buffer, at)
    return (whole_number(buffer, at)[1] if buffer[at] != 110 else null(buffer, at)), tokens


@_compiled
def _same(buffer, one, other, length):
    for i in range(length):
        if buffer[one + i] != buffer[other + i]:
            return False
    return True


@_compiled
def _line(buffer, at, most_item, columns, users, events, count, token, tokens, odd):
    """(position behind a line's last record, events so far, tokens so far, events before the profile or -1)."""
    place, first, user_start, user_length = np.int64(-1), count, -1, 0
    if buffer[at] != _OPEN_LIST:
        return -1, count, tokens, place
    at = skip(buffer, at + 1)
    while True:
        start = skip(buffer, at + 1)
        at = _user(buffer, start) if buffer[at] == _OPEN_LIST else -1
        if user_start < 0:
            user_start, user_length = start, at - start
        if at < 0 or at - start != user_length or not _same(buffer, start, user_start, user_length):
            return -1, count, tokens, place
        at = comma(buffer, at)
        if at < 0:
            return -1, count, tokens, place
        if buffer[at] == 110:
            if place >= 0 or null(buffer, at) < 0:
                return -1, count, tokens, place
            place = count - first
            at, tokens = _profile_record(buffer, at, users, token, tokens, odd)
        else:
            at = _event(buffer, at, most_item, columns, events, count)
            count += 1
        if at >= 0:
            at = skip(buffer, at)
        if at < 0 or buffer[at] != _CLOSE_LIST:
            return -1, count, tokens, place
        at = skip(buffer, at + 1)
        if buffer[at] == _CLOSE_LIST:
            return at + 1, count, tokens, place
        if buffer[at] != _COMMA:
            return -1, count, tokens, place
        at = skip(buffer, at + 1)


@_compiled
def count_lines(buffer, end):
    """Line ends in `buffer[:end]`."""
    lines = 0
    for at in range(end):
        lines += buffer[at] == _NEWLINE
    return lines


@_compiled
def scan_lines(buffer, at, end, most_item, columns, users, events, token, lines, odd):
    """Scan whole lines from `at`; returns (users, events, tokens, position of what was not scanned or `end`).

    `buffer[end:]` must hold a few zero bytes, so that no check of bounds is needed. `events` (EventColumns), `token`
    and `lines` (LineColumns) have room for the worst case; `columns` are FeatureColumns, `users` TokenColumns; `odd` as
    in `_profile`.
    """
    user, count, tokens = 0, 0, 0
    kept = odd.copy()
    while at < end:
        next_at, next_count, next_tokens, place = _line(
            buffer, at, most_item, columns, users, events, count, token, tokens, odd)
        if next_at >= 0:
            next_at = skip(buffer, next_at)
            next_at += buffer[next_at] == _RETURN
        if next_at < 0 or buffer[next_at] != _NEWLINE:
            odd[:] = kept
            return user, count, tokens, at
        count, tokens = next_count, next_tokens
        kept[:] = odd
        lines.events_until[user], lines.tokens_until[user] = count, tokens
        lines.profile_place[user], lines.line_start[user] = place, at
        user += 1
        at = next_at + 1
    return user, count, tokens, at


@_compiled
def take_features(buffer, feature_at, row, columns, values, odd):
    """Fill `values[row[i]]` from the object at `feature_at[i]`, scanned before; null has none."""
    for i in range(len(row)):
        if buffer[feature_at[i]] == _OPEN:
            _item_features(buffer, feature_at[i], columns, values[row[i]], odd)


@_compiled
def scan_item_features(buffer, at, end, most_item, columns, values, recorded, odd):
    """Scan `"re-id": {features}, ...` from `at`; returns (position of what was not scanned, entries scanned).

    An entry is taken when the byte behind it is seen to be a comma, so the last one is always left over.
    """
    entries, none = 0, values[0, :0]
    while at < end:
        start = at
        number, at = feature_id(buffer, at)
        if at < 0 or number < 1 or number > most_item:
            return start, entries
        begin = at
        at = _item_features(buffer, begin, columns, none, odd)
        if at < 0:
            return start, entries
        at = skip(buffer, at)
        if at >= end or buffer[at] != _COMMA:
            return start, entries
        _item_features(buffer, begin, columns, values[number], odd)
        recorded[number] = True
        entries += 1
        at = skip(buffer, at + 1)
    return at, entries
