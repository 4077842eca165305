"""The whole flow: a small world and the real sample from log to score, a second call that reuses,
the README's commands.
"""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import COMMANDS, ROOT, command
from killed import killed_before_it_was_whole
from small_models import SETS

from onepiece_comp.artefacts import moving_aside
from onepiece_comp.config import PreprocessConfig
from onepiece_comp.config_reading import load_config
from onepiece_comp.converters.table import convert_table
from onepiece_comp.errors import InputError
from onepiece_comp.stages.preprocess import preprocess
from onepiece_comp.stages.run import run_all
from onepiece_comp.stages.train import train, train_or_resume

@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A synthetic world of 80 users, run once."""
    from onepiece_comp.stages.synthesize import synthesize
    place, config = tmp_path_factory.mktemp("flow"), load_config("tiny", None, SETS)
    synthesize(place / "raw", config.synthesize)
    run_all(place / "raw", place / "work", config)
    return place


def test_a_world_ends_with_every_user_scored_beside_the_baselines_and_its_ceiling(world):
    report = json.loads((world / "work" / "score.json").read_text())
    assert {"retrieval", "beam", "cascade", "popularity", "popularity_day", "item_knn", "random",
            "ceiling"} <= set(report["against"])
    assert (report["missing_users"] == 0
            and report["users"] == len((world / "work" / "split" / "truth.jsonl").read_text().splitlines()))
    assert report["against"]["ceiling"]["score"]["mean"] > 2 * report["against"]["popularity_day"]["score"]["mean"]
    result = json.loads((world / "work" / "result" / "result.json").read_text())
    same = json.loads((world / "work" / "result" / "cascade.json").read_text())
    assert result["top10s"] == same["top10s"]


def forced(raw: Path, work: Path, sets: list[str]) -> Path:
    with moving_aside(print):
        return run_all(raw, work, load_config("tiny", None, sets))


def test_a_second_call_reuses_all_and_a_changed_setting_only_what_follows_it(world, capsys):
    before = (world / "work" / "score.json").stat().st_mtime_ns
    neutral = ["train.threads=2", "infer.threads=2", "train.log_every=7", "preprocess.reader=plain"]
    run_all(world / "raw", world / "work", load_config("tiny", None, [*SETS, *neutral]))
    printed = capsys.readouterr().out
    figures = json.loads((world / "work" / "split" / "split.json").read_text())["figures"]
    repeats = f"{figures['targets seen in the history']} of {figures['eval users']} targets"
    assert repeats in printed and "own history; infer.filter_seen=true" in printed
    assert printed.count(": reused") == 8 and (world / "work" / "score.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="work: found result, made with infer.beam 20, now 5, expected .*--force"):
        run_all(world / "raw", world / "work", load_config("tiny", None, [*SETS, "infer.beam=5"]))
    answer = (world / "work" / "result" / "result.json").read_bytes()
    forced(world / "raw", world / "work", [*SETS, "infer.beam=5"])
    printed = capsys.readouterr().out
    assert "== infer" in printed and "== score" in printed and printed.count(": reused") == 6
    (aside,) = (world / "work").glob("result.20*")
    assert (aside / "result.json").read_bytes() == answer and aside.name in printed
    shutil.rmtree(aside)


def test_what_was_replaced_since_is_not_reused(world, tmp_path):
    """Columns made anew by hand under other settings: the trainings that stand are of others."""
    work = Path(shutil.copytree(world / "work", tmp_path / "work"))
    with moving_aside(print):
        preprocess(work / "split" / "train", work / "dataset", PreprocessConfig(embeddings=()))
    sets = [*SETS, "infer.beam=5"]
    with pytest.raises(InputError, match="found dataset, dataset/.* is not as it was written; retrieval, made from "
                                         "another output"):
        run_all(world / "raw", work, load_config("tiny", None, sets))
    shutil.rmtree(work / "dataset")
    shutil.copytree(world / "work" / "dataset", work / "dataset")
    (work / "joint" / "run.json").write_text((work / "joint" / "run.json").read_text() + " ")
    with pytest.raises(InputError, match="found joint, joint/run.json is not as it was written; result, made from "
                                         "another"):
        run_all(world / "raw", work, load_config("tiny", None, sets))


def test_baselines_are_made_anew_under_another_filter_and_what_else_lies_there_is_not_scored(world, tmp_path, capsys):
    work = Path(shutil.copytree(world / "work", tmp_path / "work"))
    (work / "baselines" / "score.json").write_text("{}")  # as `score` on one of them leaves it
    config = [*SETS, "infer.mode=retrieval", "infer.filter_seen=false"]
    against = json.loads(forced(world / "raw", work, config).read_text())["against"]
    printed = capsys.readouterr().out
    assert "== baselines" in printed and "infer.filter_seen=false, ours and the baselines" in printed
    assert "last_seen" in against and "score" not in against
    forced(world / "raw", work, [*config, "infer.filter_seen=true"])
    assert "== baselines" in capsys.readouterr().out and not (work / "baselines" / "last_seen.json").exists()


def test_what_stands_on_a_stage_that_is_done_again_is_done_again_too(world, capsys):
    shutil.rmtree(world / "work" / "result")
    run_all(world / "raw", world / "work", load_config("tiny", None, [*SETS, "infer.beam=5"]))
    printed = capsys.readouterr().out
    assert "== infer" in printed and "== score" in printed and printed.count(": reused") == 6


def test_a_ranker_joins_the_flow_on_request(world):
    """Its answers are scored beside those of the cascade without it."""
    sets = [*SETS, "ranker.use=true", "ranker.examples=20", "ranker.depth=20", "ranker.epochs=1", "ranker.threads=1"]
    shutil.copytree(world / "work", world / "ranked")
    forced(world / "raw", world / "ranked", sets)
    assert json.loads((world / "ranked" / "ranker" / "ranker.json").read_text())["mode"] == "cascade"
    funnel = json.loads((world / "ranked" / "result" / "funnel.json").read_text())
    assert funnel["ranker"]["path"] == str(world / "ranked" / "ranker")
    assert "cascade" in json.loads((world / "ranked" / "score.json").read_text())["against"]


def test_a_table_that_joins_the_log_is_read_and_old_truths_are_not_scored(world, tmp_path, capsys):
    raw, work = (Path(shutil.copytree(world / name, tmp_path / name)) for name in ("raw", "work"))
    shutil.rmtree(raw / "oracle")
    features = json.loads((raw / "item_feat_dict.json").read_text())
    item = next(iter(features))
    features[item] = {**features[item], "117": 1 + features[item].get("117", 0) % 2}
    (raw / "item_feat_dict.json").write_text(json.dumps(features))
    forced(raw, work, [*SETS, "infer.beam=5"])
    assert ": reused" not in capsys.readouterr().out
    assert not {"ceiling", "random"} & set(json.loads((work / "score.json").read_text())["against"])


def test_a_run_is_kept_where_it_cannot_go_on_for_now(world, tmp_path):
    """No card, a full disk, a state that cannot be read: it is never removed."""
    run, config = tmp_path / "run", load_config("tiny", None, SETS)
    with killed_before_it_was_whole():
        train_or_resume(world / "work" / "dataset", run, config)
    weights = (run / "resume.pt").read_bytes()
    broken = replace(config, train=replace(config.train, device="cuda"))
    with pytest.raises(InputError):
        train_or_resume(world / "work" / "dataset", run, broken)
    assert (run / "resume.pt").read_bytes() == weights
    (run / "resume.pt").write_bytes(weights[:100])
    with pytest.raises(InputError, match="--force"):
        train_or_resume(world / "work" / "dataset", run, config)
    with moving_aside(print):
        train_or_resume(world / "work" / "dataset", run, config)  # what cannot be read moves aside
    (aside,) = tmp_path.glob("run.20*")
    assert (run / "run.json").is_file() and (aside / "resume.pt").read_bytes() == weights[:100]


def test_a_catalogue_that_cannot_fill_an_answer_is_found_before_anything_is_trained(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("u,i,t\n" + "".join(f"u{user},i{(user + step) % 9},{1_600_000_000 + 1000 * step + user}\n"
                                       for user in range(30) for step in range(8)))
    convert_table(log, tmp_path / "raw", user="u", item="i", time="t")
    with pytest.raises(InputError, match="raw: found 9 candidates, expected at least 10, as in an answer"):
        run_all(tmp_path / "raw", tmp_path / "work", load_config("tiny", None, SETS))
    assert not (tmp_path / "work" / "retrieval").exists()
    preprocess(tmp_path / "raw", tmp_path / "data", PreprocessConfig())
    with pytest.raises(InputError, match="data: found 9 items, expected at least 10"):
        train(tmp_path / "data", tmp_path / "run", load_config("tiny", None, SETS))


def test_trainings_made_stage_by_stage_are_not_trained_anew(world, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(world / "work" / "retrieval", work / "retrieval")
    with pytest.raises(InputError, match="retrieval without stages.json"):
        run_all(world / "raw", work, load_config("tiny", None, SETS))
    assert [path.name for path in work.iterdir()] == ["retrieval"] and (work / "retrieval" / "run.json").is_file()


def test_the_flow_twice_gives_the_same_recommendations(world, tmp_path):
    shutil.copytree(world / "raw", tmp_path / "raw")
    run_all(tmp_path / "raw", tmp_path / "work", load_config("tiny", None, [*SETS, "infer.beam=5"]))
    first, second = (json.loads((place / "work" / "result" / "result.json").read_text()) for place in (world, tmp_path))
    assert first["top10s"] == second["top10s"] and first["user"] == second["user"]


def test_a_killed_training_of_the_flow_goes_on_where_it_stood(world, tmp_path, capsys):
    work = Path(shutil.copytree(world / "work", tmp_path / "work"))
    stages = json.loads((work / "stages.json").read_text())
    for name in ("train jointly", "infer", "score"):
        del stages[name]
    (work / "stages.json").write_text(json.dumps(stages))
    for name in ("joint", "result"):
        shutil.rmtree(work / name)
    with killed_before_it_was_whole():
        run_all(world / "raw", work, load_config("tiny", None, [*SETS, "infer.beam=5"]))
    run_all(world / "raw", work, load_config("tiny", None, [*SETS, "infer.beam=5"]))
    assert "resuming after step" in capsys.readouterr().out
    first, second = (json.loads((place / "result" / "result.json").read_text())["top10s"] for place in (world / "work",
        work))
    assert first == second


def test_the_real_sample_flows_from_log_to_score(data_dir, tmp_path):
    report = json.loads(run_all(data_dir / "tencentgr_1k_sample", tmp_path / "work",
                                load_config("tiny", None, SETS)).read_text())
    assert report["users"] == 39 and report["missing_users"] == 0
    tokenizer = json.loads((tmp_path / "work" / "tokenizer" / "tokenizer.json").read_text())
    assert tokenizer["figures"]["after"][-1]["shared"] == 0


def test_every_command_of_the_readme_and_the_docs_exists_with_its_options():
    pages = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    lines = [line.split("#")[0].split() for page in pages for line in page.read_text().splitlines()
             if line.startswith("    onepiece-comp ")]
    assert len(lines) >= 10
    for words in lines:
        assert words[1] in COMMANDS
        help_text = command(words[1], "--help").stdout
        assert all(option in help_text for option in words if option.startswith("--")), words


def test_the_readme_and_the_docs_name_only_settings_and_files_that_exist():
    config = load_config()
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text()
        sections = "synthesize|split|preprocess|tokenizer|model|train|infer|score"
        for section, name in re.findall(rf"\b({sections})\.([a-z_]+)\b(?!\.)", text):
            if name not in ("py", "json", "jsonl", "log", "md", "pt"):
                assert hasattr(getattr(config, section), name), (page.name, section, name)
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / target).exists(), (page.name, target)


def test_run_sh_refuses_an_unknown_word_without_installing(tmp_path):
    import subprocess
    for name in ("run.sh", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    done = subprocess.run(["bash", "run.sh", "fly"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "usage" in done.stderr and not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("name", ["kuairand", "worlds", "world_limits", "public"])
def test_the_tables_of_readme_and_results_are_those_that_the_benchmarks_wrote(name):
    written = (ROOT / "benchmarks" / "results" / f"{name}.md").read_text().strip().splitlines()
    table = [line for line in written if line.startswith("|")]
    shown = (ROOT / "README.md").read_text() + (ROOT / "docs" / "results.md").read_text()
    assert len(table) > 3 and "\n".join(table) in shown
