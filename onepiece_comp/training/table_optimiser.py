"""An optimiser for embedding tables whose step costs the rows that a batch touched, not the table.

`adam` is Adam with moments that move only where there is a gradient; `adagrad` has one accumulator a row, as in DLRM
(Naumov et al. 2019, arXiv 1906.00091, and FBGEMM's row-wise Adagrad): the mean square of the row's gradients. Tables in
bfloat16 are stepped in float32 and rounded at random, so that steps smaller than half a unit in the last place count
in the mean. Legend: N rows, D width, R touched rows.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn

KINDS = ("adam", "adagrad")


class RowOptimiser(torch.optim.Optimizer):
    """Steps tables [N, D] by sparse gradients; rows without a gradient do not move. No weight decay."""

    def __init__(self, parameters: list, *, kind: str, lr: float, betas: tuple[float, float] = (0.9, 0.98),
                 eps: float = 1e-9, seed: int = 0):
        assert kind in KINDS, kind
        super().__init__(parameters, {"lr": lr, "rate": 1.0})
        self.kind, self.betas, self.eps, self.seed = kind, betas, eps, seed

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        place = 0
        for group in self.param_groups:
            for table in group["params"]:
                place += 1
                if table.grad is None:
                    continue
                state = self.state[table]
                if not state:
                    state |= {"step": torch.zeros((), dtype=torch.int64), **self._fresh(table)}
                state["step"] += 1
                grad = table.grad.coalesce()
                row_R, grad_RD = grad.indices()[0], grad.values().float()
                move_RD = self._direction(state, row_R, grad_RD) * -group["lr"]
                moved_RD = table.index_select(0, row_R).float() + move_RD
                draw = torch.Generator(table.device).manual_seed(hash((self.seed, int(state["step"]), place)))
                table.index_copy_(0, row_R, round_at_random(moved_RD, draw) if table.dtype == torch.bfloat16
                                  else moved_RD)

    def load_state_dict(self, state_dict: dict) -> None:
        """As the base class, which would make the state as narrow as the weights and count steps on the device."""
        super().load_state_dict(state_dict)
        tables = [table for group in self.param_groups for table in group["params"]]
        for number, stored in state_dict["state"].items():
            table = tables[number]
            self.state[table] = {name: value if name == "step" else value.to(table.device)
                                 for name, value in stored.items()}

    def _fresh(self, table: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.kind == "adagrad":
            return {"square": torch.zeros(len(table), device=table.device)}
        return {name: torch.zeros_like(table, dtype=torch.float32) for name in ("mean", "square")}

    def _direction(self, state: dict, row_R: torch.Tensor, grad_RD: torch.Tensor) -> torch.Tensor:
        """What a step of size 1 subtracts from the rows; moves their moments."""
        if self.kind == "adagrad":
            square_R = state["square"].index_select(0, row_R) + grad_RD.square().mean(1)
            state["square"].index_copy_(0, row_R, square_R)
            return grad_RD / (square_R.sqrt()[:, None] + self.eps)
        moments, count = [], int(state["step"])
        for name, value, beta in (("mean", grad_RD, self.betas[0]), ("square", grad_RD.square(), self.betas[1])):
            moment_RD = state[name].index_select(0, row_R).lerp(value, 1 - beta)
            state[name].index_copy_(0, row_R, moment_RD)
            moments.append(moment_RD / (1 - beta ** count))
        return moments[0] / (moments[1].sqrt() + self.eps)


def round_at_random(x: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Float32 to bfloat16, up or down with the probabilities that keep the mean."""
    noise = torch.randint(0, 1 << 16, x.shape, generator=draw, dtype=torch.int32, device=x.device)
    return ((x.contiguous().view(torch.int32) + noise) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], limit: float, *, shares: Iterable[nn.Parameter] = (),
                   total: Callable[[torch.Tensor], torch.Tensor] | None = None) -> float:
    """Scale all gradients so that their joint norm is at most `limit`, 0 = no limit; returns the norm before.

    Sparse ones count too.

    `shares` are parameters whose other parts other ranks hold: `total` sums their squares over all ranks.
    """
    values = _gradients(parameters)
    divided = _gradients(shares)
    norms = [torch.linalg.vector_norm(value.float()) for value in values]
    if total is not None:
        device = (values or divided)[0].device
        squares = [torch.linalg.vector_norm(value.float()).square() for value in divided]
        norms.append(total(torch.stack([torch.zeros((), device=device), *squares]).sum()).sqrt())
    if not norms:
        return 0.0
    norm = torch.linalg.vector_norm(torch.stack(norms))
    scale = (limit / (norm + 1e-6)).clamp_max(1.0)
    for value in values + divided if limit else ():
        value.mul_(scale.to(value.dtype))
    return float(norm)


def _gradients(parameters: Iterable[nn.Parameter]) -> list[torch.Tensor]:
    """The values of the gradients there are."""
    values = []
    for parameter in parameters:
        if parameter.grad is not None:
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()  # repeated rows add up before they are squared
                values.append(parameter.grad.values())
            else:
                values.append(parameter.grad)
    return values
