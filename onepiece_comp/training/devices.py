"""Training on several devices: ranks of torchrun, replicas on the cards of one process, several batches in turn.

A step of a run is a number of batches, its shares, whoever computes them: ranks x replicas x turns. Each share draws
its dropout by its own number, and the gradient is the mean over shares. So the weights follow from the number of shares
alone, up to the order of float sums: one device that takes four in turn ends where four devices do. The platform's
container lets no two processes talk, so there it is replicas, a thread a card; elsewhere torchrun.
"""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from onepiece_comp.errors import InputError

_MEETING = timedelta(minutes=10)  # for ranks to find each other, and for each to bring its gradients
_PATIENCE = timedelta(hours=2)  # the others wait while the first one validates and saves


class Ranks:
    """The processes of a run. Alone, nothing is sent; a rank that ended is an InputError of the others."""

    def __init__(self, rank: int = 0, ranks: int = 1, *, device: torch.device = torch.device("cpu")):
        self.rank, self.ranks, self.device = rank, ranks, device
        self._patient = None  # the group whose members wait longer, on CPU
        self.mesh: DeviceMesh | None = None  # of all ranks, where there are several

    @property
    def first(self) -> bool:
        """Whether this one writes, validates and speaks."""
        return self.rank == 0

    def __enter__(self) -> "Ranks":
        if self.ranks > 1:
            self._send(self._meet)
        return self

    def __exit__(self, *exc: object) -> None:
        if self.ranks > 1 and exc[0] is None:
            distributed.destroy_process_group()

    def _meet(self) -> None:
        distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=_MEETING)
        self._patient = distributed.new_group(backend="gloo", timeout=_PATIENCE)
        self.mesh = init_device_mesh(self.device.type, (self.ranks,))

    def tell(self, value: object) -> object:
        """The first rank's value, on all of them."""
        if self.ranks == 1:
            return value
        box = [value]
        self._send(lambda: distributed.broadcast_object_list(box, src=0, group=self._patient))
        return box[0]

    def highest(self, number: int) -> int:
        """The highest number that any rank gives."""
        if self.ranks == 1:
            return number
        found = torch.tensor([number])
        self._send(lambda: distributed.all_reduce(found, op=distributed.ReduceOp.MAX, group=self._patient))
        return int(found.item())

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' values."""
        if self.ranks == 1:
            return value
        found = value.clone()
        self._send(lambda: distributed.all_reduce(found))
        return found

    def gather(self, value: torch.Tensor) -> list[torch.Tensor] | None:
        """All ranks' values, of one shape and in main memory, on the first rank; None on the others."""
        if self.ranks == 1:
            return [value]
        parts = [torch.empty_like(value) for _ in range(self.ranks)] if self.first else None
        self._send(lambda: distributed.gather(value, parts, dst=0, group=self._patient))
        return parts

    def wait(self) -> None:
        """Go on once all ranks have come here."""
        self.highest(0)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """The gradients of all ranks, summed, on each; a parameter that no rank has a gradient of stays without.

        Not by DistributedDataParallel: that hooks into `forward`, which the losses are not. Sent once, after all
        backward passes of a step, experts without tokens and tables with sparse gradients need no case of their own.
        """
        if self.ranks == 1:
            return
        grads = [parameter.grad for parameter in parameters]
        flags = torch.tensor([[grad is not None for grad in grads],
                              [grad is not None and grad.is_sparse for grad in grads]],
                             dtype=torch.int32, device=self.device)
        self._send(lambda: distributed.all_reduce(flags, op=distributed.ReduceOp.MAX))
        held, sparse = flags.tolist()
        dense = [parameter for parameter, any_held,
                 is_sparse in zip(parameters, held, sparse) if any_held and not is_sparse]
        for parameter, is_sparse in zip(parameters, sparse):
            if is_sparse:
                self._sum_rows(parameter)
        for dtype in sorted({parameter.dtype for parameter in dense}, key=str):
            self._sum_dense([parameter for parameter in dense if parameter.dtype == dtype])

    def _sum_dense(self, parameters: list[nn.Parameter]) -> None:
        """One message for all."""
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
        self._send(lambda: distributed.all_reduce(flat))
        for parameter, grad in zip(parameters, flat.split([parameter.numel() for parameter in parameters])):
            parameter.grad.copy_(grad.view_as(parameter))

    def _sum_rows(self, table: nn.Parameter) -> None:
        """Each rank's rows one after the other, in the order of ranks, so that all sum them alike."""
        grad = table.grad.coalesce() if table.grad is not None else None
        row = torch.zeros(0, dtype=torch.int64, device=table.device) if grad is None else grad.indices()[0]
        value = table.new_zeros(0, table.shape[1]) if grad is None else grad.values()
        count = torch.tensor([len(row)], device=table.device)
        counts = [torch.zeros_like(count) for _ in range(self.ranks)]
        self._send(lambda: distributed.all_gather(counts, count))
        longest = int(max(counts))
        rows = [row.new_zeros(longest) for _ in range(self.ranks)]
        values = [value.new_zeros(longest, value.shape[1]) for _ in range(self.ranks)]
        padded_row, padded_value = row.new_zeros(longest), value.new_zeros(longest, value.shape[1])
        padded_row[:len(row)], padded_value[:len(row)] = row, value
        self._send(lambda: distributed.all_gather(rows, padded_row))
        self._send(lambda: distributed.all_gather(values, padded_value))
        kept = [int(number) for number in counts]
        table.grad = torch.sparse_coo_tensor(
            torch.cat([part[:number] for part, number in zip(rows, kept)])[None],
            torch.cat([part[:number] for part, number in zip(values, kept)]), table.shape)

    def _send(self, message: Callable[[], object]) -> None:
        try:
            message()
        except RuntimeError as error:  # the others' connections close when a rank ends
            raise InputError(f"rank {self.rank} of {self.ranks}", found="a rank that no longer answers "
                             f"({str(error).splitlines()[0][:100]})", expected="all ranks to the end",
                             do="see what that rank printed, then start all again with --resume") from error


