"""Items clicked together come together, unclicked ones of like content with them; the rest stays where it was."""

import errno
from itertools import pairwise

import numpy as np
import pytest
import torch

from onepiece_comp import artefacts
from onepiece_comp.artefacts import write_json
from onepiece_comp.config import TokenizerConfig
from onepiece_comp.errors import InputError
from onepiece_comp.stages.build_tokenizer import build_tokenizer
from onepiece_comp.tokenizer import align as alignment
from onepiece_comp.tokenizer.align import aligned_vectors, co_occurrences, pair_loss, write_aligned
from onepiece_comp.tokenizer.folder import load_tokenizer
from onepiece_comp.tokenizer.item_vectors import open_vectors

GROUPS = 6


def planted(items=900, draws=1000):
    """Vectors that shout one group and whisper another; pairs, popular items mostly, within the second alone.

    The last third of the items is in no pair. Returns vectors, shouted group, whispered group, pairs.
    """
    draw = np.random.default_rng(0)
    shouted, whispered = np.arange(items) % GROUPS, np.arange(items) // GROUPS % GROUPS
    vectors = 0.3 * draw.normal(size=(items, 3 * GROUPS))
    vectors[np.arange(items), shouted] += 4
    vectors[np.arange(items), GROUPS + whispered] += 1
    popularity = 1 / (1 + draw.permutation(items))
    popularity[2 * items // 3:] = 0
    pairs = []
    for group in range(GROUPS):
        chance = popularity * (whispered == group)
        pairs.append(draw.choice(items, (draws, 2), p=chance / chance.sum()))
    pairs = np.concatenate(pairs)
    return vectors.astype(np.float32), shouted, whispered, pairs[pairs[:, 0] != pairs[:, 1]]


def of_one_group(vectors, group, rows):
    """Share of the ten nearest among `rows` that are of the item's group; chance is 1 / 6."""
    unit = vectors[rows] - vectors[rows].mean(0)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    near = np.argsort(-(unit @ unit.T - 9 * np.eye(len(unit))), axis=1)[:, :10]
    return float((group[rows][near] == group[rows][:, None]).mean())


def test_pairs_come_together_against_the_content_and_unpaired_items_of_like_content_follow():
    vectors, shouted, whispered, pairs = planted()
    aligned = aligned_vectors(vectors, pairs)
    assert aligned.shape == vectors.shape and aligned.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(aligned, axis=1), 1, rtol=1e-5)
    for rows in (slice(0, 600), slice(600, 900)):
        assert of_one_group(aligned, whispered, rows) > of_one_group(vectors, whispered, rows) + 0.1
        assert of_one_group(aligned, shouted, rows) < of_one_group(vectors, shouted, rows) - 0.3


def test_items_that_pairs_say_nothing_about_stay_where_their_content_puts_them():
    draw = np.random.default_rng(1)
    vectors = np.zeros((600, 16), np.float32)
    vectors[:300, :8], vectors[300:, 8:] = draw.normal(size=(2, 300, 8))
    pairs = draw.integers(0, 300, (4000, 2))
    moved = aligned_vectors(vectors, pairs)[300:]
    content = vectors[300:] - vectors.mean(0)
    content /= np.linalg.norm(content, axis=1, keepdims=True)
    off_diagonal = ~np.eye(300, dtype=bool)
    assert np.corrcoef((moved @ moved.T)[off_diagonal], (content @ content.T)[off_diagonal])[0, 1] > 0.95


def test_pairs_that_mean_nothing_leave_the_vectors_nearly_as_they_are():
    """The temperature is learned: at a fixed low one, pairs drawn blindly would bend the content."""
    vectors, shouted, _, pairs = planted()
    blind = np.random.default_rng(2).permutation(pairs.ravel()).reshape(-1, 2)
    assert of_one_group(aligned_vectors(vectors, blind), shouted, slice(None)) > 0.97


def test_wide_vectors_become_64_wide_and_equal_seeds_give_equal_vectors():
    vectors = np.random.default_rng(0).normal(size=(200, 100)).astype(np.float32)
    pairs = np.arange(200).reshape(-1, 2)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = aligned_vectors(vectors, pairs)
    assert first.shape == (200, 64) and torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(first, aligned_vectors(vectors, pairs))
    assert not np.array_equal(first, aligned_vectors(vectors, pairs, seed=1))


