"""Blocks of vectors: what the one-at-a-time reader says, from every form, and the compiled scanner to the bit."""

import shutil

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from embedding_forms import FIRST_ID, FORMS, WIDTH, as_lines, as_parquet, as_pickle, item_vectors, one_part

from onepiece_comp.errors import InputError
from onepiece_comp.logs import embedding_blocks as vector_blocks
from onepiece_comp.logs.embedding_blocks import read_blocks, table_width
from onepiece_comp.logs.embeddings import find_embeddings, read_embedding


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reader", ["plain", "compiled"])
def test_blocks_of_any_size_hold_what_the_records_hold(tmp_path, form, reader, monkeypatch):
    vectors = item_vectors(200, width=50)
    source = FORMS[form](tmp_path, vectors)
    records = list(read_embedding(source))
    monkeypatch.setattr(vector_blocks, "_BLOCK_BYTES", 2000)
    blocks = list(read_blocks(source, reader=reader))
    assert len(blocks) > 10 and max(block.vectors.nbytes for block in blocks) < 5000
    assert np.concatenate([b.creative_id for b in blocks]).tolist() == [key for key, v in records if v is not None]
    assert np.concatenate([b.vectors for b in blocks if len(b.vectors)]).tobytes() == b"".join(
        v.tobytes() for _, v in records if v is not None)
    assert sum(block.empty for block in blocks) == 40


NUMBERS = [
    "0", "-0", "-0.0", "0.1", "-1.5e-3", "1E5", "1e+05", "123456789012345678", "12345678901234567890", "0e99999",
    "0.30000000000000004", "0.058086279779672625", "0.00000000000000000000012345678901234567", "1.4e-45", "1e-46",
    "3.4028234663852886e38", "1.17549435e-38", "1.00000005960464477539", "1.00000005960464477540", "9007199254740993",
    "1.000000059604644775390625", "1.00000017881393432617", "1.0000001788139343261718750001", "16777217"]
REFUSED = ["1e39", "NaN", "Infinity", "-Infinity", "1e400", "01", "1.", ".5", "+1", "-", "1e", "null", '"x"', "[1]",
           "{}", "1 2", "0x1"]


@pytest.mark.parametrize("number", NUMBERS)
def test_the_compiled_reader_reads_a_number_to_the_bit_as_python_does(tmp_path, number):
    lines = f'{{"anonymous_cid": 1, "emb": [1.0, 2]}}\n\t{{ "anonymous_cid" : "2" , "emb":[{number} , {number}] }} \r\n'
    source = one_part(tmp_path, lines)
    compiled, plain = (next(iter(read_blocks(source, reader=reader))) for reader in ("compiled", "plain"))
    assert plain.vectors[1, 0] == np.float32(float(number)) and compiled.creative_id.tolist() == [1, 2]
    assert compiled.vectors.tobytes() == plain.vectors.tobytes()


def test_the_compiled_reader_agrees_on_random_numbers_next_to_where_rounding_turns(tmp_path):
    rng = np.random.default_rng(0)
    single = rng.normal(size=2000).astype(np.float32)
    middle = (single.astype(float) + np.nextafter(single, np.float32(9)).astype(float)) / 2
    near = [np.nextafter(middle, -9), middle, np.nextafter(middle, 9), single.astype(float), rng.normal(size=2000)]
    forms = ("{!r}", "{:.19e}", "{:.21f}")
    texts = [form.format(float(value)) for values in near for value in values for form in forms]
    lines = [f'{{"anonymous_cid": {i}, "emb": [{", ".join(texts[i:i + 10])}]}}' for i in range(0, len(texts), 10)]
    source = one_part(tmp_path, "\n".join(lines))
    compiled, plain = ([b.vectors for b in read_blocks(source, reader=reader)] for reader in ("compiled", "plain"))
    assert np.concatenate(compiled).tobytes() == np.concatenate(plain).tobytes()


def test_the_compiled_reader_is_the_one_that_reads(tmp_path, monkeypatch):
    pytest.importorskip("numba")
    source = as_lines(tmp_path, {FIRST_ID + i: np.full(3, i / 7) for i in range(30)}, parts=1)
    asked = []
    monkeypatch.setattr(vector_blocks, "parse_embedding_line", lambda line, place: asked.append(place) or (1,
        [0.0, 0.0, 0.0]))
    assert sum(len(block.vectors) for block in read_blocks(source, reader="compiled")) == 30
    assert len(asked) == 1  # the first line tells the width


