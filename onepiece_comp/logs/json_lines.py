"""The users of `seq.jsonl` as blocks of columns: scanned by compiled code where it can be, parsed plainly elsewhere.

The first reader of `preprocess.py`. A chunk of whole lines is scanned in a thread (the scanners release Python's
lock); a line that they do not recognise goes to `formats.parse_user_line`, which accepts it or names what is wrong with
it, so both ways give the same blocks and the same errors. Memory: a few chunks per thread, whatever the log's length.
"""

import json
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from onepiece_comp.environment import available_cores
from onepiece_comp.errors import InputError
from onepiece_comp.logs.features import ItemFeatures, Profiles
from onepiece_comp.logs.formats import LONGEST_LINE, parse_user_line, read_item_features, sequence_lines
from onepiece_comp.logs.pickles import load_pickle
from onepiece_comp.logs.user_blocks import EventBlock, block_of, starts_of, user_key

if TYPE_CHECKING:
    from onepiece_comp.logs.json_kernels import FeatureColumns, TokenColumns

CHUNK = 8 << 20
SLACK = 16  # zero bytes behind a buffer, so that the scanners need no check of bounds
_SHORTEST_EVENT = 16  # bytes
_NEWLINE = 10
_USER = re.compile(rb'\s*\[\s*\[\s*([0-9]+|"(?:[^"\\]|\\.)*")')  # with which a line begins
_WORTH_COMPILING = 128 << 20  # below this the plain parser is done before the compiler
_LINES_PER_BLOCK = 4096


class _Scanned(NamedTuple):
    """A stretch of lines that the scanner took."""

    block: EventBlock
    feature_at: np.ndarray  # int64 [E], position of each event's features in the chunk
    odd: np.ndarray  # int64 [4], see line_kernels
    line_start: np.ndarray  # int64 [U], in the file


class _Line(NamedTuple):
    """A line that is left to the plain parser."""

    text: bytes
    start: int  # in the file


class _Chunk(NamedTuple):
    """Whole lines, and what came of them in their order."""

    buffer: np.ndarray  # uint8
    pieces: list["_Scanned | _Line"]


def compiler_present() -> bool:
    """Whether the compiled scanners can be used."""
    return find_spec("numba") is not None


def compiler_wanted(path: Path, reader: str) -> bool:
    """Whether `path` is to be scanned: asked for, or with `auto` where it pays."""
    if reader != "auto":
        return reader == "compiled"
    return path.is_file() and path.stat().st_size >= _WORTH_COMPILING and compiler_present()


def read_sequence_blocks(path: Path, matrix: ItemFeatures, profiles: Profiles, *, most_item: int, reader: str = "auto",
                         threads: int = 0, offsets: Path | None = None, span: tuple[int, int] | None = None,
                         ) -> Iterator[EventBlock]:
    """The users of a sequence file, block by block; items without a record in `matrix` take their first event's.

    `reader` is compiled, plain or auto (by the file's size); `threads` 0 = the cores this process may use; `span` =
    the bytes to read (see `line_spans`), else the whole file. InputError with file and line for what is no line, for
    an item beyond `most_item`, and, when `offsets` exists, where it does not fit the file.
    """
    path, stated = Path(path), _stated_offsets(offsets)
    if not path.is_file():
        raise InputError(path, found="no such file", expected="a sequence file, one user per line", do="check the path")
    span = span or (0, path.stat().st_size)
    if compiler_wanted(path, reader):
        pieces = _compiled_blocks(path, matrix, profiles, most_item, threads or available_cores(), span)
    else:
        pieces = _plain_blocks(path, matrix, profiles, most_item, span)
    lines = 0
    for block, starts in pieces:
        if stated is not None:
            told = stated[lines:lines + len(starts)]
            wrong = np.flatnonzero(told != starts[:len(told)])
            if len(wrong) or len(told) < len(starts):
                at = wrong[0] if len(wrong) else len(told)
                raise _offsets_differ(offsets, path, len(stated), lines + int(at) + 1)
        lines += len(starts)
        yield block
    if stated is not None and lines != len(stated):
        raise _offsets_differ(offsets, path, len(stated), lines + 1)


