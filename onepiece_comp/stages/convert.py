"""Another log into the competition's layout: the first stage of the flow, beside `synthesize`;
`split` reads what it writes.
"""

from pathlib import Path

from onepiece_comp.converters.convert import KINDS, ConvertOptions, detected_kind, spelled_kind
from onepiece_comp.errors import InputError


def convert(kind: str, source: Path, out: Path, options: ConvertOptions = ConvertOptions()) -> Path:
    """Write `source`, a log of `kind` (a key of KINDS, or auto), as a raw folder; returns `out`.

    InputError for an unknown kind, an option that the kind does not take, and whatever the converter refuses; nothing
    half-written is left.
    """
    if kind == "auto":
        kind = detected_kind(Path(source))
    if kind not in KINDS:
        names = ["auto", *KINDS]
        raise InputError("convert", found=repr(kind), expected=f"{', '.join(names[:-1])} or {names[-1]}",
                         do="correct the command")
    given, taken = options.given(), KINDS[kind].options
    strange = [name for name in given if name not in taken]
    if strange:
        raise InputError("convert", found=f"{', '.join(map(spelled_kind, strange))} for {kind}", do="leave it out",
                         expected=f"for {kind} " + (", ".join(map(spelled_kind, taken)) or "no options"))
    return KINDS[kind].convert(Path(source), Path(out), **given)
