"""The converters bring other logs into the competition's layout and keep what they said."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from onepiece_comp.config import SplitConfig
from onepiece_comp.convert import (
    KUAIRAND_ITEM, KUAIRAND_USER, convert, convert_kuairand, convert_movielens, convert_sequences)
from onepiece_comp.embeddings import find_embeddings, read_embedding
from onepiece_comp.errors import InputError
from onepiece_comp.event_log import ITEM_OFFSET, original_item_id
from onepiece_comp.formats import UserLine, check_offsets, read_index, read_sequences
from onepiece_comp.raw_folder import OriginalIds
from onepiece_comp.split import split

USER_ROW = {**dict.fromkeys(KUAIRAND_USER, 5), "user_active_degree": "full_active", "is_live_streamer": -124}
ITEM_ROW = dict(zip(KUAIRAND_ITEM, (77, "NORMAL", "2022-04-10", "Web", 900, 9.0, "39,68", 20_000.0, 720.0, 1280.0)))
MS = 1_650_000_000_000


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


def lines(raw: Path) -> dict[str, UserLine]:
    check_offsets(raw / "seq.jsonl", raw / "seq_offsets.pkl")
    names = OriginalIds(read_index(raw / "indexer.pkl"))
    return {line.user: line for line in map(names.line, read_sequences(raw / "seq.jsonl"))}


def short(line: UserLine) -> list[tuple[int, int]]:
    return [(original_item_id(event.item), event.action) for event in line.events]


def marker(raw: Path) -> dict:
    return json.loads((raw / "raw.json").read_text())


def named(raw: Path, features: dict) -> dict:
    """Features under their columns' names, texts spelled out."""
    about = marker(raw)
    texts = {fid: {number: text for text, number in numbers.items()}
             for fid, numbers in about["feature_values"].items()}
    return {about["features"][fid]: texts.get(fid, {}).get(value, value) for fid, value in features.items()}


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
    kuairand(source, (0, 0, 5), name="splits_val.parquet")
    kuairand(source, (5, 9, 5), name="smoke_interactions.parquet")
    assert {user: short(line) for user, line in lines(convert_kuairand(source, tmp_path / "raw")).items()} == {
        "0": [(0, 0), (3, 0)]}
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
    source = movielens(tmp_path / "in", "2::9::3::50\n1::1::5::100\n1::9::4::90\n1::7::3::100\n1::4::1::100\n")
    raw = convert_movielens(source, tmp_path / "raw")
    assert {user: short(line) for user, line in lines(raw).items()} == {
        "2": [(9, 0)], "1": [(9, 1), (1, 1), (7, 0), (4, 0)]}
    assert [event.time for event in lines(raw)["1"].events] == [90, 100, 100, 100]


def test_movielens_features_are_people_genres_and_decade(tmp_path):
    raw = convert_movielens(movielens(tmp_path / "in", "2::9::3::50\n1::1::5::100\n1::7::5::101\n"), tmp_path / "raw")
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
    rows = [(2, 3, None), (8, 5, 10), (8, 3, None), (8, 4, 30), (2, 9, 7), (7, 3, None)]
    table = pd.DataFrame(rows, columns=["user", "item", "time"]).astype({"time": "Int64"})
    path = tmp_path / f"times.{kind}"
    table.to_parquet(path) if kind == "parquet" else table.to_csv(path, index=False)
    raw = convert_sequences(tmp_path / "log.txt.gz", tmp_path / "raw", path)
    times = {user: [event.time for event in line.events] for user, line in lines(raw).items()}
    assert times == {"8": [10, 10, 30], "2": [7, 7], "7": [1_000_000_000]}
    figures = marker(raw)["figures"]
    assert figures["times filled in"] == 3 and figures["users without any time"] == 1


def test_interactions_of_another_log_are_refused(tmp_path):
    (tmp_path / "log.txt").write_text("8 5 3\n2 3\n")
    for rows, message in (([(8, 3), (8, 5), (2, 3)], "user 8: found item 3, expected 5"),
                          ([(8, 5), (8, 3)], "user 2: found item missing"),
                          ([(8, 5), (8, 3), (2, 3), (4, 4)], "user 4")):
        path = tmp_path / "times.csv"
        pd.DataFrame(rows, columns=["user", "item"]).assign(time=1).to_csv(path, index=False)
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
    (tmp_path / "times.csv").write_text("user,item,time\n8,5,44\n")
    sources = {"kuairand": kuairand(tmp_path / "in", (0, 3, 1)), "sequences": tmp_path / "log.txt",
               "movielens": movielens(tmp_path / "ml", "1::1::5::9\n")}
    for kind, source in sources.items():
        assert marker(convert(kind, source, tmp_path / kind))["source"] == kind
    timed = convert("sequences", tmp_path / "log.txt", tmp_path / "timed", interactions=tmp_path / "times.csv")
    assert lines(timed)["8"].events[0].time == 44
    with pytest.raises(InputError, match="kuairand, movielens or sequences"):
        convert("netflix", tmp_path / "in", tmp_path / "raw")
    with pytest.raises(InputError, match="interactions for movielens"):
        convert("movielens", tmp_path / "ml", tmp_path / "raw", interactions=tmp_path / "times.csv")


def test_what_is_no_log_is_refused_with_its_place_and_leaves_nothing_behind(tmp_path):
    def refuses(convert, source, message):
        with pytest.raises(InputError, match=message):
            convert(source, tmp_path / "raw")
        assert not (tmp_path / "raw").exists()

    refuses(convert_kuairand, tmp_path / "nowhere", "no KuaiRand log")
    refuses(convert_kuairand, kuairand(tmp_path / "smoke", (0, 3, 1), name="smoke_interactions.parquet"), "no KuaiRand")
    source = kuairand(tmp_path / "in", (0, 3, 1))
    (source / "user_features_pure.csv.gz").write_bytes(b"no gzip")
    refuses(convert_kuairand, source, "user_features_pure.csv.gz: found no readable table")
    (source / "user_features_pure.csv.gz").unlink()
    refuses(convert_kuairand, source, r"0 files user_features\*.csv")
    pd.DataFrame({"user_id": [1]}).to_parquet(source / "splits_val.parquet")
    refuses(convert_kuairand, source, "splits_val.parquet: found no column video_id")
    kuairand(source, (0, 3, 1))
    pd.read_parquet(source / "splits_val.parquet").assign(video_id=[None]).to_parquet(source / "splits_val.parquet")
    refuses(convert_kuairand, source, "events without a whole user")
    source = movielens(tmp_path / "ml", "1::1::5::100\n1::1::5\n")
    refuses(convert_movielens, source, "ratings.dat:2: found 3 fields")
    (source / "ratings.dat").write_text("1::x::5::100\n")
    refuses(convert_movielens, source, "no number")
    (source / "ratings.dat").write_text("")
    refuses(convert_movielens, source, "without events")
    (source / "ratings.dat").write_text("1::1::5::-4\n")
    refuses(convert_movielens, source, "Unix seconds")
    (tmp_path / "log.txt").write_text("8 5 3\n2\n")
    refuses(convert_sequences, tmp_path / "log.txt", "log.txt:2: found a line without items")
    (tmp_path / "log.txt").write_text("8 5 3\n8 1\n")
    refuses(convert_sequences, tmp_path / "log.txt", "user '8' a second time")
    refuses(convert_sequences, tmp_path / "absent.txt", "no such file")
    (tmp_path / "log.txt").write_text("8 5 3\n")
    (tmp_path / "item2attributes.json").write_text("[1, 2")
    refuses(convert_sequences, tmp_path / "log.txt", "no attributes")


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
