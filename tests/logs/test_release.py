"""The public Parquet release: read as a plain loop over its rows would, refused by name, written in parts."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from onepiece_comp.config import PreprocessConfig
from onepiece_comp.errors import InputError
from onepiece_comp.logs import parquet_tables
from onepiece_comp.logs.features import Feature, ItemFeatures, Profiles
from onepiece_comp.logs.formats import Candidate, Event, Index, SequenceWriter, UserLine, read_sequences, write_index
from onepiece_comp.logs.json_lines import joined
from onepiece_comp.logs.open_log import open_log
from onepiece_comp.logs.release_writer import PartWriter, write_candidate_table
from onepiece_comp.logs.user_blocks import block_of
from onepiece_comp.stages.preprocess import preprocess

ITEMS = 50
ITEM_COLUMNS = [Feature("100", 7, 0), Feature("121", 40, 7)]
USER_COLUMNS = [Feature("103", 20, 0), Feature("106", 15, 20)]
SEQ = pa.schema([("user_id", pa.int64()), ("seq", pa.list_(pa.struct(
    [("item_id", pa.int64()), ("action_type", pa.int32()), ("timestamp", pa.int64())])))])
USERS = pa.schema([("user_id", pa.int64()), ("103", pa.int64()), ("106", pa.list_(pa.int64()))])
RECORDS = pa.schema([("item_id", pa.int64()), *((fid, pa.int64()) for fid in ("100", "121", "111", "999"))])


def put(folder, schema, *parts):
    """Rows as the Parquet files of a table, without the code under test."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(parts):
        table = pa.Table.from_pylist(rows, schema)
        parquet.write_table(table, folder / f"part-{number:05d}.snappy.parquet", row_group_size=max(1, len(rows) // 2))


def event(item=3, action=0, time=5):
    return {"item_id": item, "action_type": action, "timestamp": time}


@pytest.fixture()
def release(tmp_path):
    """A release of random rows with every corner, and what a plain loop makes of it."""
    rng = np.random.default_rng(0)
    order = rng.permutation(np.arange(1, 46))
    records = [{"item_id": int(item), **{fid: int(rng.integers(0, size + 3)) if rng.random() < 0.7 else None
                                         for fid, size in (("100", 7), ("121", 40), ("111", 50), ("999", 2))}}
               for item in [*order, 7, 7, 9, *order[:5]]]  # some twice, within a file and across files
    users = []
    for user in rng.permutation(np.arange(1, 90)):
        values = [None if rng.random() < 0.1 else int(v) for v in rng.integers(0, 18, rng.integers(0, 7))]
        users.append({"user_id": int(user), "103": int(rng.integers(0, 23)) if rng.random() < 0.8 else None,
                      "106": values if rng.random() < 0.8 else None})
    rows = []
    for user in rng.permutation(np.arange(1, 100)):
        events = [event(int(rng.integers(1, ITEMS + 1)), [0, 1, 2, None][rng.integers(0, 4)],
                        int(rng.integers(0, 1 << 31)))
                  for _ in range(int(rng.integers(0, 12)))]
        rows.append({"user_id": int(user), "seq": events if events or rng.random() < 0.5 else None})
    put(tmp_path / "seq", SEQ, rows[:40], [], rows[40:41], rows[41:])
    put(tmp_path / "user_feat", USERS, users[:13], users[13:])
    put(tmp_path / "item_feat", RECORDS, records[:20], records[20:])
    (tmp_path / "seq" / "_SUCCESS").touch()
    values = {fid: {i: i for i in range(1, 9)} for fid in ("100", "103", "106", "121")}
    write_index(tmp_path / "indexer.pkl", Index({f"user_{i}": i for i in range(1, 100)},
                                                {10 ** 10 + i: i for i in range(1, 51)}, values))
    return tmp_path, records, {user["user_id"]: user for user in users}, rows


def plain_lines(records, users, rows):
    """What the rows say, in the words of the JSON lines."""
    record = {}
    for row in records:
        for fid, value in row.items():
            if fid != "item_id" and value:
                record.setdefault(row["item_id"], {}).setdefault(fid, value)
    for row in rows:
        profile = {fid: value for fid, value in users.get(row["user_id"], {}).items() if fid != "user_id"
                   and value is not None}
        events = [Event(e["item_id"], record.get(e["item_id"], {}), e["action_type"],
                        e["timestamp"]) for e in row["seq"] or []]
        stands = row["user_id"] in users or not events
        yield UserLine(row["user_id"], profile, max((e.time for e in events), default=0) if stands else None, events,
                       len(events) if stands else None)


def matrix_and_profiles():
    return ItemFeatures(ITEM_COLUMNS, ITEMS + 1, ignored={"111"}), Profiles(USER_COLUMNS, 4)


def same_block(one, other):
    for name in one._fields:
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype and np.array_equal(a, b), name


@pytest.mark.parametrize("size", [4 << 20, 300])
def test_users_are_read_as_a_loop_over_the_rows_reads_them(release, size, monkeypatch):
    monkeypatch.setattr(parquet_tables, "_BATCH_BYTES", size)
    folder, records, users, rows = release
    matrix, profiles = matrix_and_profiles()
    block = joined(list(open_log(folder).blocks(matrix, profiles, most_item=ITEMS, reader="auto", threads=1)))
    plain_matrix, plain_profiles = matrix_and_profiles()
    plain_matrix.recorded[:] = True
    expected = block_of(plain_lines(records, users, rows), plain_matrix, plain_profiles)
    same_block(block, expected._replace(profile_place=np.array(
        [len(row["seq"] or []) if row["user_id"] in users else -1 for row in rows])))
    assert +profiles.odd == +plain_profiles.odd and len(+profiles.odd) == 3
    assert (block.action == 3).any() and len(block.token) > 50


def test_items_are_read_as_record_after_record_and_the_first_decides(release):
    folder, records, _, _ = release
    matrix, _ = matrix_and_profiles()
    done = list(open_log(folder).item_features(matrix, most_item=ITEMS, reader="auto"))
    plain, _ = matrix_and_profiles()
    for row in records:
        plain.add(row["item_id"], {fid: value for fid, value in row.items() if fid != "item_id" and value is not None})
    assert done[-1] == len(records) and len(+matrix.odd) == 2 and not matrix.recorded[50]
    assert np.array_equal(matrix.values, plain.values) and np.array_equal(matrix.recorded, plain.recorded)
    assert +matrix.odd == +plain.odd


def test_lines_say_what_the_rows_say_and_can_be_written_as_json_lines(release, tmp_path):
    folder, *rows = release
    lines = list(open_log(folder).lines())
    assert lines == list(plain_lines(*rows))
    with SequenceWriter(tmp_path) as file:
        for line in lines:
            file.write(line)
    ordered = [line._replace(events=line.events) for line in lines if line.events == sorted(line.events,
        key=lambda e: e.time)]
    read = {line.user: line for line in read_sequences(tmp_path / "seq.jsonl")}
    assert len(read) == len(lines) and all(read[line.user] == line for line in ordered)


def test_parts_of_row_groups_make_the_whole(release):
    folder = release[0]
    log = open_log(folder)
    blocks = [list(log.blocks(*matrix_and_profiles(), most_item=ITEMS, reader="auto", threads=1, part=part))
              for part in [None, *log.parts(5)]]
    assert len(blocks) > 4
    same_block(joined(blocks[0]), joined([block for part in blocks[1:] for block in part]))
    assert len(log.parts(1)) == 4 and log.user_ids().tolist() == [row["user_id"] for row in release[3]]


def test_candidates_survive_writing_and_values_marked_as_cold_are_text(release):
    folder = release[0]
    kept = [Candidate(20_000_000_001, 0, {"100": 3, "121": "1210000077"}), Candidate(20_000_000_009, 1, {}),
            Candidate(20_000_000_005, 2, {"121": 12})]
    write_candidate_table(folder, kept, ["100", "121"])
    assert list(open_log(folder).candidates()) == kept
    row = parquet.read_table(folder / "candidate").to_pylist()[0]
    assert (row["121"] == {"cold_start": 1, "feature_value": "1210000077"}
            and row["100"] == {"cold_start": 0, "feature_value": "3"})


def test_a_part_has_as_many_rows_as_asked_for_whatever_the_row_groups(tmp_path):
    with PartWriter(tmp_path / "table", pa.schema([("number", pa.int64())]), rows_per_part=5, group_rows=3) as table:
        for number in range(12):
            table.add(number)
    files = [parquet.ParquetFile(path) for path in sorted((tmp_path / "table").iterdir())]
    assert [[file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] for file in files] == [[3, 2],
        [3, 2], [2]]
    assert parquet.read_table(tmp_path / "table")["number"].to_pylist() == list(range(12))


def spoil_column(folder, name, kind=None):
    """Drop a column of a table's first file, or give it another type."""
    path = min(folder.glob("*.parquet"))
    table = parquet.read_table(path)
    place = table.schema.names.index(name)
    table = table.set_column(place, name, pa.array(["x"] * len(table))) if kind else table.remove_column(place)
    parquet.write_table(table, path)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-20])


