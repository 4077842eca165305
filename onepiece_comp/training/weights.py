"""Files of weights: written whole, read without running code, and checked before a model is allocated for them.

What a checkpoint describes may be damaged or made up: numbers in its description would ask for memory and time before
the weights beside it are looked at. So the model is first built without storage, and names, shapes, types and values of
the file are held against it. Stands before the checkpoints.
"""

import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from onepiece_comp.errors import InputError

_AGAIN = "keep the files of one checkpoint together, or copy it again"


def save_tensors(value: dict, path: Path) -> None:
    """Write what `load_tensors` reads, through a Python file: its OSError tells a full disk, PyTorch's own does not."""
    with open(path, "wb") as file:
        torch.save(value, file)


def load_tensors(path: Path) -> dict:
    """A file of tensors and plain values, never code; InputError when it is cut short or is none."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
        return found
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError,
            AssertionError,
            OverflowError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(path, found=f"no readable weights ({reason})", expected="a whole checkpoint",
                         do="the file may be cut short: copy it again or use an earlier checkpoint") from error


def load_weights(path: Path, make: Callable[[dict], nn.Module], *, parts: int, described: Path) -> nn.Module:
    """The model that `make` builds from a file's tensors, with these as its weights.

    `parts` counts the layers and tables that the description asks for: each has a tensor at least. InputError for
    names, shapes and types other than the model's, and for values that are not finite.
    """
    state = load_tensors(path)
    if parts > len(state):
        raise InputError(path, found=f"{len(state):,} tensors",
                         expected=f"one at least for each of the {parts:,} layers and "
                         f"tables that {described} names", do=_AGAIN)
    _check(state, _shapes(make, state, path, described), path, described)
    model = make(state)
    model.load_state_dict(state)
    return model


def _shapes(make: Callable[[dict], nn.Module], state: dict, path: Path, described: Path) -> Mapping[str, torch.Tensor]:
    try:
        with torch.device("meta"):
            return make(state).state_dict()
    except (RuntimeError, TypeError, ValueError, OverflowError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(described, found=f"sizes that no model can have ({reason})",
                         expected=f"those of {path.name} beside it",
                         do=_AGAIN) from error


def _check(state: dict, expected: Mapping[str, torch.Tensor], path: Path, described: Path) -> None:
    for name in (*sorted(expected.keys() - state.keys()), *sorted(map(str, state.keys() - expected.keys()))):
        found = "no tensor" if name in expected else "a tensor"
        raise InputError(path, found=f"{found} {name}", expected=f"those of the model that {described.name} describes",
                         do=_AGAIN)
    for name, like in expected.items():
        value = state[name]
        if not (isinstance(value, torch.Tensor) and value.layout == torch.strided
                and not value.is_quantized and not value.is_complex()):
            raise InputError(path, found=f"{name} as {getattr(value, 'layout', type(value).__name__)}",
                             expected="a dense tensor",
                             do=_AGAIN)
        if value.shape != like.shape or value.is_floating_point() != like.is_floating_point():
            raise InputError(path, found=f"weights of another shape ({name}: {value.dtype} {list(value.shape)})",
                             expected=f"{like.dtype} {list(like.shape)}, as {described.name} describes", do=_AGAIN)
    require_finite(state, path)


def require_finite(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """InputError for the first tensor with a value that is infinite or no number:
    every answer would be the same ten.
    """
    for name, value in state.items():
        if value.is_floating_point() and not (finite := torch.isfinite(value)).all():
            raise InputError(path, found=f"{name} with {int((~finite).sum()):,} of {value.numel():,} values that are "
                                         f"not finite",
                             expected="finite weights",
                             do="use an earlier checkpoint, or train again with a lower learning rate")