def test_the_loss_against_keys_drawn_by_popularity_is_that_against_all_items():
    draw = np.random.default_rng(0)
    items, batch = 40, 2000
    popularity = 1 / np.arange(1, items + 1)
    popularity /= popularity.sum()
    unit = lambda many: torch.nn.functional.normalize(torch.tensor(draw.normal(size=(many, 8))), dim=1)
    key, query = unit(items), unit(1)
    drawn = torch.tensor(draw.choice(items, batch, p=popularity))
    found = pair_loss(query.expand(batch, 8) * 10, key[drawn], torch.full((batch,), items), drawn,
                     torch.log(torch.tensor(popularity) * batch)[drawn])
    logit = key @ query[0] * 10
    assert float(found) == pytest.approx(float((logit.logsumexp(0) - logit[drawn]).mean()), rel=0.02)


def test_the_loss_of_a_batch_by_hand():
    """Rows 0 and 2 share their key's item; row 1's own item is key 0: neither is a negative there."""
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    key = torch.tensor([[0.8, 0.6], [0.0, 1.0], [0.8, 0.6]])
    query_item, key_item = torch.tensor([1, 5, 2]), torch.tensor([5, 7, 5])
    log_expected = torch.tensor([0.5, -1.0, 0.5])
    logit = (query @ key.T).tolist()
    row = lambda positive, *negatives: np.logaddexp.reduce([positive, *negatives]) - positive
    by_hand = [row(logit[0][0], logit[0][1] + 1), row(logit[1][1]), row(logit[2][2], logit[2][1] + 1)]
    assert float(pair_loss(query, key, query_item, key_item, log_expected)) == pytest.approx(np.mean(by_hand), rel=1e-4)


def write_clicks(folder, *, users=40, items=12, seed=0):
    """The columns that pairs are read from: some users without events, every action, rows of unknown items."""
    draw = np.random.default_rng(seed)
    length = draw.integers(0, 15, users) * (draw.random(users) < 0.8)
    folder.mkdir()
    start = np.concatenate([[0], np.cumsum(length)])
    np.save(folder / "user_start.npy", start.astype(np.int64))
    np.save(folder / "item_row.npy", draw.integers(0, items + 1, start[-1]).astype(np.int32))
    np.save(folder / "action.npy", draw.integers(0, 4, start[-1]).astype(np.int8))
    return folder


def slow_pairs(folder, window):
    item, action, start = (np.load(folder / f"{name}.npy").tolist() for name in ("item_row", "action", "user_start"))
    pairs = []
    for first, stop in pairwise(start):
        clicks = [item[event] for event in range(first, stop) if action[event] in (1, 2) and item[event] > 0]
        pairs += [(a, b) for at, a in enumerate(clicks) for b in clicks[at + 1:at + 1 + window] if a != b]
    return pairs


@pytest.mark.parametrize("window", [1, 3, 50])
@pytest.mark.parametrize("events", [1, 40, 1 << 20])
def test_pairs_are_those_of_a_loop_over_users_and_clicks(tmp_path, monkeypatch, window, events):
    monkeypatch.setattr(alignment, "_EVENTS", events)
    folder = write_clicks(tmp_path / "dataset")
    assert sorted(map(tuple, co_occurrences(folder, window=window).tolist())) == sorted(slow_pairs(folder, window))


def test_a_sample_of_pairs_is_drawn_evenly_from_all_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(alignment, "_EVENTS", 20)
    folder = write_clicks(tmp_path / "dataset", items=1000)
    everything = slow_pairs(folder, 2)
    place = {pair: at for at, pair in enumerate(everything)}
    samples = [co_occurrences(folder, window=2, most=30, seed=seed).tolist() for seed in range(300)]
    drawn = np.bincount([place[tuple(pair)] for sample in samples for pair in sample], minlength=len(place))
    assert len(place) == len(everything) > 100 and all(len(set(map(tuple, sample))) == 30 for sample in samples)
    chance = 30 / len(place)
    assert np.abs(drawn / 300 - chance).max() < 5 * (chance / 300) ** 0.5
    assert co_occurrences(folder, window=2, most=30, seed=7).tolist() == samples[7]


def test_no_clicks_make_no_pairs_and_no_alignment(tmp_path):
    folder = write_clicks(tmp_path / "dataset", users=0)
    assert co_occurrences(folder, window=5).shape == (0, 2)
    with pytest.raises(InputError, match="no two items"):
        aligned_vectors(np.ones((3, 2), np.float32), co_occurrences(folder, window=5))