PART = "part-00000.snappy.parquet"
SPOILED = {
    "a missing column": (lambda f: spoil_column(f / "seq", "seq"),
                         ["seq/" + PART, "no columns 'seq'", "there are: user_id"]),
    "another type": (lambda f: spoil_column(f / "user_feat", "103", "text"),
                     ["user_feat/" + PART, "column '103'", "found string", "int64"]),
    "a list of numbers for the events": (lambda f: put(f / "seq",
                                                       pa.schema([("user_id", pa.int64()),
                                                                  ("seq", pa.list_(pa.int64()))]), []),
                                         ["column 'seq'", "found list<element: int64>", "list<struct<item_id int64"]),
    "a file that is cut short": (lambda f: cut_short(f / "item_feat" / PART),
                                 ["item_feat/" + PART, "no readable Parquet"]),
    "a file that is none": (lambda f: (f / "user_feat" / PART).write_text("user_id,103"),
                            ["user_feat/" + PART, "no readable Parquet"]),
    "an empty folder": (lambda f: [path.unlink() for path in (f / "item_feat").iterdir()],
                        ["item_feat", "no .parquet file"]),
    "no folder": (lambda f: shutil.rmtree(f / "user_feat"), ["user_feat", "no such folder"]),
    "an unknown item": (lambda f: put(f / "seq", SEQ,
                                      [{"user_id": 1, "seq": [event()]}] * 3 + [{"user_id": 9,
                                          "seq": [event(), event(51)]}]),
                        ["seq/" + PART + ": row 4", "item 51 in event 1", "1 to 50"]),
    "no item": (lambda f: put(f / "seq", SEQ, [{"user_id": 1, "seq": [None]}]), ["row 1", "item null in event 0"]),
    "an action out of range": (lambda f: put(f / "seq", SEQ, [{"user_id": 1, "seq": [event(action=3)]}]),
                               ["row 1", "action 3", "2 conversion"]),
    "a negative time": (lambda f: put(f / "seq", SEQ, [{"user_id": 1, "seq": [event(time=-1)]}]),
                        ["row 1", "time -1", "Unix seconds"]),
    "a user of no number": (lambda f: put(f / "seq", SEQ, [{"user_id": None, "seq": []}]), ["row 1", "user null"]),
    "a user on two rows": (lambda f: put(f / "user_feat", USERS, [{"user_id": 7}], [{"user_id": 7}]),
                           ["user_feat", "user 7 on two rows"]),
    "a feature that no vocabulary has": (lambda f: put(f / "user_feat", USERS, [{"user_id": 7, "103": 1 << 40}]),
                                         ["column '103'", "no feature value"]),
    "a record of an unknown item": (lambda f: put(f / "item_feat", RECORDS, [{"item_id": 1}, {"item_id": 51}]),
                                    ["item_feat/" + PART + ": row 2", "item 51"]),
}


