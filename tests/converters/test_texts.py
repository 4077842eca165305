"""Delimited texts of all kinds are the log that they stand for,
and what would be read as another is an error with its line.
"""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from converted import events, item_features, lines, marker, named, refuses

from onepiece_comp.converters.amazon import convert_amazon
from onepiece_comp.converters.movielens import convert_movielens
from onepiece_comp.converters.recbole import convert_recbole
from onepiece_comp.converters.table import convert_table
from onepiece_comp.stages.convert import convert

TIME = 1_650_000_000
NAMES = {"user": "u", "item": "i", "time": "t"}


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def items(raw: Path) -> dict[str, list[str]]:
    return {user: [item for item, _, _ in held] for user, held in events(raw).items()}


def test_a_quote_between_tabs_is_a_character_and_no_row_is_swallowed(tmp_path):
    """Titles with a lone quote: the next one closes it three rows later where quotes are read."""
    rows = [(f"u{n % 7}", ('"Live' if n % 20 == 3 else 'b"' if n % 20 == 6 else f"title {n}"),
             TIME + n) for n in range(200)]
    source = written(tmp_path / "log.tsv", "u\ti\tt\n" + "".join("\t".join(map(str, row)) + "\n" for row in rows))
    raw = convert_table(source, tmp_path / "raw", **NAMES)
    assert items(raw) == {user: [item for other, item, _ in rows if other == user] for user in {row[0] for row in rows}}
    features = written(tmp_path / "items.tsv",
                       'i\ttitle\tyear\n"Live\t"It\t1999\nb"\tB\t2001\ntitle 1\tthe "best"\t2003\n')
    held = item_features(convert_table(source, tmp_path / "with", **NAMES, item_features=features))
    assert (held['"Live'] == {"title": '"It', "year": 1999} and held["title 1"]["title"] == 'the "best"'
            and held['b"']["year"] == 2001)


def test_quotes_between_tabs_are_read_where_they_are_asked_for_and_missing_names_say_so(tmp_path):
    source = written(tmp_path / "log.tsv", f'"u"\t"i"\t"t"\n"a"\t"x\ty"\t"{TIME}"\n')
    assert items(convert_table(source, tmp_path / "raw", **NAMES, quote='"')) == {"a": ["x\ty"]}
    refuses("no column u, i, t .*quotes stand around its fields, give --quote", convert_table, source, tmp_path / "out",
            **NAMES)


@pytest.mark.parametrize("text, line, found", [
    (f'1,"Live,{TIME}\n1,x,{TIME}\n1,b",{TIME + 1}\n', 3,
     "a quoted field with what looks like rows in it, such as '1,x,"),
    (f'1,"Live,{TIME}\n1,b",{TIME + 1}\n', 3, "a quoted field with what looks like rows in it"),
    (f'1,"Live,{TIME}\n1,b,{TIME + 1}\n' + f"2,c,{TIME}\n" * 5, 3, "a quote that is never closed"),
    (f'1,"a ""long"" text\n{"of words " * 10_000}",{TIME}\n', 3,
     "a quoted field of 2 lines and more than 65,536 characters")])
def test_a_quoted_field_that_swallows_rows_is_refused_with_its_line_unless_the_quotes_are_told(tmp_path, text, line,
    found):
    source = written(tmp_path / "log.csv", f"u,i,t\n9,z,{TIME}\n{text}")
    refuses(f"log.csv:{line}: found {found}.*--quote none", convert_table, source, tmp_path / "raw", **NAMES)
    if "long" not in text:
        (user,) = items(convert_table(source, tmp_path / "raw", **NAMES, quote="none")).keys() - {"9", "2"}
        assert user == "1"


def test_rows_that_a_column_without_a_role_swallows_are_refused_too(tmp_path):
    text = f'u,i,t,title\n1,x,{TIME},"Live\n1,y,{TIME},b\n1,z,{TIME},c"\n'
    refuses("log.csv:2: found a quoted field", convert_table, written(tmp_path / "log.csv", text), tmp_path / "raw",
            **NAMES)
    assert items(convert_table(tmp_path / "log.csv", tmp_path / "told", **NAMES, quote='"')) == {"1": ["x"]}
    features = written(tmp_path / "items.csv", 'i,title,year\nx,"Live,1\ny,b,2\nz,c",3\n')
    source = written(tmp_path / "log.csv", f"u,i,t\n1,x,{TIME}\n")
    refuses("items.csv:2: found a quoted field", convert_table, source, tmp_path / "raw", **NAMES,
            item_features=features)


