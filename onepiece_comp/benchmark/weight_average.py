"""An exponential moving average of a model's weights over the steps of its training.

A constant step size keeps the weights moving around where they ought to be; their average stands nearer to it, without
a schedule that would have to know the number of steps. Source: Polyak and Juditsky 1992; Izmailov et al. 2018
(arXiv 1803.05407).
"""

import contextlib
from collections.abc import Iterator

from torch import nn

_YOUNG = 9  # the average of n steps forgets at n / (n + 9) until that reaches the decay: it starts near the weights


class WeightAverage:
    """mean <- decay mean + (1 - decay) weights at every step; a decay of 0 keeps nothing and changes nothing."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.steps = decay, 0
        self.weights = [parameter.detach() for parameter in model.parameters()] if decay else []
        self.mean = [weight.clone() for weight in self.weights]

    def step(self) -> None:
        """Take the weights as they are now into the average."""
        self.steps += 1
        for mean, weight in zip(self.mean, self.weights):
            mean.lerp_(weight, 1 - min(self.decay, self.steps / (self.steps + _YOUNG)))

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Within the block the model has the average for its weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for mean, weight in zip(self.mean, self.weights):
            kept = weight.clone()
            weight.copy_(mean)
            mean.copy_(kept)