def _stated_offsets(path: Path | None) -> np.ndarray | None:
    if path is None or not path.is_file():
        return None
    stated = load_pickle(path, list)
    if not all(type(offset) is int and 0 <= offset < 1 << 62 for offset in stated):  # never a list in a list
        raise InputError(path, found="a list of other things", expected="the line starts as whole numbers",
                         do="remove the offsets: they are not needed here")
    return np.array(stated, np.int64)


def _offsets_differ(offsets: Path, sequences: Path, stated: int, line: int) -> InputError:
    return InputError(offsets, found=f"{stated} offsets that part from the file at line {line}",
                      expected=f"the line starts of {sequences.name}",
                      do="copy both files again, or remove the offsets: they are not needed here")


class _Place:
    """Where a line stands; its number is counted only when it is printed."""

    def __init__(self, path: Path, start: int):
        self.path, self.start = path, start

    def __str__(self) -> str:
        with open(self.path, "rb") as file:
            before, left = 0, self.start
            while left and (data := file.read(min(CHUNK, left))):
                before, left = before + data.count(b"\n"), left - len(data)
        return f"{self.path}:{before + 1}"


def line_spans(path: Path, count: int) -> list[tuple[int, int]]:
    """At most `count` spans of bytes of about one size, each from the start of a line to the end of one."""
    size = path.stat().st_size
    edges = [0]
    with open(path, "rb") as file:
        for number in range(1, count):
            file.seek(max(edges[-1], size * number // count - 1))
            file.readline(LONGEST_LINE)
            edges.append(min(file.tell(), size))
    edges.append(size)
    return [(start, stop) for start, stop in zip(edges, edges[1:]) if start < stop]


def _parsed(text: bytes, place: _Place, matrix: ItemFeatures, profiles: Profiles, most_item: int) -> EventBlock:
    line = parse_user_line(text, place)
    wrong = next((event.item for event in line.events if not 1 <= event.item <= most_item), None)
    if wrong is not None:
        raise InputError(place, found=f"item {wrong}", expected=f"1 to {most_item}, as in indexer.pkl",
                         do="use the sequences and indexer.pkl of one release together")
    return block_of([line], matrix, profiles)


def _plain_blocks(path: Path, matrix: ItemFeatures, profiles: Profiles, most_item: int, span: tuple[int, int],
                  ) -> Iterator[tuple[EventBlock, np.ndarray]]:
    blocks, starts = [], []
    for _, start, text in sequence_lines(path, *span):
        blocks.append(_parsed(text, _Place(path, start), matrix, profiles, most_item))
        starts.append(start)
        if len(blocks) == _LINES_PER_BLOCK:
            yield joined(blocks), np.array(starts)
            blocks, starts = [], []
    if blocks:
        yield joined(blocks), np.array(starts)


def joined(blocks: list[EventBlock]) -> EventBlock:
    """Consecutive blocks as one."""
    if len(blocks) == 1:
        return blocks[0]
    join = lambda name: np.concatenate([getattr(block, name) for block in blocks])
    lengths = lambda name: starts_of(np.concatenate([np.diff(getattr(block, name)) for block in blocks]))
    return EventBlock(lengths("user_start"), join("item"), join("action"), join("time_seconds"), lengths("token_start"),
                      join("token"), join("profile_place"), join("user"))


def _chunks(path: Path, span: tuple[int, int]) -> Iterator[tuple[int, np.ndarray, int]]:
    """(offset in the file, bytes of whole lines with slack behind them, their number) of each chunk."""
    with open(path, "rb", buffering=0) as file:
        offset, left, position = span[0], np.empty(0, np.uint8), file.seek(span[0])
        while position < span[1] or len(left):
            buffer = np.empty(max(CHUNK, 2 * len(left)) + 1 + SLACK, np.uint8)
            buffer[:len(left)] = left
            room = memoryview(buffer)[len(left):min(len(buffer) - 1 - SLACK, len(left) + span[1] - position)]
            got = file.readinto(room)
            filled, position = len(left) + got, position + got
            if not got:  # the last line has no end
                position, buffer[filled] = span[1], _NEWLINE
                filled += 1
            end = _behind_last_line(buffer, filled)
            if not end and filled > LONGEST_LINE:
                raise InputError(_Place(path, offset), found=f"a line of more than {LONGEST_LINE >> 20} MiB",
                                 expected="one user per line", do="check that this is a sequence file")
            left = buffer[end:filled].copy()
            buffer[end:end + SLACK] = buffer[-1] = 0
            if end:
                yield offset, buffer, end
            offset += end


def _behind_last_line(buffer: np.ndarray, filled: int) -> int:
    """The position behind the last line end of `buffer[:filled]`, 0 if there is none."""
    step = 1 << 15
    for stop in range(filled, 0, -step):
        ends = np.flatnonzero(buffer[max(0, stop - step):stop] == _NEWLINE)
        if len(ends):
            return max(0, stop - step) + int(ends[-1]) + 1
    return 0


def feature_columns(ids_and_sizes: list[tuple[str, int]], ignored: frozenset[str] = frozenset(),
                    ) -> "FeatureColumns":
    """The columns of features by their numbers, for the scanners."""
    from onepiece_comp.logs.json_kernels import IGNORED, UNSEEN, FeatureColumns

    numbers = [int(fid) for fid in (*(fid for fid, _ in ids_and_sizes), *ignored)]
    column_of = np.full(max(numbers, default=0) + 1, UNSEEN, np.int64)
    column_of[[int(fid) for fid in ignored]] = IGNORED
    column_of[[int(fid) for fid, _ in ids_and_sizes]] = np.arange(len(ids_and_sizes))
    return FeatureColumns(column_of, np.array([size for _, size in ids_and_sizes], np.int64))


def scannable(*feature_ids: str) -> bool:
    """Whether features can be told by small numbers, as the competition's are; else the plain parser reads all."""
    from onepiece_comp.logs.json_kernels import MOST_FEATURES

    return len(feature_ids) <= MOST_FEATURES and all(
        fid.isascii() and fid.isdigit() and len(fid) <= 6 and str(int(fid)) == fid for fid in feature_ids)


def _compiled_blocks(path: Path, matrix: ItemFeatures, profiles: Profiles, most_item: int, threads: int,
                     span: tuple[int, int]) -> Iterator[tuple[EventBlock, np.ndarray]]:
    items, users = matrix.columns(), profiles.columns()
    if not (scannable(*items, *matrix.ignored) and scannable(*users)):
        yield from _plain_blocks(path, matrix, profiles, most_item, span)
        return
    from onepiece_comp.logs.json_kernels import TokenColumns, take_features

    item_columns = feature_columns(list(items.items()), matrix.ignored)
    user_columns = TokenColumns(feature_columns([(fid, size) for fid, (size, _) in users.items()]),
                                np.array([offset for _, offset in users.values()], np.int64), profiles.most)
    for chunk in _in_order(_chunks(path, span), lambda *part: _scan(*part, most_item, item_columns, user_columns),
                           threads):
        blocks, starts = [], []
        for piece in chunk.pieces:
            if isinstance(piece, _Line):
                if piece.text.strip():
                    blocks.append(_parsed(piece.text, _Place(path, piece.start), matrix, profiles, most_item))
                    starts.append(np.array([piece.start]))
                continue
            unknown = np.flatnonzero(~matrix.recorded[piece.block.item])
            if len(unknown):
                new, first = np.unique(piece.block.item[unknown], return_index=True)
                odd = np.zeros(2, np.int64)
                take_features(chunk.buffer, piece.feature_at[unknown[first]], new, item_columns, matrix.values, odd)
                matrix.recorded[new] = True
                matrix.count_odd(odd)
            profiles.count_odd(piece.odd)
            blocks.append(piece.block)
            starts.append(piece.line_start)
        if blocks:
            yield joined(blocks), np.concatenate(starts)


def _in_order(parts: Iterator[tuple], work, threads: int) -> Iterator[_Chunk]:
    """`work` of each part in threads, results in order, at most two parts ahead per thread."""
    waiting: list[Future] = []
    with ThreadPoolExecutor(threads) as pool:
        try:
            for part in parts:
                waiting.append(pool.submit(work, *part))
                if len(waiting) > 2 * threads:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def _user_keys(buffer: np.ndarray, line_start: np.ndarray) -> np.ndarray:
    """`user_key` of the user that begins each scanned line, int64 [U]."""
    found = (_USER.match(buffer, start)[1] for start in line_start.tolist())
    return np.fromiter((user_key(json.loads(user)) for user in found), np.int64, len(line_start))


def _scan(offset: int, buffer: np.ndarray, end: int, most_item: int, item_columns: "FeatureColumns",
          user_columns: "TokenColumns") -> _Chunk:
    """Scan a chunk of whole lines that begins at `offset` in the file."""
    from onepiece_comp.logs.json_kernels import EventColumns, LineColumns, count_lines, scan_lines

    room, most_lines = end // _SHORTEST_EVENT + 1, count_lines(buffer, end)
    numbers = lambda count: np.empty(count, np.int64)
    held = EventColumns(numbers(room), np.empty(room, np.int8), numbers(room), numbers(room), np.empty(0, np.int32),
                        np.zeros(2, np.int64))
    token, pieces, at = np.empty(end // 2 + 1, np.int32), [], 0
    while at < end:
        lines, odd = LineColumns(*(numbers(most_lines) for _ in LineColumns._fields)), np.zeros(4, np.int64)
        users, events, tokens, stopped = scan_lines(
            buffer, at, end, most_item, item_columns, user_columns, held, token, lines, odd)
        if users:
            start, line_start = lambda ends: np.concatenate([[0], ends[:users]]), lines.line_start[:users]
            block = EventBlock(start(lines.events_until), held.item[:events].copy(), held.action[:events].copy(),
                               held.time_seconds[:events].copy(), start(lines.tokens_until), token[:tokens].copy(),
                               lines.profile_place[:users].copy(), _user_keys(buffer, line_start))
            pieces.append(_Scanned(block, held.feature_at[:events].copy(), odd, offset + line_start))
        at = stopped
        if at < end:
            behind = at + int(np.argmax(buffer[at:end] == _NEWLINE)) + 1
            pieces.append(_Line(buffer[at:behind].tobytes(), offset + at))
            at = behind
    return _Chunk(buffer, pieces)


def fill_item_features(path: Path, matrix: ItemFeatures, *, most_item: int, reader: str = "auto") -> Iterator[int]:
    """Read `item_feat_dict.json` into `matrix`, yielding how many items are done; InputError for an unknown item."""
    start, done = 0, 0
    if compiler_wanted(path, reader):
        for start, done in _scan_item_features(path, matrix, most_item):
            yield done
    for row, record in read_item_features(path, start):
        if not 1 <= row <= most_item:
            raise InputError(f"{path}: key {row}", found="an item outside indexer.pkl", expected=f"1 to {most_item}",
                             do="use the files of one release together")
        matrix.add(row, record)
        done += 1
        yield done


def _scan_item_features(path: Path, matrix: ItemFeatures, most_item: int) -> Iterator[tuple[int, int]]:
    """(bytes, items) scanned so far, until something is not recognised: the plain reader goes on from there."""
    from onepiece_comp.logs.json_kernels import scan_item_features

    if not scannable(*matrix.columns(), *matrix.ignored):
        return
    columns, odd = feature_columns(list(matrix.columns().items()), matrix.ignored), np.zeros(2, np.int64)
    with open(path, "rb") as file:
        left, position, done = file.read(1), 1, 0
        if left != b"{":
            return
        left = b""
        while data := file.read(CHUNK):
            data = left + data
            buffer = np.frombuffer(data + bytes(SLACK), np.uint8)
            at, entries = scan_item_features(buffer, len(data) - len(data.lstrip(b" ")), len(data), most_item, columns,
                                             matrix.values, matrix.recorded, odd)
            matrix.count_odd(odd)
            odd[:] = 0
            position, done, left = position + at, done + entries, data[at:]
            yield position, done
            if not entries:
                return