def test_quoted_fields_with_commas_breaks_and_doubled_quotes_are_kept_and_later_rows_keep_their_lines(tmp_path):
    text = f'u,i,t,review\n1,"a, b",{TIME},"good,\nreally ""good"" \n\nstuff"\n\n2,x,{TIME},fine\n'
    raw = convert_table(written(tmp_path / "log.csv", text), tmp_path / "raw", **NAMES)
    assert items(raw) == {"1": ["a, b"], "2": ["x"]} and marker(raw)["not read"] == "review"
    refuses("log.csv:8: found no i", convert_table, written(tmp_path / "log.csv", text + f"2,,{TIME},\n"),
            tmp_path / "out", **NAMES)
    refuses("log.csv:8: .*Expected 4 columns, got 2", convert_table, written(tmp_path / "log.csv", text + "2,x\n"),
            tmp_path / "out", **NAMES)
    refuses(r"log.csv:2: found i 'a\\nb'.*an id: one line", convert_table,
            written(tmp_path / "log.csv", f'u,i,t\n1,"a\nb",{TIME}\n'), tmp_path / "out", **NAMES)


@pytest.mark.parametrize("separator, said", [(";", "semicolons"), ("|", "bars"), ("\t", "tabs"), (",", "commas")])
def test_what_separates_the_fields_is_told_by_the_header_and_said(tmp_path, separator, said):
    text = f"u,i,t\n1,x,{TIME}\n".replace(",", separator)
    raw = convert_table(written(tmp_path / "log.csv", text), tmp_path / "raw", **NAMES)
    assert items(raw) == {"1": ["x"]} and marker(raw)["separated by"] == said


def test_a_number_written_as_a_float_or_with_spaces_is_the_number_and_leading_zeros_stay(tmp_path, capsys):
    text = f"u,i,t\n10.0,663.0,{TIME}\n10, 663,{TIME + 1}\n 10 ,0663,{TIME + 2}\n11,7,{TIME}\n"
    source = written(tmp_path / "log.csv", text)
    items_table = written(tmp_path / "items.csv", "i,kind\n663.0,a\n 0663,b\n7,c\n")
    raw = convert_table(source, tmp_path / "raw", **NAMES, item_features=items_table)
    assert items(raw) == {"10": ["663", "663", "0663"], "11": ["7"]}
    assert {item: held["kind"] for item, held in item_features(raw).items()} == {"663": "a", "0663": "b", "7": "c"}
    said = capsys.readouterr().out
    assert "log.csv: u: 2 values" in said and "'10.0' as '10'" in said and "log.csv: i: 2 values" in said


def test_ids_with_fractions_are_names_and_keep_their_zeros(tmp_path):
    text = f"u,i,t\n1,1.0,{TIME}\n1,1.5,{TIME + 1}\n1,1,{TIME + 2}\n"
    features = written(tmp_path / "items.csv", "i,kind\n1.0,a\n1,b\n")
    raw = convert_table(written(tmp_path / "log.csv", text), tmp_path / "raw", **NAMES, item_features=features)
    assert items(raw) == {"1": ["1.0", "1.5", "1"]}
    assert {item: held.get("kind") for item, held in item_features(raw).items()} == {"1.0": "a", "1.5": None, "1": "b"}


def test_the_same_ids_are_one_item_in_text_and_in_parquet(tmp_path):
    table = pd.DataFrame({"u": [10.0, 10, 11], "i": ["5.0", "5", " 5"], "t": [TIME, TIME + 1, TIME]})
    table.to_parquet(tmp_path / "log.parquet")
    table.to_csv(tmp_path / "log.csv", index=False)
    for name in ("log.parquet", "log.csv"):
        assert items(convert_table(tmp_path / name, tmp_path / name.replace(".", "-"), **NAMES)) == {"10": ["5", "5"],
            "11": ["5"]}


@pytest.mark.parametrize("user, message", [
    ([1.0, float("nan")], "row 2: found no u"), ([1.0, None], "row 2: found no u"), (["a", ""], "row 2: found no u"),
    (["a", "  "], "row 2: found no u"), ([1.0, 1.5], "row 2: found u 1.5"),
    ([1.0, float("inf")], "row 2: found u inf")])
def test_an_empty_id_in_parquet_is_named_with_its_row(tmp_path, user, message):
    pd.DataFrame({"u": user, "i": 1, "t": TIME}).to_parquet(tmp_path / "log.parquet")
    refuses(f"log.parquet: {message}", convert_table, tmp_path / "log.parquet", tmp_path / "raw", **NAMES)