@pytest.mark.parametrize("case", SPOILED)
@pytest.mark.parametrize("way", ["columns", "lines"])
def test_a_wrong_file_is_refused_with_its_name_and_what_was_found(release, case, way, tmp_path):
    folder, (spoil, words) = release[0], SPOILED[case]
    spoil(folder)
    with pytest.raises(InputError) as caught:
        preprocess(folder, tmp_path / "out", PreprocessConfig()) if way == "columns" else list(open_log(folder).lines())
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("value, words", [("12a", "'12a', not marked as cold"), ("9" * 30, "not marked as cold")])
def test_a_candidate_that_is_known_by_no_number_is_refused(release, value, words):
    kind = pa.struct([("cold_start", pa.int64()), ("feature_value", pa.string())])
    put(release[0] / "candidate", pa.schema([("item_id", pa.int64()), ("retrieval_id", pa.int64()), ("100", kind)]),
        [{"item_id": 1, "retrieval_id": 0, "100": {"cold_start": 0, "feature_value": value}}])
    with pytest.raises(InputError, match="row 1") as caught:
        list(open_log(release[0]).candidates())
    assert words in str(caught.value)


@pytest.mark.parametrize("seed", range(4))
def test_flipped_and_lost_bytes_end_with_a_named_error_or_a_reading(release, seed):
    """No traceback and no hang, whatever the bytes say."""
    rng, folder = np.random.default_rng(seed), release[0]
    paths = sorted(folder.glob("*/part-*.parquet"))
    original = {path: path.read_bytes() for path in paths}
    refusals = 0
    for _ in range(40):
        path = paths[rng.integers(0, len(paths))]
        data = bytearray(original[path])
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(0, 256)
        path.write_bytes(data[:rng.integers(0, len(data))] if rng.random() < 0.2 else data)
        try:
            list(open_log(folder).lines())
        except InputError as error:
            assert path.name in str(error) or path.parent.name in str(error)
            refusals += 1
        path.write_bytes(original[path])
    assert refusals > 5
