"""The table of tokenizers holds what building each would have told, and says what cannot be built."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from written_tokenizers import write_dataset

from onepiece_comp.config import TokenizerConfig
from onepiece_comp.errors import InputError
from onepiece_comp.reports.page import can_plot
from onepiece_comp.stages.build_tokenizer import build_tokenizer
from onepiece_comp.studies import tokenizer_report as report_module
from onepiece_comp.studies.tokenizer_report import tokenizer_report
from onepiece_comp.tokenizer.collisions import RULES

XHTML, SVG = "{http://www.w3.org/1999/xhtml}", "{http://www.w3.org/2000/svg}"


@pytest.fixture()
def dataset(tmp_path):
    """120 items, 9 of them without a vector, crowded so that ids are shared; a second source beside it."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(120, 4)) ** 3
    folder = write_dataset(tmp_path / "dataset", 5000 + generator.permutation(120), vectors, np.arange(120) % 14 > 0)
    np.save(tmp_path / "other.npy", np.concatenate([np.zeros((1, 3)), generator.normal(size=(120, 3))]))
    return folder


def made(dataset, out, *, settings=None, **asked):
    """The page and the figures of a report."""
    page = tokenizer_report(dataset, out, TokenizerConfig(codes=16, **settings or {}),
                            **{"sources": ["emb_81"], **asked})
    return page.read_text("utf-8"), json.loads(out.with_suffix(".json").read_text())


@pytest.mark.parametrize("quantiser", ["residual_kmeans", "nested_kmeans", "fsq"])
def test_each_row_has_the_figures_that_building_that_tokenizer_stores(dataset, tmp_path, quantiser):
    fusion = f"emb_81+{tmp_path / 'other.npy'}:2"
    _, figures = made(dataset, tmp_path / "report.html", sources=["emb_81", fusion], quantisers=[quantiser])
    assert [(row["vectors"], row["rule"]) for row in figures["rows"]] == [
        (source, rule) for source in ("emb_81", fusion) for rule in RULES]
    assert figures["rows"][0]["before"][-1]["shared"] > 0 and figures["rows"][0]["items_without_vector"] == 9
    for row in figures["rows"]:
        config = TokenizerConfig(codes=16, quantiser=quantiser, resolve=row["rule"])
        out = build_tokenizer(dataset, tmp_path / f"{row['rule']}-{row['vectors'] == fusion}", config,
                              vectors=row["vectors"])
        stored = json.loads((out / "tokenizer.json").read_text())["figures"]
        for key in ("before", "after", "moved", "overflowed", "variance", "items", "items_without_vector"):
            assert row[key] == stored[key], (row["rule"], key)


def test_a_quantiser_is_fitted_and_encodes_once_for_all_rules(dataset, tmp_path, monkeypatch):
    fits, fit = [], report_module.fit_quantiser
    monkeypatch.setattr(report_module, "fit_quantiser", lambda *asked: (fits.append(asked[2].quantiser),
                                                                        fit(*asked))[1])
    made(dataset, tmp_path / "report.html", quantisers=["fsq", "residual_kmeans", "fsq"])
    assert fits == ["fsq", "residual_kmeans"]


def test_the_page_has_a_line_per_combination_and_the_plots(dataset, tmp_path, capsys):
    page, figures = made(dataset, tmp_path / "report.html", rules=["none", "counter", "assignment"])
    root = ElementTree.fromstring(page.split("\n", 1)[1])
    lines = [[[cell.text or "" for cell in line.iter(f"{XHTML}td")] for line in table.iter(f"{XHTML}tr")][1:]
             for table in root.iter(f"{XHTML}table")]
    assert [[line[2] for line in table] for table in lines] == [["none", "counter", "assignment"]] * 2
    for row, collisions, worth in zip(figures["rows"], *lines):
        assert collisions[4] == f"{row['after'][-1]['shared']:.2%}" and collisions[6] == str(row["after"][-1]["unique"])
        assert worth[4] == f"{row['after'][1]['relative_error']:.4f}" and worth[7] == "9"
    assert [line[4] for line in lines[0]][1:] == ["0.00%", "0.00%"] and lines[0][0][4] != "0.00%"
    printed = capsys.readouterr().out
    assert all(cell in printed for table in lines for line in table for cell in line)
    assert printed.index("emb_81, residual_kmeans, none: ") < printed.index("Collisions and use of the codes")
    if can_plot():
        captions = [figure.text for figure in root.iter(f"{XHTML}figcaption")]
        assert len(list(root.iter(f"{SVG}svg"))) == 3
        assert [caption.split(" (")[0] for caption in captions] == [
            "Use of the codes of nearest words", "Use of the last code after each rule", "Items that share their id"]


