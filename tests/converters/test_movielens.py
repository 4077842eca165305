"""MovieLens' other forms than 1M's: 100K's files, 10M's half stars, the .csv sets."""

import gzip

import pytest
from converted import events, item_features, lines, marker, named, refuses

from onepiece_comp.converters.movielens import GENRES_100K, convert_movielens


def test_the_csv_sets_have_movies_and_no_people(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n1,296,5.0,1147880044\n1,306,3.5,1147868817\n2,1,4.0,1147800000\n"
    )
    (source / "movies.csv").write_text('movieId,title,genres\n296,"Pulp Fiction (1994)",Comedy|Crime|Drama\n'
                                       '306,"Three Colors: Red, a film (1994) ",Drama\n1,Nameless,(no genres listed)\n')
    (source / "tags.csv").write_text("userId,movieId,tag,timestamp\n3,260,classic,1439472355\n")
    raw = convert_movielens(source, tmp_path / "raw")
    assert events(raw) == {"1": [("306", 0, 1147868817), ("296", 1, 1147880044)], "2": [("1", 1, 1147800000)]}
    assert item_features(raw) == {"296": {"genre": "Comedy", "second genre": "Crime", "decade": 1990},
                                  "306": {"genre": "Drama", "decade": 1990}, "1": {}}
    assert lines(raw)["1"].profile == {} and not {fid for fid in marker(raw)["features"] if fid.startswith("2")}
    assert events(convert_movielens(source / "ratings.csv", tmp_path / "again")) == events(raw)


def test_the_set_of_1998_has_flags_for_genres(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "u.data").write_text("196\t242\t3\t881250949\n196\t1\t5\t881250949\n7\t242\t4\t881250000\n")
    flags = lambda *places: "|".join("1" if place in places else "0" for place in range(19))
    (source / "u.item").write_bytes(f"242|Kolya, l'été (1996)|24-Jan-1997||http://x|{flags(0, 5)}\n"
                                    f"1|Toy Story (1995)|01-Jan-1995||http://y|{flags(3, 4, 5)}\n".encode("latin-1"))
    # as published
    (source / "u.genre").write_text("\n".join(f"{name}|{number}" for number, name in enumerate(GENRES_100K)) + "\n\n")
    (source / "u.user").write_text("196|49|M|writer|55105\n7|57|F|administrator|T8H1N\n")
    raw = convert_movielens(source, tmp_path / "raw")
    assert events(raw) == {"196": [("242", 0, 881250949), ("1", 1, 881250949)], "7": [("242", 1, 881250000)]}
    assert item_features(raw) == {"242": {"genre": "Comedy", "decade": 1990},
                                  "1": {"genre": "Animation", "second genre": "Children's", "decade": 1990}}
    assert named(raw, lines(raw)["7"].profile) == {"age": "57", "gender": "F", "occupation": "administrator",
                                                   "zip prefix": "T8"}


def test_half_stars_and_a_set_without_people(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "ratings.dat.gz").write_bytes(gzip.compress(
        b"1::2::3.5::881250010\n1::3::4::881250009\n1::3::4::881250009\n"))
    (source / "movies.dat").write_text("2::Heat: a film (1995)::Action\n3::B (2001)::Drama\n")
    raw = convert_movielens(source, tmp_path / "raw")
    assert (events(raw) == {"1": [("3", 1, 881250009), ("2", 0, 881250010)]}
            and marker(raw)["figures"]["repeats merged"] == 1)
    assert item_features(raw)["2"] == {"genre": "Action", "decade": 1990}


@pytest.mark.parametrize("name, text, message", [
    ("ratings.csv", "userId,movieId,rating\n1,2,3\n", r"no column timestamp \(but userId, movieId, rating\)"),
    ("ratings.csv", "userId,movieId,rating,timestamp\n1,2,3,4\n1,2\n", "ratings.csv:3: .*Expected 4 columns, got 2"),
    ("ratings.csv", "userId,movieId,rating,timestamp\n1,2,3,4\n,2,3,4\n", "ratings.csv:3: found no user"),
    ("ratings.csv", "userId,movieId,rating,timestamp\n1,2,good,4\n", "ratings.csv:2: .*'good'"),
    ("u.data", "1\t2\t3\t4\n1\t2\t3\n", "u.data:2: .*Expected 4 columns"),
    ("ratings.dat", "1::2::3::4\n1;2;3;4\n", "ratings.dat:2: .*expected UserID::MovieID"),
    ("ratings.dat", "1::2::3::4\n1:x:2::3::4\n", "ratings.dat:2: "),
    ("u.data", "1\t2\t3\t\n", "u.data:1: found no time"),
    ("u.data", "1\t2\t3\t881250949\n1\t2\t3\t881250949000\n",
     "u.data:2: found time 881250949000, expected seconds from 1990"),
    ("ratings.csv", "userId,movieId,rating,timestamp\n1,2,4,20200901\n",
     "ratings.csv:2: found time 20200901.*2020-09-01"),
    ("ratings.csv", "userId,movieId,rating,timestamp\n1,2,1,1147880044\n1,3,0,1147880045\n",
     "ratings.csv: found rating from 0 to 1, and so no click .*at least 4; .*convert it as a table with --action"),
])
def test_a_broken_rating_is_refused_with_its_line(tmp_path, name, text, message):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_text(text)
    refuses(message, convert_movielens, tmp_path / "in", tmp_path / "raw")


def test_a_cut_archive_and_two_sets_in_one_folder_are_refused(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    packed = gzip.compress("".join(f"{n % 90},{n * 7919 % 4001},3,{n}\n" for n in range(30_000)).encode())
    (source / "ratings.csv.gz").write_bytes(
        gzip.compress(b"userId,movieId,rating,timestamp\n") + packed[:len(packed) // 2])
    refuses("ratings.csv.gz:[0-9]+: found no readable text .*cut short", convert_movielens, source, tmp_path / "raw")
    (source / "u.data").write_text("1\t2\t3\t4\n")
    refuses(r"2 files of ratings \(u.data, ratings.csv.gz\)", convert_movielens, source, tmp_path / "raw")
