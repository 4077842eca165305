"""The public Parquet release through the whole toolkit: the same columns, splits and rankings as JSON lines give."""

import json
import shutil

import numpy as np
import pyarrow.parquet as parquet
import pytest
from command_line import command, refused
from small_models import SETS

from onepiece_comp.config import PreprocessConfig, SplitConfig, SynthesizeConfig
from onepiece_comp.config_reading import load_config
from onepiece_comp.dataset.evaluation_folder import read_evaluation
from onepiece_comp.dataset.preprocess import load_dataset
from onepiece_comp.errors import InputError
from onepiece_comp.logs.formats import SequenceWriter, read_index, write_candidates
from onepiece_comp.logs.open_log import JsonLinesLog, open_log
from onepiece_comp.logs.release_writer import write_candidate_table, write_release
from onepiece_comp.stages.infer import infer
from onepiece_comp.stages.preprocess import preprocess
from onepiece_comp.stages.run import run_all
from onepiece_comp.stages.split import split
from onepiece_comp.stages.synthesize import synthesize
from onepiece_comp.stages.train import train
from onepiece_comp.world import observables


def same_columns(one, other):
    """Every column file byte by byte; returns both schemas."""
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir()) and len(names) > 10
    for name in names:
        if name != "schema.json":
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    schemas = [json.loads((folder / "schema.json").read_text()) for folder in (one, other)]
    made_of = [schema.pop("wrote")["made_of"] for schema in schemas]
    assert made_of[0].pop("train") != made_of[1].pop("train") and made_of[0] == made_of[1]
    return schemas


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A synthetic world in the release's layout, made on the command line."""
    place = tmp_path_factory.mktemp("release")
    done = command("synthesize", place / "TencentGR", "--layout", "parquet", "--set", "synthesize.users=80")
    assert done.returncode == 0, done.stderr
    return place / "TencentGR"


def test_a_world_gives_the_same_columns_from_either_layout(tmp_path, monkeypatch):
    monkeypatch.setattr(observables, "VECTORLESS", 0.3)  # of cold candidates too, which the JSON lines lack
    for layout in ("jsonl", "parquet"):
        synthesize(tmp_path / layout, SynthesizeConfig(users=40, layout=layout, feature_111=False))
    one, other = same_columns(*(preprocess(tmp_path / layout, tmp_path / f"{layout}-columns", PreprocessConfig())
                                for layout in ("jsonl", "parquet")))
    assert (one.pop("source")["layout"], other.pop("source")["layout"]) == ("jsonl", "parquet")
    assert one == other and one["corners"]["null actions"] > 0 and len(one["embeddings"]) == 6


def test_the_world_has_the_files_and_columns_of_the_release(world):
    files = {name: sorted((world / name).rglob("*.parquet")) for name in ("seq", "user_feat", "item_feat", "candidate",
                                                                          "mm_emb")}
    assert [len(files[name]) for name in ("seq", "user_feat", "item_feat", "candidate")] == [10, 10, 10, 1]
    assert min(path.name for path in (world / "mm_emb").iterdir()) == "emb_81_32_parquet"
    item = parquet.read_schema(files["item_feat"][0])
    assert "111" not in item.names and len(item.names) == 14 and set(map(str, item.types)) == {"int64"}
    user = parquet.read_schema(files["user_feat"][0])
    assert [str(user.field(fid).type)[:4] for fid in ("103", "106", "107", "108", "109", "110")] == ["int6", "list",
        "list", "list", "int6", "list"]
    kind = str(parquet.read_schema(files["seq"][0]).field("seq").type)
    assert kind == "list<element: struct<item_id: int64, action_type: int32, timestamp: int64>>"
    table = parquet.read_table(files["mm_emb"][0])
    assert [str(kind) for kind in table.schema.types] == ["string", "list<element: double>"]
    assert len(parquet.read_table(files["seq"][0])) == 8 and "111" not in read_index(world / "indexer.pkl").features
    candidates, items = list(open_log(world).candidates()), read_index(world / "indexer.pkl").items
    cold = [candidate for candidate in candidates if candidate.creative_id not in items]
    assert (0.15 < len(cold) / len(candidates) < 0.3
            and any(isinstance(v, str) for one in cold for v in one.features.values()))
    assert not any(isinstance(v, str) for one in candidates if one not in cold for v in one.features.values())


