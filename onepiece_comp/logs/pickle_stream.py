"""The entries of one pickled dict, handed out while the file is read: `emb_81_32.pkl` without the dict in memory.

As strict as `pickles.py` about what a pickle may name. Entries leave as soon as the opcode that would have put them
into the dict is met (SETITEM, SETITEMS); the memo keeps what was stored lately and what was ever used again (the
dtype, the rebuild functions), so memory is bounded by a stretch of the file and not by its length.
"""

import pickle
from collections.abc import Iterator
from pathlib import Path

from onepiece_comp.errors import InputError
from onepiece_comp.logs.pickles import PlainUnpickler, check_keys

_MEMO_BYTES, _MEMO_ENTRIES = 8 << 20, 1 << 16  # a generation of the memo ends at either
_MOST_LINE = 1 << 20  # of a number or a text of protocol 0
_MOST_BYTES, _MOST_OPCODES = 64 << 20, 1 << 23  # between two handouts; Python's own pickler makes one per 1,000 entries


class _Reader:
    """A file that refuses lengths beyond its end before they are allocated, and knows how much was read."""

    def __init__(self, path: Path):
        self._file, self.taken, self._size = open(path, "rb"), 0, path.stat().st_size  # noqa: SIM115, see close

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= self._size - self.taken:
            raise EOFError("the file ends before its pickle does")
        if count > _MOST_BYTES:
            raise pickle.UnpicklingError(f"one piece of {count:,} bytes")
        self.taken += count
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline(_MOST_LINE)
        self.taken += len(line)
        return line

    def close(self) -> None:
        self._file.close()


class _Memo:
    """What a pickle stores for later use: two generations of recent entries, and for good those that were used."""

    def __init__(self, reader: _Reader):
        self._reader, self._begin, self._stored = reader, 0, 0
        self._young: dict[int, object] = {}
        self._old: dict[int, object] = {}
        self._used: dict[int, object] = {}

    def __len__(self) -> int:
        return self._stored

    def __setitem__(self, number: int, value: object) -> None:
        if len(self._young) >= _MEMO_ENTRIES or self._reader.taken - self._begin > _MEMO_BYTES:
            self._old, self._young, self._begin = self._young, {}, self._reader.taken
        self._used.pop(number, None)
        self._young[number] = value
        self._stored += 1

    def __getitem__(self, number: int) -> object:
        if number in self._used:
            return self._used[number]
        value = self._young[number] if number in self._young else self._old.get(number, self)
        if value is self:
            raise pickle.UnpicklingError(f"a second use of entry {number}, which is not stored or was long ago")
        if len(self._used) >= _MEMO_ENTRIES:
            raise pickle.UnpicklingError(f"more than {_MEMO_ENTRIES:,} values that are used twice")
        self._used[number] = value
        return value


class _EntryUnpickler(PlainUnpickler):
    dispatch = dict(PlainUnpickler.dispatch)

    def __init__(self, reader: _Reader, size: int):
        super().__init__(reader, size)
        self._reader, self._ready, self._target = reader, [], None

    def entries(self) -> Iterator[tuple[object, object]]:
        """Run the opcodes as `load` does, yielding the entries of the outermost dict as they come."""
        unframer = pickle._Unframer(self._reader.read, self._reader.readline)
        self.read, self.readline, self.readinto = unframer.read, unframer.readline, unframer.readinto
        self.memo, self.metastack, self.stack, self.proto, self._unframer = _Memo(self._reader), [], [], 0, unframer
        self.append = self.stack.append
        dispatch, read, opcodes, begin = self.dispatch, self.read, 0, 0
        try:
            while True:
                key = read(1)
                if not key:
                    raise EOFError("the file ends before its pickle does")
                dispatch[key[0]](self)
                opcodes += 1
                if self._ready:
                    yield from self._ready
                    self._ready, opcodes, begin = [], 0, self._reader.taken
                elif opcodes > _MOST_OPCODES or self._reader.taken - begin > _MOST_BYTES:
                    raise pickle.UnpicklingError(f"{self._reader.taken - begin:,} bytes without an entry of the dict")
        except pickle._Stop as stop:
            if not isinstance(stop.value, dict) or self._target is not None and stop.value is not self._target:
                raise pickle.UnpicklingError(f"a pickled {type(stop.value).__name__}") from stop
            yield from stop.value.items()  # those that came by another opcode

    def _hand_out(self, entries: list) -> bool:
        """Whether the dict on the stack is the outermost one, so that its entries leave instead of entering it."""
        if self.metastack or len(self.stack) != 1 or not isinstance(self.stack[0], dict):
            return False
        if len(entries) % 2:
            raise pickle.UnpicklingError("a key without a value")
        self._target = self.stack[0]
        self._ready.extend(zip(entries[::2], entries[1::2]))
        return True

    def load_setitem(self) -> None:
        entry = self.stack[-2:]
        del self.stack[-2:]
        check_keys(entry[:1])
        if not self._hand_out(entry):
            self.stack[-1][entry[0]] = entry[1]
    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        entries = self.pop_mark()
        check_keys(entries[::2])
        if not self._hand_out(entries):
            for i in range(0, len(entries), 2):
                self.stack[-1][entries[i]] = entries[i + 1]
    dispatch[pickle.SETITEMS[0]] = load_setitems


def stream_dict(path: Path) -> Iterator[tuple[object, object]]:
    """The (key, value) pairs of a pickled dict in the order of the file; a key that stands twice comes twice.

    InputError for anything that `load_pickle` would refuse, for a file that is cut short (after the entries that are
    whole), and for a value that is used again further than some megabytes behind its first place.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, found="no such file", expected="a pickled dict", do="check the path")
    reader = _Reader(path)
    try:
        yield from _EntryUnpickler(reader, path.stat().st_size).entries()
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError, ValueError,
            ImportError, MemoryError, OverflowError, RecursionError) as error:  # what broken pickle bytes raise
        raise InputError(path, found=f"a pickle that cannot be admitted ({error or type(error).__name__})",
                         expected="a dict of creative ids and numeric vectors",
                         do="if it is cut short, copy it again; do not open it with pickle.load") from error
    finally:
        reader.close()
