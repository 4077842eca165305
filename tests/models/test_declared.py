"""A parameter is what its layer declares: the innermost layer that knows it decides,
and one that nobody knows is an error.
"""

import pytest
import torch
from torch import nn

from onepiece_comp.models.declared import BRANCH_END, HIDDEN, MATRIX, TABLE, ZERO, declarations, initialise


class Inner(nn.Module):
    DECLARES = {"weight_*": HIDDEN._replace(inputs_first=True), "linear.weight": BRANCH_END}

    def __init__(self):
        super().__init__()
        self.weight_DF, self.linear, self.table = nn.Parameter(torch.empty(400, 3)), nn.Linear(400, 5), nn.Embedding(7,
            2)


class Outer(nn.Module):
    DECLARES = {"inner.linear.weight": MATRIX, "inner.table.weight": ZERO, "shift": ZERO}

    def __init__(self, *, stranger: bool = False):
        super().__init__()
        self.inner, self.shift, self.plain = Inner(), nn.Parameter(torch.ones(2)), nn.Embedding(4, 3)
        self.stranger = nn.Parameter(torch.ones(2)) if stranger else None


def test_the_innermost_layer_that_knows_a_parameter_decides():
    assert declarations(Outer()) == {
        "shift": ZERO, "inner.weight_DF": HIDDEN._replace(inputs_first=True), "inner.linear.weight": BRANCH_END,
        "inner.linear.bias": ZERO, "inner.table.weight": ZERO, "plain.weight": TABLE}


def test_a_parameter_that_nobody_declared_is_an_error_with_its_name():
    with pytest.raises(TypeError, match="the parameter stranger is declared by no layer: add it to DECLARES of Outer"):
        initialise(Outer(stranger=True), branch_scale=1.0)


def test_matrices_begin_by_their_inputs_whichever_side_these_stand_on_and_ends_of_branches_smaller():
    torch.manual_seed(0)
    model = Outer()
    initialise(model, branch_scale=0.1)
    assert abs(model.inner.weight_DF.std() * 400 ** 0.5 - 1) < 0.1
    assert abs(model.inner.linear.weight.std() * 400 ** 0.5 - 0.1) < 0.01
    assert not model.shift.any() and not model.inner.table.weight.any() and model.plain.weight.any()