def test_the_real_sample_gives_the_same_columns_as_parquet(data_dir, tmp_path):
    sample, config = data_dir / "tencentgr_1k_sample", PreprocessConfig(trend_budget_mib=16)
    release = write_release(sample, tmp_path / "release")
    one, other = same_columns(preprocess(sample, tmp_path / "one", config),
                              preprocess(release, tmp_path / "other", config))
    assert one["identity_features"] == ["111"] and other["identity_features"] == []
    assert one["corners"]["null actions"] == 103
    for schema in (one, other):
        del schema["source"], schema["identity_features"]
    assert one == other and len(list((release / "seq").iterdir())) == 2


def test_a_split_is_the_same_from_either_layout(raw_log, tmp_path):
    config = SplitConfig(auto_cut=0.7)
    release = write_release(raw_log, tmp_path / "release", parts=3)
    one, other = split(raw_log, tmp_path / "one", config), split(release, tmp_path / "other", config)
    names = [path.relative_to(one) for path in sorted(one.rglob("*")) if path.is_file()
             and "creative_emb" not in path.parts]
    assert len(names) > 8
    for name in names:
        if name.name != "split.json":
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert sorted(path.name for path in (other / "eval" / "mm_emb").iterdir()) == ["emb_81_8_parquet",
        "emb_82_5_parquet"]


def shuffled(world, folder):
    """A copy whose users come in another order than their items were numbered, and whose candidates say otherwise."""
    shutil.copytree(world, folder)
    parts = sorted((folder / "seq").iterdir())
    for path in parts:
        path.rename(folder / "seq" / f"{9 - parts.index(path)}.parquet")
    candidates = [one._replace(features={**one.features, "100": 1}) for one in open_log(world).candidates()]
    shutil.rmtree(folder / "candidate")
    write_candidate_table(folder, candidates)
    return folder


def test_the_release_is_evaluated_as_the_same_users_in_json_lines(world, tmp_path):
    schema = load_dataset(preprocess(world, tmp_path / "dataset", PreprocessConfig(embeddings=("81",)))).schema
    world, lines = shuffled(world, tmp_path / "shuffled"), tmp_path / "eval"
    log = open_log(world)
    lines.mkdir()
    with SequenceWriter(lines, "predict_seq") as file:
        for line in log.lines():
            file.write(line)
    write_candidates(lines / "predict_set.jsonl", log.candidates())
    shutil.copy(world / "indexer.pkl", lines)
    (lines / "mm_emb").symlink_to(world / "mm_emb")
    one, other = read_evaluation(world, schema), read_evaluation(lines, schema)
    assert one.users == other.users and len(one.users) == 80
    for name in set(one._fields) - {"users", "items"}:
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    for name in ("creative_id", "id_row", "features"):
        assert np.array_equal(getattr(one.items, name), getattr(other.items, name)), name
    assert (np.array_equal(one.items.embeddings["81"], other.items.embeddings["81"])
            and (one.items.id_row[1:] == 0).any())
    shutil.copy(min((world / "seq").iterdir()), world / "seq" / "again.parquet")
    with pytest.raises(InputError, match="a user that stands twice"):
        read_evaluation(world, schema)


def test_the_release_flows_from_download_to_score_and_to_a_submission(world, tmp_path):
    config = load_config("tiny", None, SETS)
    report = json.loads(run_all(world, tmp_path / "work", config).read_text())
    assert report["missing_users"] == 0 and report["users"] > 60 and "ceiling" in report["against"]
    data = preprocess(world, tmp_path / "dataset", config.preprocess)
    train(data, tmp_path / "run", config)
    result = json.loads(infer(tmp_path / "run", tmp_path / "result", config.infer, data=world).read_text())
    candidates = {candidate.creative_id for candidate in open_log(world).candidates()}
    assert sorted(result["user"]) == sorted(read_index(world / "indexer.pkl").users)
    assert all(len(set(ten)) == 10 and candidates.issuperset(ten) for ten in result["top10s"])


def test_a_folder_is_told_by_its_files(world, raw_log, tmp_path):
    assert open_log(world).layout == "parquet" and isinstance(open_log(raw_log), JsonLinesLog)
    assert len(open_log(world).files()) == 30 and open_log(raw_log).files() == [raw_log / "seq.jsonl"]
    with pytest.raises(InputError, match="seq/ of the public release"):
        open_log(tmp_path)
    refused(command("synthesize", tmp_path / "out", "--layout", "parket"), "parket", "one of jsonl, parquet")
    assert not (tmp_path / "out").exists()