def test_the_file_has_a_row_per_item_that_a_tokenizer_can_be_built_from(dataset, tmp_path):
    out = write_aligned(dataset.path, "emb_82", tmp_path / "aligned.npy")
    written, present = np.load(out), np.load(dataset.path / "emb_82_present.npy")
    assert written.shape == (len(present), 5) and written.dtype == np.float32 and not written[0].any()
    assert 0 < present[1:].sum() < len(present) - 1
    np.testing.assert_allclose(np.linalg.norm(written, axis=1), present.astype(float), atol=1e-5)
    again = write_aligned(dataset.path, "emb_82", tmp_path / "again.npy")
    assert again.read_bytes() == out.read_bytes()
    creative = dataset.items.creative_id
    vectors, held = open_vectors(dataset.path, creative, [(str(out), 1.0)], whiten=True)
    row = 1 + np.argsort(creative[1:], kind="stable")[held]
    np.testing.assert_array_equal(vectors[0:len(vectors)], written[row])
    tokenizer = build_tokenizer(dataset.path, tmp_path / "tokenizer", TokenizerConfig(), vectors=str(out))
    codes = load_tokenizer(tokenizer).codes
    assert len(np.unique(codes[1:], axis=0)) == len(present) - 1


def test_clicks_and_rows_of_the_file_belong_to_the_same_items_whatever_the_order_of_ids(tmp_path):
    vectors, _, whispered, pairs = planted(draws=1500)
    creative, present = 5000 + np.random.default_rng(3).permutation(len(vectors)), np.arange(len(vectors)) % 10 > 0
    folder = tmp_path / "dataset"
    folder.mkdir()
    columns = {"creative_id": np.append(0, creative), "emb_81": np.concatenate([0 * vectors[:1], vectors]),
               "emb_81_present": np.append(False, present), "item_row": 1 + pairs.ravel(),
               "action": np.ones(pairs.size), "user_start": np.arange(0, pairs.size + 1, 2)}
    for name, column in columns.items():
        np.save(folder / f"{name}.npy", column)
    write_json(folder / "schema.json", {})
    written = np.load(write_aligned(folder, "emb_81", tmp_path / "aligned.npy"))[1:]
    assert of_one_group(written, whispered, present) > of_one_group(vectors, whispered, present) + 0.05


def test_another_ending_than_npy_is_named(dataset, tmp_path):
    with pytest.raises(InputError, match="ends in .npy"):
        write_aligned(dataset.path, "emb_81", tmp_path / "aligned")


def test_an_output_that_is_a_folder_is_refused_before_anything_is_fitted(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(alignment, "fit_alignment", None)
    for folder in ("a.npy", "b_ids.npy"):
        (tmp_path / folder).mkdir()
    for out, place in (("a.npy", "a.npy"), ("b.npy", "b_ids.npy")):
        with pytest.raises(InputError, match=f"{place}: found a folder"):
            write_aligned(dataset.path, "emb_82", tmp_path / out)


def without_training(monkeypatch):
    """The projection before training."""
    monkeypatch.setattr(alignment, "fit_alignment", lambda vectors, pairs, *, seed: alignment._principal(vectors, seed))


def test_a_disk_without_room_is_told_and_what_stood_there_stays(dataset, tmp_path, monkeypatch):
    without_training(monkeypatch)
    out = write_aligned(dataset.path, "emb_82", tmp_path / "aligned.npy")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(*reserved):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artefacts.os, "posix_fallocate", full)
    with pytest.raises(InputError, match="a full disk while writing"):
        write_aligned(dataset.path, "emb_82", out, seed=1)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("survives", [0, 1])
def test_vectors_never_stand_beside_the_ids_of_others(dataset, tmp_path, monkeypatch, survives):
    """Whenever the process dies while the two files take their names: the vectors come last, and old ones go first."""
    without_training(monkeypatch)
    out, replace, renamed = tmp_path / "aligned.npy", artefacts.os.replace, []
    np.save(out, np.ones((3, 2), np.float32))
    np.save(tmp_path / "aligned_ids.npy", np.arange(3))

    def dying(source, target):
        if len(renamed) == survives:
            raise KeyboardInterrupt
        renamed.append(target)
        replace(source, target)

    monkeypatch.setattr(artefacts.os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        write_aligned(dataset.path, "emb_82", out)
    assert not out.exists() or len(np.load(out)) == len(np.load(tmp_path / "aligned_ids.npy"))
