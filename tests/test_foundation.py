"""Artefacts are whole or absent; configuration is strict; one error says it all."""

import errno
import io
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from onepiece_comp import artefacts, console
from onepiece_comp.artefacts import (
    atomic_file, atomic_folder, files_under, fingerprint, names_apart, read_marker, write_json)
from onepiece_comp.columns import ColumnWriter, load_column
from onepiece_comp.config import Config, ModelConfig
from onepiece_comp.config_ranges import settings, show_settings
from onepiece_comp.config_reading import from_dict, load_config, to_dict
from onepiece_comp.console import mean_and_spread
from onepiece_comp.dataset.targets import unix_seconds
from onepiece_comp.errors import InputError
from onepiece_comp.funnel.index import INDEXES
from onepiece_comp.funnel.infer import MODES
from onepiece_comp.models.encoder import BLOCKS
from onepiece_comp.models.losses import LOSSES
from onepiece_comp.models.ranker import ATTENTIONS
from onepiece_comp.presets import PRESETS
from onepiece_comp.tokenizer.build import QUANTISERS
from onepiece_comp.tokenizer.collisions import RULES


def test_a_folder_appears_only_when_its_block_ends_well(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RuntimeError), atomic_folder(out, "schema.json") as folder:
        (folder / "column").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(out, "schema.json") as folder:
        write_json(folder / "schema.json", {"a": 1})
        assert not out.exists()
    assert read_marker(out, "dataset") == {"a": 1} and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_earlier_output_stays_until_the_new_one_is_whole_and_foreign_folders_are_never_replaced(tmp_path):
    out = tmp_path / "out"
    with atomic_folder(out, "schema.json") as folder:
        write_json(folder / "schema.json", {"version": 1})
    with pytest.raises(RuntimeError), atomic_folder(out, "schema.json"):
        raise RuntimeError
    assert read_marker(out, "dataset") == {"version": 1}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="did not write"), atomic_folder(tmp_path / "mine", "schema.json"):
        pass
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="full disk"), atomic_file(tmp_path / "x.json") as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", ["np.save(temporary.open('wb'), np.zeros(99999))",
                                   "save_tensors({'x': torch.zeros(99999)}, temporary)"])