BROKEN = [
    *(f'{{"anonymous_cid": 2, "emb": [1, {number}]}}' for number in REFUSED), '{"anonymous_cid": 2, "emb": [1, 2]',
    '{"anonymous_cid": 2, "emb": [1, 2, 3]}', '{"anonymous_cid": 2, "emb": [1]}', '{"anonymous_cid": 2, "emb": 5}',
    '{"anonymous_cid": -1, "emb": [1, 2]}', '{"anonymous_cid": 99999999999999999999}', '{"anonymous_cid": Infinity}',
    '{"anonymous_cid": "x"}', '{"emb": [1, 2]}', "[1, 2]", "[" * 5000, '{"anonymous_cid": 2, "emb": [[1, 2], [3, 4]]}',
    '{"anonymous_cid": 2, "emb": {"0": 1}}', '{"anonymous_cid": 2 "emb": [1, 2]}',
    '{"anonymous_cid": 2, "emb": [1, 2]} x']


@pytest.mark.parametrize("line", BROKEN)
def test_all_readers_of_lines_refuse_with_the_same_words_naming_file_and_line(tmp_path, line):
    good = '{"anonymous_cid": 1, "emb": [1, 2]}\n'
    source = one_part(tmp_path, good + "\n" + good + line + "\n" + good)
    said = []
    for read in (read_embedding, lambda s: read_blocks(s, reader="plain"), lambda s: read_blocks(s, reader="compiled")):
        with pytest.raises(InputError, match="part-00000:4: found") as caught:
            list(read(source))
        said.append(str(caught.value))
    assert len(set(said)) == 1


@pytest.mark.parametrize("line", [
    '{"emb": [1, 2], "anonymous_cid": 7}', '{"anonymous_cid": 7, "emb": [1, 2], "more": 1}',
    '{"anonymous_cid": "0007", "emb": [1, 2]}', '{"anonymous_cid": 7, "\\u0065mb": [1, 2]}',
    '{"anonymous_cid": 7, "emb": [9, 9], "emb": [1, 2]}', '{"anonymous_cid": 7, "emb": ["1", "2"]}'])
def test_lines_of_another_order_or_with_more_in_them_are_read_all_the_same(tmp_path, line):
    source = one_part(tmp_path, '{"anonymous_cid": 1, "emb": [3, 4]}\n' + line)
    for reader in ("plain", "compiled"):
        blocks = list(read_blocks(source, reader=reader))
        assert [key for block in blocks for key in block.creative_id] == [1, 7]
        assert np.concatenate([block.vectors for block in blocks]).tolist() == [[3, 4], [1, 2]]


def test_all_files_of_a_table_have_the_width_of_the_first(tmp_path):
    source = one_part(tmp_path, '{"anonymous_cid": 1, "emb": [1, 2]}\n')
    (source.path / "part-00001").write_text('{"anonymous_cid": 2}\n{"anonymous_cid": 3, "emb": [1, 2, 3]}\n')
    for read in (read_embedding, read_blocks):
        with pytest.raises(InputError, match="part-00001:2: found an embedding of width 3, expected 2"):
            list(read(source))


class _LyingLength:
    """Pickles to an array of 16 GiB of which the file holds nothing."""

    def __reduce__(self):
        return np.empty(0).__reduce__()[0], (np.ndarray, (1 << 34,), b"b")


def test_an_array_whose_length_lies_is_refused_before_it_is_touched(tmp_path):
    with pytest.raises(InputError, match="not numeric|cannot be admitted"):
        list(read_blocks(as_pickle(tmp_path, {1: _LyingLength()})))


def test_a_line_without_end_is_refused_before_it_is_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(vector_blocks, "LONGEST_LINE", 5000)
    monkeypatch.setattr(vector_blocks, "_BLOCK_BYTES", 1000)
    monkeypatch.setattr("onepiece_comp.logs.embeddings.LONGEST_LINE", 5000)
    source = one_part(tmp_path, '{"anonymous_cid": 1, "emb": [3, 4]}\n{"anonymous_cid": 1, "emb": [' + "1, " * 100_000)
    for read in (read_embedding, read_blocks):
        with pytest.raises(InputError, match="part-00000:2.*a line of more than"):
            list(read(source))