class Replicas:
    """Copies of a model, one for each device, the model itself being the first; a thread drives each.

    On CPU one thread drives them all in turn: dropout has one source of randomness there.
    """

    def __init__(self, model: nn.Module, device: torch.device, count: int):
        self.models = [model.to(torch.device("cuda", 0)) if device.type == "cuda" and count > 1 else model]
        for number in range(1, count):  # each on its card before the next is made: the first never holds more than two
            replica = copy.deepcopy(model)
            self.models.append(replica.to(torch.device("cuda", number)) if device.type == "cuda" else replica)
        self._threads = ThreadPoolExecutor(count if device.type == "cuda" else 1, thread_name_prefix="replica")

    def run(self, work: Callable, shares: Sequence) -> list:
        """work(model, place, share) for each share; share i belongs to replica i modulo their number."""
        def drive(replica: int) -> list:
            return [(place, work(self.models[replica], place, shares[place]))
                    for place in range(replica, len(shares), len(self.models))]

        if len(self.models) == 1:
            return [found for _, found in drive(0)]
        done = [pair for part in self._threads.map(drive, range(len(self.models))) for pair in part]
        return [found for _, found in sorted(done, key=lambda pair: pair[0])]

    def gather(self) -> None:
        """Add the replicas' gradients to the first model's, and clear them."""
        first = list(self.models[0].parameters())
        for replica in self.models[1:]:
            for parameter, other in zip(first, replica.parameters()):
                if other.grad is not None:
                    grad = other.grad.to(parameter.device)
                    parameter.grad = grad if parameter.grad is None else parameter.grad + grad
                    other.grad = None

    @torch.no_grad()
    def spread(self) -> None:
        """Give the first model's weights to the replicas."""
        for replica in self.models[1:]:
            for parameter, other in zip(self.models[0].parameters(), replica.parameters()):
                other.copy_(parameter)


def count_replicas(asked: int, device: torch.device) -> int:
    """0 stands for all visible cards, 1 on CPU and for a rank, which has one; InputError for more than there are."""
    cards = torch.cuda.device_count() if device.type == "cuda" and device.index is None else 1
    if asked < 0 or device.type == "cuda" and asked > cards:
        raise InputError("train.replicas", found=str(asked),
                         expected=f"0 to {cards}, the cards of this process; 0 = all",
                         do="ask for fewer, or start more ranks")
    return asked or cards


def seed_share(seed: int, number: int, device: torch.device) -> None:
    """Dropout of a share depends on the run's seed and the share's number among all of the run."""
    value = hash((seed, number)) % (1 << 63)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(value)
    else:
        torch.manual_seed(value)
