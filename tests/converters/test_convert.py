"""The converters bring other logs into the competition's layout and keep what they said."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from converted import lines, marker, named, refuses, short
from typer.testing import CliRunner

from onepiece_comp.cli import app
from onepiece_comp.config import SplitConfig
from onepiece_comp.converters.convert import KINDS, ConvertOptions, detect_log
from onepiece_comp.converters.event_log import ITEM_OFFSET, original_item_id
from onepiece_comp.converters.kuairand import ITEM_COLUMNS, USER_COLUMNS, convert_kuairand
from onepiece_comp.converters.movielens import convert_movielens
from onepiece_comp.converters.sequences import convert_sequences
from onepiece_comp.errors import InputError
from onepiece_comp.logs.embeddings import find_embeddings, read_embedding
from onepiece_comp.logs.formats import read_index
from onepiece_comp.stages.convert import convert
from onepiece_comp.stages.split import split

USER_ROW = {**dict.fromkeys(USER_COLUMNS, 5), "user_active_degree": "full_active", "is_live_streamer": -124}
ITEM_ROW = dict(zip(ITEM_COLUMNS, (77, "NORMAL", "2022-04-10", "Web", 900, 9.0, "39,68", 20_000.0, 720.0, 1280.0)))
MS = 1_650_000_000_000
SECOND = 1_650_000_000


def kuairand(folder: Path, *events: tuple, name: str = "splits_val.parquet") -> Path:
    """A small KuaiRand folder; an event is (user, video, milliseconds, click, like, follow, comment, forward)."""
    folder.mkdir(exist_ok=True)
    columns = ["user_id", "video_id", "time_ms", "is_click", "is_like", "is_follow", "is_comment", "is_forward"]
    log = pd.DataFrame([(*event[:2], MS + event[2], *event[3:], *[0] * (8 - len(event))) for event in events],
                       columns=columns)
    log.to_parquet(folder / name) if name.endswith("parquet") else log.to_csv(folder / name, index=False)
    users = [{"user_id": 0, **USER_ROW}, {"user_id": 5, **USER_ROW, "user_active_degree": "UNKNOWN"}]
    items = [{"video_id": 0, **ITEM_ROW},
             {"video_id": 3, **ITEM_ROW, "tag": "7", "video_duration": None, "music_id": -1, "server_width": 1280.0}]
    pd.DataFrame(users).to_csv(folder / "user_features_pure.csv.gz", index=False)
    pd.DataFrame(items).to_csv(folder / "video_features_basic_pure.csv", index=False)
    return folder


def movielens(folder: Path, ratings: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "ratings.dat").write_text(ratings)
    (folder / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072-1234\n")
    movies = "1::Toy Story (1995)::Animation|Comedy\n9::Misérables (2000)::Comedy\n"
    (folder / "movies.dat").write_bytes(movies.encode("latin-1"))
    return folder


def test_kuairands_signals_become_exposure_click_and_conversion(tmp_path):
    source = kuairand(tmp_path / "in", (0, 3, 1), (0, 3, 2, 1), (0, 3, 3, 0, 1), (0, 3, 4, 1, 0, 1),
                      (0, 3, 5, 0, 0, 0, 1), (0, 3, 6, 0, 0, 0, 0, 1))
    raw = convert_kuairand(source, tmp_path / "raw")
    assert [action for _, action in short(lines(raw)["0"])] == [0, 1, 2, 2, 2, 2]
    figures = marker(raw)["figures"]
    assert (figures["exposures"], figures["clicks"], figures["conversions"]) == (1, 1, 4)


def test_exact_repeats_are_merged_into_their_strongest_action_and_counted(tmp_path):
    source = kuairand(tmp_path / "in", (0, 3, 1), (0, 3, 1, 0, 1), (0, 3, 1, 1), (0, 3, 2), (5, 3, 1), (0, 0, 1))
    raw = convert_kuairand(source, tmp_path / "raw")
    assert short(lines(raw)["0"]) == [(3, 2), (0, 0), (3, 0)] and short(lines(raw)["5"]) == [(3, 0)]
    assert marker(raw)["figures"]["repeats merged"] == 2 and marker(raw)["figures"]["events"] == 4


def test_events_of_one_second_keep_the_order_of_their_milliseconds(tmp_path):
    events = [(0, video, 900 - video) for video in range(1, 40)]
    raw = convert_kuairand(kuairand(tmp_path / "in", *events, (0, 50, 2500)), tmp_path / "raw")
    assert [item for item, _ in short(lines(raw)["0"])] == [*range(39, 0, -1), 50]
    assert [event.time - MS // 1000 for event in lines(raw)["0"].events] == [0] * 39 + [2]


def test_the_log_may_be_several_parquet_files_or_the_releases_csv_but_never_a_smoke_sample(tmp_path):
    source = kuairand(tmp_path / "in", (0, 3, 10), name="splits_test.parquet")
    kuairand(source, (7, 0, 4), (0, 0, 5), name="splits_val.parquet")
    kuairand(source, (5, 9, 5), name="smoke_interactions.parquet")
    held = lines(convert_kuairand(source, tmp_path / "raw"))
    assert {user: short(line) for user, line in held.items()} == {"0": [(0, 0), (3, 0)], "7": [(0, 0)]}
    assert list(held) == ["7", "0"]  # users by their first event, whatever the order of the files
    release = tmp_path / "release"
    release.mkdir()
    kuairand(release / "data", (5, 3, 7, 1), name="log_standard_4_08_to_4_21_pure.csv")
    assert short(lines(convert_kuairand(release, tmp_path / "raw2"))["5"]) == [(3, 1)]


def test_kuairands_features_keep_their_values_and_leave_out_what_is_missing(tmp_path):
    raw = convert_kuairand(kuairand(tmp_path / "in", (0, 0, 1), (0, 3, 2), (5, 4, 3)), tmp_path / "raw")
    profile = named(raw, lines(raw)["0"].profile)
    assert profile == {name: value for name, value in USER_ROW.items() if name != "is_live_streamer"}
    assert "user_active_degree" not in named(raw, lines(raw)["5"].profile)
    first, second = (named(raw, event.features) for event in lines(raw)["0"].events)
    assert first == {"author_id": 77, "video_type": "NORMAL", "upload_dt": "2022-04-10", "upload_type": "Web",
                     "music_id": 900, "music_type": 9, "tag": 39, "second tag": 68, "duration bucket": 2,
                     "aspect bucket": 1}
    assert second["tag"] == 7 and second["aspect bucket"] == 3
    assert not {"second tag", "duration bucket", "music_id"} & set(second)
    assert lines(raw)["5"].events[0].features == {}
    assert not {fid for fid in marker(raw)["features"] if int(fid) < 201}


def test_learned_vectors_become_embedding_81_of_the_items_in_the_log(tmp_path):
    source = kuairand(tmp_path / "in", (0, 3, 1), (0, 8, 2))
    np.savez(source / "twotower_item_embeddings.npz", item_ids=np.array([0, 3]),
             item_vectors=np.array([[1, 2], [3, 4]], np.float32))
    raw = convert_kuairand(source, tmp_path / "raw")
    vectors = dict(read_embedding(find_embeddings(raw)["81"]))
    assert vectors[ITEM_OFFSET + 3].tolist() == [3, 4] and vectors[ITEM_OFFSET + 8] is None and len(vectors) == 2
    assert find_embeddings(raw)["81"].path.name == "emb_81_2"


def test_creative_ids_are_larger_than_any_re_id_and_give_the_original_back(tmp_path):
    raw = convert_kuairand(kuairand(tmp_path / "in", (0, 0, 1), (0, 3, 2)), tmp_path / "raw")
    creatives = list(read_index(raw / "indexer.pkl").items)
    assert [original_item_id(creative) for creative in creatives] == [0, 3] and min(creatives) > 10 ** 9
    assert marker(raw)["item_id_offset"] == ITEM_OFFSET == min(creatives)


def test_ratings_from_four_stars_are_clicks_and_equal_times_keep_the_order_of_the_file(tmp_path):
    source = movielens(tmp_path / "in", "".join(
        f"{rating}::{SECOND + time}\n" for rating, time in (("2::9::3", 50), ("1::1::5", 100), ("1::9::4", 90),
                                                            ("1::7::3", 100),
                                                           ("1::4::1", 100))))
    raw = convert_movielens(source, tmp_path / "raw")
    assert {user: short(line) for user, line in lines(raw).items()} == {
        "2": [(9, 0)], "1": [(9, 1), (1, 1), (7, 0), (4, 0)]}
    assert [event.time for event in lines(raw)["1"].events] == [SECOND + time for time in (90, 100, 100, 100)]


def test_movielens_features_are_people_genres_and_decade(tmp_path):
    raw = convert_movielens(movielens(tmp_path / "in",
                                      f"2::9::3::{SECOND}\n1::1::5::{SECOND}\n1::7::5::{SECOND + 1}\n"),
                                      tmp_path / "raw")
    assert named(raw, lines(raw)["2"].profile) == {"gender": "M", "age": "56", "occupation": "16", "zip prefix": "70"}
    toys, unknown = (event.features for event in lines(raw)["1"].events)
    assert named(raw, toys) == {"genre": "Animation", "second genre": "Comedy", "decade": 1990} and unknown == {}
    poor = lines(raw)["2"].events[0].features
    assert named(raw, poor) == {"genre": "Comedy", "decade": 2000}
    numbers = marker(raw)["feature_values"]
    assert numbers["301"] == numbers["302"]


def test_positions_stand_for_times_where_a_log_has_the_order_alone(tmp_path):
    (tmp_path / "log.txt").write_text("8 5 3 5\n2 3\n")
    raw = convert_sequences(tmp_path / "log.txt", tmp_path / "raw")
    assert {user: short(line) for user, line in lines(raw).items()} == {"8": [(5, 1), (3, 1), (5, 1)], "2": [(3, 1)]}
    about = marker(raw)
    assert about["times"] == "order only"
    assert [event.time for event in lines(raw)["8"].events] == [
        about["ordinal_start"] + place * about["ordinal_step"] for place in range(3)]
    assert not (raw / "original_ids.json").exists()


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_times_come_from_the_interactions_and_a_missing_one_from_the_event_before(tmp_path, kind):
    (tmp_path / "log.txt.gz").write_bytes(gzip.compress(b"8 5 3 4\n2 3 9\n7 3\n"))
    rows = [(2, 3, None), (8, 5, SECOND + 10), (8, 3, None), (8, 4, SECOND + 30), (2, 9, SECOND + 7), (7, 3, 0)]
    table = pd.DataFrame(rows, columns=["user", "item", "time"]).astype({"time": "Int64"})
    path = tmp_path / f"times.{kind}"
    table.to_parquet(path) if kind == "parquet" else table.to_csv(path, index=False)
    raw = convert_sequences(tmp_path / "log.txt.gz", tmp_path / "raw", path)
    times = {user: [event.time for event in line.events] for user, line in lines(raw).items()}
    assert times == {"8": [SECOND + 10, SECOND + 10, SECOND + 30], "2": [SECOND + 7] * 2, "7": [1_000_000_000]}
    figures = marker(raw)["figures"]
    assert figures["times filled in"] == 3 and figures["users without any time"] == 1


def test_interactions_of_another_log_are_refused(tmp_path):
    (tmp_path / "log.txt").write_text("8 5 3\n2 3\n")
    for rows, message in (([(8, 3), (8, 5), (2, 3)], "user 8: found item 3, expected 5"),
                          ([(8, 5), (8, 3)], "user 2: found item missing"),
                          ([(8, 5), (8, 3), (2, 3), (4, 4)], "user 4")):
        path = tmp_path / "times.csv"
        pd.DataFrame(rows, columns=["user", "item"]).assign(time=SECOND).to_csv(path, index=False)
        with pytest.raises(InputError, match=message):
            convert_sequences(tmp_path / "log.txt", tmp_path / "raw", path)


def test_ids_that_are_no_numbers_are_numbered_by_first_appearance_and_kept(tmp_path):
    (tmp_path / "log.txt").write_text("ann B00x 007 7\nbob 7 B00x\n")
    raw = convert_sequences(tmp_path / "log.txt", tmp_path / "raw")
    assert {user: [item for item, _ in short(line)] for user, line in lines(raw).items()} == {
        "ann": [1, 2, 3], "bob": [3, 1]}
    assert json.loads((raw / "original_ids.json").read_text()) == {"items": {"1": "B00x", "2": "007", "3": "7"}}


@pytest.mark.parametrize("other", ["007", "-7", "7.0", "٧"])
def test_an_id_that_would_not_come_back_as_written_is_no_number(tmp_path, other):
    (tmp_path / "log.txt").write_text(f"1 7 {other}\n", "utf-8")
    raw = convert_sequences(tmp_path / "log.txt", tmp_path / "raw")
    assert json.loads((raw / "original_ids.json").read_text()) == {"items": {"1": "7", "2": other}}


@pytest.mark.parametrize("item", ["5", "B5"])
def test_attributes_beside_the_sequences_become_item_features(tmp_path, item):
    (tmp_path / "log.txt").write_text(f"8 {item} 3 x\n" if item == "B5" else f"8 {item} 3\n")
    (tmp_path / "item2attributes.json.gz").write_bytes(gzip.compress(json.dumps({item: [11, 0, 13, 14, 15]}).encode()))
    raw = convert_sequences(tmp_path / "log.txt", tmp_path / "raw")
    first, second, *_ = lines(raw)["8"].events
    assert first.features == {"301": 11, "302": 0, "303": 13, "304": 14} and second.features == {}


def test_the_kind_of_the_log_chooses_the_converter(tmp_path):
    (tmp_path / "log.txt").write_text("8 5\n")
    (tmp_path / "times.csv").write_text(f"user,item,time\n8,5,{SECOND}\n")
    sources = {"kuairand": kuairand(tmp_path / "in", (0, 3, 1)), "sequences": tmp_path / "log.txt",
               "movielens": movielens(tmp_path / "ml", f"1::1::5::{SECOND}\n")}
    for kind, source in sources.items():
        assert marker(convert(kind, source, tmp_path / kind))["source"] == kind
    timed = convert(
        "sequences",
        tmp_path / "log.txt",
        tmp_path / "timed",
        options=ConvertOptions(interactions=tmp_path / "times.csv"),
    )
    assert lines(timed)["8"].events[0].time == SECOND
    with pytest.raises(InputError, match="sequences or table"):
        convert("netflix", tmp_path / "in", tmp_path / "raw")
    with pytest.raises(InputError, match="--interactions for movielens, expected for movielens no"):
        convert("movielens", tmp_path / "ml", tmp_path / "raw", ConvertOptions(interactions=tmp_path / "times.csv"))
    with pytest.raises(InputError, match="found --user, --map for sequences, expected for sequences --interactions"):
        convert("sequences", tmp_path / "log.txt", tmp_path / "raw", ConvertOptions(user="u", action_map=("a=1",)))


def test_each_kind_is_known_by_its_files_and_auto_takes_it(tmp_path, capsys):
    one_event = {
        "kuairand": lambda folder: kuairand(folder, (0, 3, 1)),
        "movielens": lambda folder: movielens(folder, f"1::1::5::{SECOND}\n"),
        "recbole": lambda folder: (folder / "x.inter").write_text("user_id:token\titem_id:token\n1\t2\n"),
        "amazon": lambda folder: (folder / "X_5.json").write_text(
            '{"reviewerID": "A", "asin": "B", "overall": 5, "unixReviewTime": 1650000000}\n'),
        "sequences": lambda folder: (folder / "Beauty.txt").write_text("1 5\n"),
        "table": lambda folder: pd.DataFrame({"u": [1], "i": [2], "t": [SECOND]}).to_parquet(folder / "part-0.parquet"),
    }
    assert list(one_event) and set(one_event) == set(KINDS)
    for kind, write in one_event.items():
        folder = tmp_path / kind
        folder.mkdir()
        assert detect_log(folder) is None
        write(folder)
        assert detect_log(folder) == kind
        if kind != "kuairand":
            held = next(
                path for path in folder.iterdir() if path.name.startswith(("ratings", "x.", "X_", "Be", "part"))
            )
            assert detect_log(held) == kind
        options = ConvertOptions(user="u", item="i", time="t") if kind == "table" else ConvertOptions()
        assert marker(convert("auto", folder, tmp_path / f"{kind}-raw", options))["source"] == kind
        assert f"taken for {kind}" in capsys.readouterr().out
    refuses("the columns u, i, t, expected a column each", lambda *paths: convert("auto", *paths), tmp_path / "table",
            tmp_path / "out")


def test_each_option_of_the_command_reaches_its_converter(tmp_path):
    (tmp_path / "log.csv").write_text(f"u,i,t,a\n1,\"x,{SECOND},pv\n")
    (tmp_path / "users.csv").write_text("u,age\n1,30\n")
    (tmp_path / "items.csv").write_text("i,size\n\"x,4\n")
    words = [
        "convert",
        "table",
        "log.csv",
        "raw",
        "--user",
        "u",
        "--item",
        "i",
        "--time",
        "t",
        "--action",
        "a",
        "--map",
        "pv=2",
        "--user-features",
        "users.csv",
        "--item-features",
        "items.csv",
        "--quote",
        "none",
    ]
    done = CliRunner().invoke(app, [str(tmp_path / word) if word.endswith(("csv", "raw")) else word for word in words])
    assert done.exit_code == 0, done.exception
    (line,) = lines(tmp_path / "raw").values()
    assert short(line) == [(1, 2)] and line.profile == {"201": 30} and line.events[0].features == {"301": 4}
    with pytest.raises(InputError, match="--interactions for table"):
        CliRunner().invoke(app, ["convert", "table", "a", "b", "--interactions", "c"], catch_exceptions=False)


def test_a_log_in_its_own_layout_is_called_by_its_kind_where_the_competitions_is_wanted(tmp_path):
    source = kuairand(tmp_path / "in", (0, 3, 1))
    for words in (["run", source, tmp_path / "work"], ["split", source, tmp_path / "parts"]):
        with pytest.raises(InputError, match=f"found a log of kind kuairand, .*onepiece-comp convert kuairand "
                                             f"{source} RAW"):
            CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    told = CliRunner().invoke(app, ["doctor", str(source)])
    assert (told.exit_code == 0 and "a log of kind kuairand" in told.stdout.replace("\n", " ")
            and "not recognised" not in told.stdout)
    assert not (tmp_path / "work").exists()


def test_what_fits_no_kind_is_not_guessed(tmp_path):
    (tmp_path / "notes.txt").write_text("3 things to do\n")
    (tmp_path / "broken.json.gz").write_bytes(b"no gzip")
    (tmp_path / "two.csv").write_text("a,b\n1,2\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "ratings.csv").write_text("a,b\n1,2\n")
    for name in ("", "ratings.csv", "notes.txt", "broken.json.gz", "two.csv", "broken.parquet", "absent"):
        assert detect_log(tmp_path / name) is None
    refuses(
        "no log that is known, expected kuairand: ", lambda *paths: convert("auto", *paths), tmp_path, tmp_path / "out"
    )
    raw = convert_sequences(tmp_path / "notes.txt", tmp_path / "raw")
    (raw / "Beauty.txt").write_text("1 5\n")
    assert detect_log(raw) is None  # the competition's own layout


@pytest.mark.parametrize("folder, kind", [("kuairand_pure", "kuairand"), ("ml_1m", "movielens"),
                                          ("amazon2014_beauty", "sequences"), ("tencentgr_1k_sample", None)])
def test_the_real_folders_are_known(data_dir, folder, kind):
    assert detect_log(data_dir / folder) == kind


def test_what_is_no_log_is_refused_with_its_place_and_leaves_nothing_behind(tmp_path):
    refuses("no KuaiRand log", convert_kuairand, tmp_path / "nowhere", tmp_path / "raw")
    refuses(
        "no KuaiRand",
        convert_kuairand,
        kuairand(tmp_path / "smoke", (0, 3, 1), name="smoke_interactions.parquet"),
        tmp_path / "raw",
    )
    source = kuairand(tmp_path / "in", (0, 3, 1))
    (source / "user_features_pure.csv.gz").write_bytes(b"no gzip")
    refuses("user_features_pure.csv.gz: found no column user_id", convert_kuairand, source, tmp_path / "raw")
    (source / "user_features_pure.csv.gz").unlink()
    refuses(r"0 files user_features\*.csv", convert_kuairand, source, tmp_path / "raw")
    pd.DataFrame({"user_id": [1]}).to_parquet(source / "splits_val.parquet")
    refuses("splits_val.parquet: found no column video_id", convert_kuairand, source, tmp_path / "raw")
    kuairand(source, (0, 3, 1))
    pd.read_parquet(source / "splits_val.parquet").assign(video_id=[None]).to_parquet(source / "splits_val.parquet")
    refuses("splits_val.parquet: row 1: found no video_id", convert_kuairand, source, tmp_path / "raw")
    kuairand(source, (0, 3, 1))
    pd.read_parquet(source / "splits_val.parquet").assign(is_like="x").to_parquet(source / "splits_val.parquet")
    refuses("splits_val.parquet: found is_like 'x', expected a column of numbers", convert_kuairand, source,
            tmp_path / "raw")
    kuairand(source, (0, 3, 1))
    videos = source / "video_features_basic_pure.csv"
    videos.write_text(videos.read_text().replace("20000.0", "long"))
    refuses("video_features_basic_pure.csv: found video_duration 'long'", convert_kuairand, source, tmp_path / "raw")
    source = movielens(tmp_path / "ml", "1::1::5::100\n1::1::5\n")
    refuses(
        r"ratings.dat:2: found no readable row .*expected UserID::MovieID", convert_movielens, source, tmp_path / "raw"
    )
    (source / "ratings.dat").write_text("1::x::5::100\n")
    refuses("ratings.dat:1: .*invalid value 'x'", convert_movielens, source, tmp_path / "raw")
    (source / "ratings.dat").write_text("")
    refuses("Empty CSV", convert_movielens, source, tmp_path / "raw")
    (source / "ratings.dat").write_text("1::1::5::-4\n")
    refuses("ratings.dat:1: found time -4, expected Unix time from 1990", convert_movielens, source, tmp_path / "raw")
    (tmp_path / "log.txt").write_text("8 5 3\n2\n")
    refuses("log.txt:2: found a line without items", convert_sequences, tmp_path / "log.txt", tmp_path / "raw")
    (tmp_path / "log.txt").write_text("8 5 3\n8 1\n")
    refuses("user '8' a second time", convert_sequences, tmp_path / "log.txt", tmp_path / "raw")
    refuses("no such file", convert_sequences, tmp_path / "absent.txt", tmp_path / "raw")
    (tmp_path / "log.txt").write_text("8 5 3\n")
    (tmp_path / "item2attributes.json").write_text("[1, 2")
    refuses("no attributes", convert_sequences, tmp_path / "log.txt", tmp_path / "raw")


def test_kuairand_flows_from_its_files_to_a_split(tmp_path, data_dir):
    raw = convert_kuairand(data_dir / "kuairand_pure", tmp_path / "raw")
    figures = marker(raw)["figures"]
    assert (figures["users"], figures["items"], figures["events"]) == (25_156, 6_361, 228_329 - 5_885)
    assert figures["repeats merged"] == 5_885
    out = split(raw, tmp_path / "out", SplitConfig(cut="2022-05-06T00:00:00Z"))
    found = json.loads((out / "split.json").read_text())["figures"]
    # 9,793 users click after the cut; 32 more like, follow, comment or forward without a click.
    assert found["eval users"] == 9_793 + 32 and found["targets: conversion"] == 673


def test_the_beauty_sequences_keep_the_published_order(tmp_path, data_dir):
    folder = data_dir / "amazon2014_beauty"
    raw = convert_sequences(folder / "sequences.txt.gz", tmp_path / "raw", folder / "interactions.parquet")
    with gzip.open(folder / "sequences.txt.gz", "rt") as file:
        published = {user: [int(item) for item in items] for user, *items in map(str.split, file)}
    assert {user: [item for item, _ in short(line)] for user, line in lines(raw).items()} == published
    assert marker(raw)["figures"]["times filled in"] == 287
