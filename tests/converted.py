"""How tests look at a raw folder that a converter wrote: in original ids, features under their columns' names."""

import json
from pathlib import Path

import pytest

from onepiece_comp.converters.event_log import original_item_id
from onepiece_comp.errors import InputError
from onepiece_comp.logs.formats import UserLine, check_offsets, read_index, read_sequences
from onepiece_comp.logs.raw_folder import OriginalIds


def lines(raw: Path) -> dict[str, UserLine]:
    """Users' lines in original ids."""
    check_offsets(raw / "seq.jsonl", raw / "seq_offsets.pkl")
    names = OriginalIds(read_index(raw / "indexer.pkl"))
    return {line.user: line for line in map(names.line, read_sequences(raw / "seq.jsonl"))}


def marker(raw: Path) -> dict:
    return json.loads((raw / "raw.json").read_text())


def short(line: UserLine) -> list[tuple[int, int]]:
    """(item number, action) of each event."""
    return [(original_item_id(event.item), event.action) for event in line.events]


def events(raw: Path) -> dict[str, list[tuple[str, int, int]]]:
    """(original item, action, second) of each user's events, texts spelled out."""
    path = raw / "original_ids.json"
    names = json.loads(path.read_text())["items"] if path.exists() else {}
    return {user: [(names.get(str(number := original_item_id(event.item)), str(number)), event.action, event.time)
                   for event in line.events] for user, line in lines(raw).items()}


def named(raw: Path, features: dict) -> dict:
    """Features under their columns' names, texts spelled out, in lists too."""
    about = marker(raw)
    texts = {fid: {number: text for text, number in numbers.items()}
             for fid, numbers in about["feature_values"].items()}
    spell = lambda fid, value: texts.get(fid, {}).get(value, value)
    return {about["features"][fid]: [spell(fid, each) for each in value] if isinstance(value, list)
            else spell(fid, value) for fid, value in features.items()}


def item_features(raw: Path) -> dict[str, dict]:
    """Named features of each item that has events, by original id."""
    path = raw / "original_ids.json"
    names = json.loads(path.read_text())["items"] if path.exists() else {}
    return {names.get(str(number := original_item_id(event.item)), str(number)): named(raw, event.features)
            for line in lines(raw).values() for event in line.events}


def refuses(message: str, stage, source: Path, out: Path, *options, **named_options) -> None:
    """The stage ends with an InputError that matches, and leaves nothing where it would have written."""
    with pytest.raises(InputError, match=message):
        stage(source, out, *options, **named_options)
    assert not out.exists() and not list(out.parent.glob(f".{out.name}.*"))