def test_the_plots_show_counts_in_falling_order_and_the_share_after_each_code_and_rule(dataset, tmp_path, monkeypatch):
    sections = []
    monkeypatch.setattr(report_module, "write_report", lambda out, title, given: sections.extend(given))
    tokenizer_report(dataset, tmp_path / "report.html", TokenizerConfig(codes=16), sources=["emb_81"],
                     rules=["none", "counter", "assignment"])
    use, last, waterfall = sections[1].parts
    assert list(use.series) == ["level 1", "level 2"] and list(last.series) == ["none", "assignment"]
    for counts in (*use.series.values(), *last.series.values()):
        assert (np.diff(counts) <= 0).all() and len(counts) == 16
    assert use.series["level 1"].sum() == 111 and last.series["assignment"].sum() == 120
    figures = json.loads((tmp_path / "report.json").read_text())["rows"]
    expected = [level["shared"] for level in figures[0]["before"]] + [row["after"][-1]["shared"] for row in figures]
    assert len(expected) == 5 and expected[0] > expected[1] > expected[4] == 0
    np.testing.assert_allclose(waterfall.series["share"], 100 * np.array(expected))
    assert "3 none, 4 counter, 5 assignment" in waterfall.x_label


def test_a_combination_that_cannot_be_is_a_row_that_says_why_and_the_others_stand(dataset, tmp_path):
    vectors = np.zeros((121, 2))
    vectors[1:40] = 1  # 39 items of one vector: more than a counter of 16 can tell apart
    vectors[40:] = np.random.default_rng(1).normal(size=(81, 2))
    np.save(tmp_path / "crowd.npy", vectors)
    page, figures = made(dataset, tmp_path / "report.html", settings={"levels": 3},
                         sources=[str(tmp_path / "crowd.npy")],
                         quantisers=["nested_kmeans", "residual_kmeans"], rules=["counter", "assignment"])
    why = {(row["quantiser"], row["rule"]): row.get("impossible") for row in figures["rows"]}
    nested, overflow = "nested k-means with 3 levels", "items of one id for a counter of 16"
    assert why["nested_kmeans", "counter"] == why["nested_kmeans", "assignment"] == nested
    assert overflow in why["residual_kmeans", "counter"] and why["residual_kmeans", "assignment"] is None
    assert figures["rows"][3]["after"][-1]["shared"] == 0
    assert f"not possible: {nested}" in page and overflow in page


def test_where_nothing_is_possible_nothing_is_written(dataset, tmp_path):
    with pytest.raises(InputError, match="nothing to compare: nested k-means with 3 levels"):
        made(dataset, tmp_path / "report.html", settings={"levels": 3}, quantisers=["nested_kmeans"])
    assert not list(tmp_path.glob("*report*"))


@pytest.mark.parametrize("asked, message", [
    ({"sources": ["emb_81", "emb_99"]}, "no embedding emb_99"), ({"sources": []}, "no vectors"),
    ({"quantisers": ["kmeans"]}, "'kmeans', expected one of residual_kmeans"),
    ({"rules": ["best"]}, "'best', expected one of none")])
def test_a_wrong_name_ends_the_report_before_anything_is_fitted(dataset, tmp_path, monkeypatch, asked, message):
    monkeypatch.setattr(report_module, "fit_quantiser", lambda *asked: pytest.fail("fitted"))
    with pytest.raises(InputError, match=message):
        made(dataset, tmp_path / "report.html", **asked)
    assert not list(tmp_path.glob("*report*"))


def test_a_page_that_would_overwrite_its_own_figures_or_a_folder_is_refused(dataset, tmp_path):
    for out in (tmp_path / "report.json", tmp_path):
        with pytest.raises(InputError, match="expected the name of a page"):
            tokenizer_report(dataset, out, TokenizerConfig(codes=16), sources=["emb_81"])
    assert not (tmp_path / "report.json").exists()