@pytest.mark.parametrize(("change", "words"), [
    (lambda v: v.update({FIRST_ID + 1: np.ones(WIDTH + 1, np.float32)}), "width 7"),
    (lambda v: v.update({FIRST_ID + 1: np.full(WIDTH, np.nan, np.float32)}), "not finite")])
def test_a_wrong_row_of_a_parquet_file_or_entry_of_a_pickle_is_named(tmp_path, change, words):
    vectors = dict(sorted(item_vectors().items()))
    change(vectors)
    for read in (read_embedding, read_blocks):
        for form, place in (("parquet", "part-00000.parquet: row 2"), ("pickle", f"emb_81_6.pkl: id {FIRST_ID + 1}")):
            shutil.rmtree(tmp_path / form, ignore_errors=True)
            if form == "parquet":
                vectors_in_file = {FIRST_ID + 3: np.ones(WIDTH, np.float32), **{FIRST_ID + 1: vectors[FIRST_ID + 1]}}
                source = as_parquet(tmp_path / form, vectors_in_file, files=1)
            else:
                source = as_pickle(tmp_path / form, {FIRST_ID + 3: vectors[FIRST_ID + 3], **vectors})
            with pytest.raises(InputError, match=words) as caught:
                list(read(source))
            assert place in str(caught.value)


@pytest.mark.parametrize(("ids", "emb", "words"), [
    (["1", "x"], [[1.0], [2.0]], "row 2: found no embedding record"),
    (["1", None], [[1.0], [2.0]], "row 2: found no embedding record"),
    (["1", "-2"], [[1.0], [2.0]], "row 2: found no embedding record"),
    (["1", "2"], [[1.0], [None]], "row 2: found a value that is not finite"),
    (["1", "2"], ["a", "b"], "row 1: found a vector that is not numeric"), (["1", "2"], None, "no embedding record"),
    ("cut", None, "no readable Parquet")])
def test_parquet_files_that_are_none_or_hold_something_else_are_refused(tmp_path, ids, emb, words):
    source = as_parquet(tmp_path, item_vectors(), files=1)
    path = source.parts()[0]
    if ids == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    else:
        pyarrow.parquet.write_table(pyarrow.table({"anonymous_cid": ids, **({"emb": emb} if emb else {})}), path)
    for read in (read_embedding, read_blocks):
        with pytest.raises(InputError, match=words):
            list(read(source))


def test_parquet_lists_of_other_types_and_dictionary_ids_are_read(tmp_path):
    folder = tmp_path / "mm_emb" / "emb_84_32_parquet"
    folder.mkdir(parents=True)
    numbers = [[0.5, 1.5], None, [], [2.0, 3.0]]
    kinds = (pyarrow.list_(pyarrow.float32()), pyarrow.large_list(pyarrow.float64()), pyarrow.list_(pyarrow.float16()))
    for place, kind in enumerate(kinds):
        ids = pyarrow.array([str(10 * place + i) for i in range(4)])
        columns = {"emb": pyarrow.array(numbers).cast(kind), "anonymous_cid": ids.dictionary_encode() if place else ids}
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / f"{place}.parquet")
    blocks = list(read_blocks(find_embeddings(tmp_path)["84"]))
    assert np.concatenate([b.creative_id for b in blocks]).tolist() == [0, 3, 10, 13, 20, 23]
    assert np.concatenate([b.vectors for b in blocks]).tolist() == [[0.5, 1.5], [2, 3]] * 3
    assert sum(b.empty for b in blocks) == 6


def test_tables_are_found_in_both_folders_and_json_lines_come_first(tmp_path):
    as_parquet(tmp_path, item_vectors())
    assert find_embeddings(tmp_path)["81"].kind == "parquet"
    as_pickle(tmp_path, item_vectors())
    assert find_embeddings(tmp_path)["81"].kind == "pickle"
    (tmp_path / "creative_emb" / "emb_81_6").mkdir()
    (tmp_path / "mm_emb" / "emb_84_32_parquet").mkdir()
    assert {fid: source.labelled_width for fid, source in find_embeddings(tmp_path).items()} == {"81": 6, "84": 32}
    assert find_embeddings(tmp_path)["81"].kind == "lines" and table_width(find_embeddings(tmp_path)["81"]) is None