def test_feature_tables_that_know_nothing_of_the_log_are_refused_with_an_id_of_each_side(tmp_path):
    source = written(tmp_path / "log.csv", f"u,i,t\nann,0663713001,{TIME}\n")
    pd.DataFrame({"i": [663713001, 5], "kind": ["a", "b"]}).to_parquet(tmp_path / "items.parquet")
    refuses("items.parquet: found none of the log's items: '663713001' and 1 others, expected items such as "
            "'0663713001'.*leading zero",
            convert_table, source, tmp_path / "raw", **NAMES, item_features=tmp_path / "items.parquet")
    refuses("users.csv: found none of the log's users: 'Ann' .*'ann'", convert_table, source, tmp_path / "raw", **NAMES,
            user_features=written(tmp_path / "users.csv", "u,age\nAnn,30\n"))
    ratings = written(tmp_path / "X_5.json",
                      '{"reviewerID": "A", "asin": "B", "overall": 5, "unixReviewTime": 1650000000}\n')
    written(tmp_path / "meta_X.json", '{"asin": "C", "brand": "x"}\n')
    refuses("meta_X.json: found none of the log's items, expected items such as 'B'", convert_amazon, ratings,
            tmp_path / "raw")
    (tmp_path / "ml").mkdir()
    written(tmp_path / "ml" / "ratings.dat", f"1::2::5::{TIME}\n")
    written(tmp_path / "ml" / "movies.dat", "3::Heat (1995)::Action\n")
    refuses("features of items: found none of the log's items: '3'", convert_movielens, tmp_path / "ml",
            tmp_path / "raw")
    written(tmp_path / "ml" / "movies.dat", "2::Heat (1995)::Action\n")
    written(tmp_path / "ml" / "users.dat", "7::M::56::16::70072\n")
    refuses("features of users: found none of the log's users: '7'", convert_movielens, tmp_path / "ml",
            tmp_path / "raw")


def test_a_file_without_a_header_keeps_its_first_event(tmp_path):
    source = written(tmp_path / "log.csv", f"1,2268318,pv,{TIME}\n1,2333346,buy,{TIME + 1}\n")
    options = {"user": "u", "item": "i", "time": "t", "action": "kind", "action_map": ["pv=0"]}
    raw = convert_table(source, tmp_path / "raw", **options, columns="u, i, kind, t")
    assert events(raw) == {"1": [("2268318", 0, TIME), ("2333346", 2, TIME + 1)]}
    refuses("log.csv:1: found an event where the names of columns should be .*--columns c1,c2,c3,time",
            convert_table, source, tmp_path / "out", user="1", item="2268318", time=str(TIME))
    refuses("no column u, i, kind, t .*no header, name the columns with --columns", convert_table, source,
            tmp_path / "out", **options)
    refuses("--columns u,i,t: found 3 names for 4 fields", convert_table, source, tmp_path / "out", **options,
            columns="u,i,t")
    refuses("log.csv:2: found no i", convert_table, written(tmp_path / "log.csv", f"1,2,pv,{TIME}\n1,,pv,{TIME}\n"),
            tmp_path / "out", **options, columns="u,i,kind,t")


def test_words_that_mean_nothing_to_pandas_are_countries_and_people(tmp_path, capsys):
    source = written(tmp_path / "log.csv", f"u,i,t\nNA,null,{TIME}\nNone,nan,{TIME}\n")
    users = written(tmp_path / "users.csv", "u,country,age,zip\nNA,NA,NA,0123\nNone,null,30,0456\n")
    raw = convert_table(source, tmp_path / "raw", **NAMES, user_features=users)
    assert items(raw) == {"NA": ["null"], "None": ["nan"]}
    assert {user: named(raw, line.profile) for user, line in lines(raw).items()} == {
        "NA": {"country": "NA", "zip": "0123"}, "None": {"country": "null", "age": 30, "zip": "0456"}}
    assert "users.csv: age: 1 cells such as 'NA' among numbers are taken for missing ones" in capsys.readouterr().out