def test_arrays_and_weights_tell_a_full_disk_too(tmp_path, write):
    """Neither numpy nor PyTorch raises the system's error as it is;
    a limit of the file's size stands in for the disk.
    """
    script = textwrap.dedent(f"""
        import resource, signal
        import numpy as np, torch
        from pathlib import Path
        from onepiece_comp.artefacts import atomic_file
        from onepiece_comp.training.checkpoint import save_tensors
        from onepiece_comp.errors import InputError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            with atomic_file(Path({str(tmp_path)!r}) / "x.npy") as temporary:
                {write}
        except InputError as error:
            print(error)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "full disk" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_not_taken_for_whole_and_is_swept_by_the_next(tmp_path):
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from onepiece_comp.artefacts import atomic_folder
        with atomic_folder(Path({str(tmp_path)!r}) / "out", "schema.json") as folder:
            (folder / "column").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists() and len(list(tmp_path.iterdir())) == 1
    with atomic_folder(tmp_path / "out", "schema.json") as folder:
        write_json(folder / "schema.json", {})
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_wrong_folder_is_named_for_what_it_is(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        read_marker(tmp_path / "none", "dataset")
    write_json(tmp_path / "tokenizer.json", {})
    with pytest.raises(InputError, match="found a tokenizer folder, expected a dataset folder"):
        read_marker(tmp_path, "dataset")


def test_a_column_written_in_blocks_loads_as_one_array(tmp_path):
    with ColumnWriter(tmp_path, "ids", "int32") as ids, ColumnWriter(tmp_path, "vectors", "float16",
                                                                     width=3) as vectors:
        for block in range(5):
            ids.append(np.arange(block))
            vectors.append(np.full((2, 3), block))
    np.testing.assert_array_equal(load_column(tmp_path, "ids"), np.concatenate([np.arange(b) for b in range(5)]))
    assert load_column(tmp_path, "vectors").shape == (10, 3)


def test_a_column_cut_short_is_refused(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(100))
    whole = (tmp_path / "ids.npy").read_bytes()
    for length in (0, 5, 60, 200, len(whole) - 8):
        (tmp_path / "ids.npy").write_bytes(whole[:length])
        with pytest.raises(InputError, match="cut short"):
            load_column(tmp_path, "ids")


def test_an_empty_column_loads(tmp_path):
    with ColumnWriter(tmp_path, "ids", "int32"):
        pass
    assert load_column(tmp_path, "ids").shape == (0,)


def test_fingerprints_follow_content(tmp_path):
    (tmp_path / "a").write_text("1")
    first = fingerprint(tmp_path / "a", {"x": 1}, np.arange(3))
    assert first == fingerprint(tmp_path / "a", {"x": 1}, np.arange(3))
    assert first != fingerprint(tmp_path / "a", {"x": 1}, np.arange(4))
    (tmp_path / "a").write_text("2")
    assert first != fingerprint(tmp_path / "a", {"x": 1}, np.arange(3))


def test_files_and_overrides_win_over_presets_in_this_order(tmp_path):
    (tmp_path / "c.yaml").write_text("model:\n  width: 32\n  layers: 3\ntrain: {epochs: 2}\n")
    config = load_config("small", tmp_path / "c.yaml", ["model.layers=5", "infer.mode=beam", "model.hash_sizes=[3, 5]"])
    assert (config.model.width, config.model.layers, config.model.heads) == (32, 5, 4)
    assert config.train.epochs == 2.0 and config.infer.mode == "beam" and config.model.hash_sizes == (3, 5)


@pytest.mark.parametrize(("text", "line", "words"), [
    ("model:\n  wdith: 3\n", 2, "did you mean 'width'"), ("modle:\n  width: 3\n", 1, "did you mean 'model'"),
    ("train:\n  epochs: many\n", 2, "expected a float"), ("train:\n  seed: 1.5\n", 2, "expected a int"),
    ("train:\n  seed: true\n", 2, "expected a int"), ("train: 3\n", 1, "expected keys"),
    ("model:\n  width: 3\n  width: 4\n", 3, "second time"), ("train: {epochs: 9}\ntrain: {seed: 1}\n", 2,
                                                             "'train' a second time"),
    ("train:\n  no: 3\n", 1, "unknown key False"), ("1: {a: 2}\n", 1, "unknown section 1"),
    ("model:\n  hash_sizes: 3\n", 2, "expected a list")])
def test_a_wrong_key_or_type_is_named_with_file_and_line(tmp_path, text, line, words):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=f"c.yaml:{line}: ") as caught:
        load_config("tiny", tmp_path / "c.yaml")
    assert words in str(caught.value)


@pytest.mark.parametrize("wrong", [
    "train.batch_users=0", "train.log_every=0", "train.learning_rate=0", "model.heads=3", "model.active_experts=9",
    "model.layers=0",
    "train.action_weights=[1]", "train.device=gpu", "infer.batch_users=0", "infer.beam=0", "infer.survivors=-1",
    "infer.union=-1",
    "infer.action=7", "ranker.checkpoints=0", "ranker.batch_lists=0", "train.loss=BCE", "train.precision=bf16",
    "ranker.keep=allways",
    "preprocess.reader=compild", "preprocess.max_array_values=-1", "preprocess.trend_bucket_hours=0.0002",
    "preprocess.threads=-1",
    "split.seed=-1", "score.seed=-1", "train.validation_users=-1", "model.dropout=1", "model.temperature=0",
    "model.expert_width=0",
    "model.hash_sizes=[0]", "model.balance_weight=-1", "tokenizer.balance=-3", "train.duplicate_cosine=-1",
    "train.action_weights=[1,-1,1,1]", "train.seed=99999999999", "train.threads=5000"])
def test_a_setting_out_of_its_range_is_named_when_it_is_read(wrong):
    with pytest.raises(InputError, match=f"^{wrong.split('=')[0]}: found"):
        load_config("tiny", None, [wrong])


def test_presets_and_cards_by_number_are_in_range():
    for preset in PRESETS:
        assert load_config(preset, None, ["train.device=cuda:1", "model.rotary=true"]).train.device == "cuda:1"
    with pytest.raises(InputError, match="train.sampled_negatives"):
        load_config("tiny", None, ["train.loss=bce", "train.sampled_negatives=0"])
    with pytest.raises(InputError, match="model.rotary"):
        load_config("tiny", None, ["model.rotary=true", "model.width=6", "model.heads=2"])


@pytest.mark.parametrize(("file", "words"), [("a: [", "no valid YAML"), ("split: {cut: 2022-02-30}", "no valid YAML"),
                                             ("- 1", "list")])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, file, words):
    (tmp_path / "c.yaml").write_text(file)
    with pytest.raises(InputError, match=words):
        load_config("tiny", tmp_path / "c.yaml")


@pytest.mark.parametrize("cut", ["2022-05-06", "2022-05-06T00:00:00Z", "1651795200"])
def test_a_cut_may_be_written_as_a_date_or_as_seconds(tmp_path, cut):
    (tmp_path / "c.yaml").write_text(f"split:\n  cut: {cut}\n")
    of_set = load_config("tiny", None, [f"split.cut={cut}"]).split
    assert unix_seconds(load_config("tiny", tmp_path / "c.yaml").split.cut, "") == unix_seconds(of_set.cut,
        "") == 1651795200
    with pytest.raises(InputError, match="milliseconds"):
        unix_seconds("1651795200000", "split.cut")


def test_files_below_a_folder_are_found_through_links_and_paths_told_apart(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a").touch()
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "link").symlink_to(tmp_path / "far")
    assert files_under(tmp_path / "near") == [tmp_path / "near" / "link" / "a"] and files_under(tmp_path / "none") == []
    with pytest.raises(InputError, match="twice"):
        names_apart([tmp_path, tmp_path], "--against")


def test_a_config_survives_json():
    config = load_config("full")
    for section in ("model", "train", "infer"):
        value = getattr(config, section)
        assert from_dict(type(value), to_dict(value), "x") == value
    with pytest.raises(InputError, match="unknown key"):
        from_dict(ModelConfig, {"depth": 3}, "config.json")


def test_every_setting_says_what_it_means_and_its_default_is_what_it_may_be():
    found = list(settings(Config()))
    assert len(found) > 120 and len({name for name, *_ in found}) == len(found)
    for name, value, meaning, fits in found:
        assert meaning.strip() and (fits is None or fits.test(value)), name


def test_the_choices_of_a_setting_are_those_that_its_stage_knows():
    """The tables from name to maker stand where the makers are."""
    words = {name: fits.words.removeprefix("one of ").split(", ") for name, _, _, fits in settings(Config())
             if fits is not None}
    meaning = {name: text for name, _, text, _ in settings(Config())}
    for name, table in (("tokenizer.quantiser", QUANTISERS), ("tokenizer.resolve", RULES), ("model.block", BLOCKS),
                        ("infer.mode", ("auto", *MODES)), ("train.loss", LOSSES), ("ranker.kind", ATTENTIONS),
                        ("infer.index", ("exact", *INDEXES))):
        assert set(words[name]) == set(table) if name in words else all(known in meaning[name] for known in table), name


def test_one_process_does_not_sweep_what_another_is_writing(tmp_path):
    living = tmp_path / f".out.writing-{os.getppid()}"
    living.mkdir()
    artefacts._sweep(tmp_path / "out")
    assert living.exists()


def test_a_mean_over_seeds_has_its_sample_deviation_where_the_seeds_differ():
    assert mean_and_spread([0.1, 0.2, 0.3]) == "0.2000 ± 0.1000" and mean_and_spread([0.25]) == "0.2500"
    assert mean_and_spread([0.5, 0.5]) == "0.5000" and mean_and_spread([0.1, -0.3], sign=True) == "-0.1000 ± 0.2828"
    assert mean_and_spread([0.1], sign=True) == "+0.1000"


def test_brackets_in_a_table_on_a_terminal_are_text(monkeypatch):
    from rich.console import Console

    written = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr(console, "_console", written)
    console.table("grid[v2].yaml [/x]", ("row [a]", "b"), [("[bold]x in a row that is wider than the title", 1)])
    shown = written.file.getvalue()
    assert all(text in shown for text in ("grid[v2].yaml [/x]", "row [a]", "[bold]x"))


def test_a_section_of_settings_is_listed_with_what_it_may_be_and_an_unknown_one_refused(capsys):
    show_settings(load_config("tiny", None, ["score.k=5"]), "score")
    listed = capsys.readouterr().out
    assert "score.k" in listed and "1 or more" in listed and "cut-off" in listed and "train." not in listed
    with pytest.raises(InputError, match="no section of settings, expected one of synthesize, split"):
        show_settings(Config(), "scores")
