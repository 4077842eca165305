"""What a log line of training tells: means over the steps since the last line, rates, experts, codes.

Stands between the losses and the training loop.
"""

import time

import numpy as np
import torch

from onepiece_comp.artefacts import peak_memory_mib
from onepiece_comp.batches import TrainBatch
from onepiece_comp.losses import entropy, gini
from onepiece_comp.model import Losses, OnePiece


class Window:
    """What has happened since the last log line; `peak` is the FLOP/s of this rank's cards where it is known."""

    def __init__(self, peak: float | None) -> None:
        self.started, self.users, self.rows, self.parts, self.load = time.monotonic(), 0, 0, [], None
        self.flops, self.peak = 0.0, peak

    def add(self, batch: TrainBatch, losses: Losses, norm: float, *, flops: float) -> None:
        self.users += len(batch.history.length_B)
        self.flops += flops
        self.rows += len(batch.target_N)
        self.parts.append([float(losses.retrieval), float(losses.semantic), float(losses.conditioned),
                           float(losses.balance), norm])
        if losses.expert_load is not None:
            load = losses.expert_load.cpu()  # replicas have theirs on cards of their own
            self.load = load if self.load is None else self.load + load

    def record(self) -> dict[str, float]:
        seconds = max(time.monotonic() - self.started, 1e-9)
        names = ("Loss/retrieval", "Loss/semantic", "Loss/conditioned", "Loss/balance", "gradient_norm")
        found = {**dict(zip(names, np.mean(self.parts, 0).tolist())), "users_per_second": self.users / seconds,
                 "events_per_second": self.rows / seconds, "flops_per_second": self.flops / seconds,
                 "peak_memory_mib": peak_memory_mib()}
        if self.peak is not None:
            found["share_of_peak"] = found["flops_per_second"] / self.peak
        if self.load is not None:
            found |= {"expert_gini": gini(self.load), "expert_entropy": entropy(self.load),
                      "experts_unused": int((self.load == 0).sum())}
        return found


class CodesMet:
    """Which codes were a target's, since the run began or was resumed: the others get no gradient of their own."""

    def __init__(self, model: OnePiece):
        self.code_IL, levels = model.codes.cpu().long(), model.decoder.levels if model.decoder is not None else 0
        self.left_LC = torch.zeros(levels, model.decoder.codes if levels else 0, dtype=torch.bool)
        if levels:  # what no item has is not waited for
            self.left_LC.scatter_(1, self.code_IL[(self.code_IL >= 0).all(1)].T, True)

    def add(self, batch: TrainBatch) -> None:
        if len(self.left_LC):
            code_NL = self.code_IL[batch.items.id_row_N[1:][batch.target_N]]
            self.left_LC.scatter_(1, code_NL[(code_NL >= 0).all(1)].T, False)

    def record(self) -> dict[str, int]:
        return {f"dead_codes/level_{level}": int(left_C.sum()) for level, left_C in enumerate(self.left_LC)}