@pytest.mark.parametrize("encoding, said", [("utf-16", "UTF-16"), ("gbk", "GBK"), ("latin-1", "Latin-1")])
def test_another_encoding_is_called_by_its_name_with_the_line_and_the_way_out(tmp_path, encoding, said):
    word = {"gbk": "衣服", "latin-1": "été", "utf-16": "x"}[encoding]
    text = f"u,i,t\n1,a,{TIME}\n1,{word},{TIME}\n".encode(encoding)
    message = f"log.csv:{1 if encoding == 'utf-16' else 3}: found bytes that are no UTF-8 .perhaps .*{said}.*iconv -f"
    refuses(message, convert_table, written(tmp_path / "log.csv", text), tmp_path / "raw", **NAMES)
    inter = text.replace(b"u,i,t", b"user_id:token,item_id:token,t:float") if encoding != "utf-16" else text
    refuses("x.inter:[13]: found bytes that are no UTF-8", convert_recbole, written(tmp_path / "x.inter", inter),
            tmp_path / "raw")
    lines_ = f"1 2\n1 {word}\n".encode(encoding)
    refuses("log.txt:[12]: found bytes that are no UTF-8", lambda *paths: convert("sequences", *paths),
            written(tmp_path / "log.txt", lines_), tmp_path / "raw")
    wide = written(tmp_path / "bare.csv", "u,i,t\n".encode("utf-16-le"))
    refuses("bare.csv:1: found zero bytes.*UTF-16", convert_table, wide, tmp_path / "raw", **NAMES)


def test_a_gzipped_file_is_read_whatever_its_name_and_other_archives_are_named(tmp_path):
    text = f"u,i,t\n1,x,{TIME}\n".encode()
    assert items(convert_table(written(tmp_path / "log.csv", gzip.compress(text)), tmp_path / "raw",
                               **NAMES)) == {"1": ["x"]}
    assert items(convert_table(written(tmp_path / "log.csv.gz", text), tmp_path / "raw2", **NAMES)) == {"1": ["x"]}
    ratings = f'{{"reviewerID": "A", "asin": "B", "overall": 5, "unixReviewTime": {TIME}}}\n'.encode()
    assert items(convert_amazon(written(tmp_path / "X_5.json", gzip.compress(ratings)),
                                tmp_path / "raw3")) == {"A": ["B"]}
    for start, what in ((b"PK\x03\x04", "a zip archive or a workbook"), (b"PAR1", "a Parquet file under another name"),
                        (b"(\xb5/\xfd", "a zstd archive")):
        refuses(f"log.csv: found {what}, expected a text", convert_table,
                written(tmp_path / "log.csv", start + b"x" * 50),
                tmp_path / "out", **NAMES)


def test_a_column_that_stands_twice_is_refused(tmp_path):
    refuses("log.csv: found the column i 2 times", convert_table,
            written(tmp_path / "log.csv", f"u,i,i,t\n1,2,3,{TIME}\n"),
            tmp_path / "raw", **NAMES)


def test_lines_that_end_as_in_windows_or_without_an_end_are_rows_like_others(tmp_path):
    text = f"\ufeffu,i,t\r\n1,x,{TIME}\r\n1,y,{TIME + 1}"
    assert items(convert_table(written(tmp_path / "log.csv", text), tmp_path / "raw", **NAMES)) == {"1": ["x", "y"]}
    assert np.isin(["log.csv"], marker(tmp_path / "raw")["files"]).all()


def test_letters_with_accents_are_one_id_in_either_form_and_it_is_said(tmp_path, capsys):
    source = written(tmp_path / "log.csv", f"u,i,t\n1,caf\u00e9,{TIME}\n1,cafe\u0301,{TIME + 1}\n")
    features = written(tmp_path / "items.csv", "i,kind\ncafe\u0301,x\n")
    raw = convert_table(source, tmp_path / "raw", **NAMES, item_features=features)
    assert items(raw) == {"1": ["caf\u00e9", "caf\u00e9"]} and item_features(raw) == {"caf\u00e9": {"kind": "x"}}
    assert "log.csv: i: 1 values" in capsys.readouterr().out


def test_quotes_behind_backslashes_as_databases_write_them_are_refused_with_their_line(tmp_path):
    source = written(tmp_path / "log.csv", f'u,i,t\n1,x,{TIME}\n1,"a \\"b\\" c",{TIME}\n')
    refuses("log.csv:3: found a quote behind a backslash .*with quotes in it doubled", convert_table, source,
            tmp_path / "raw", **NAMES)
    assert items(convert_table(source, tmp_path / "raw", **NAMES, quote="none"))["1"] == ["x", '"a \\"b\\" c"']


def test_times_of_whole_days_are_said_to_be_that(tmp_path):
    text = "u,i,t\n1,a,2020-09-01\n1,b,2020-09-01\n"
    raw = convert_table(written(tmp_path / "log.csv", text), tmp_path / "raw", **NAMES)
    assert ("whole days, within which the order of the rows counts" in marker(raw)["times"]
            and items(raw) == {"1": ["a", "b"]})
