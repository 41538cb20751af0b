"""All-reduce of gradients in buckets, while the backward pass still computes other gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

# Starts to sum a tensor over the processes, in place; what it gives waits for that.
StartSum = Callable[[torch.Tensor], Callable[[], object]]

LARGEST_BUCKET = 2**23  # elements: 32 MiB in float32
SMALLEST_BUCKET = 2**18  # 1 MiB: below it a message costs more than its bytes
NUM_BUCKETS = 8  # between the two: a small LoRA too is reduced while the backward pass runs
MAX_STARTED = 4 * LARGEST_BUCKET  # elements at once: a second copy of all gradients of a model would be large


def start_sum(tensor: torch.Tensor) -> Callable[[], object]:
    """`StartSum` of PyTorch's default process group."""
    work = torch.distributed.all_reduce(tensor, async_op=True)
    assert work is not None, "this process belongs to the group"
    return work.wait


@dataclass(frozen=True)
class _Started:
    """A sum that runs: of the gradients of some parameters, and if they are early of how many processes have each."""

    wait: Callable[[], object]
    total: torch.Tensor
    members: list[int]
    looks_at_counts: bool


class GradientAllReduce:
    """Sums the gradients of parameters over all processes; a missing gradient counts as zeros.

    A parameter without a gradient in every process stays without: the optimizer skips it, as with one process.

    Buckets are in the order in which gradients come, which the processes agree on in the first step (Li et al.,
    2006.15704, section 6.2.3): in another, a bucket waits for one gradient of a layer that comes late. A bucket is
    early where in the last step every parameter of it got a gradient in some process: the last backward pass of a step
    starts to reduce it as soon as it and the early ones before it are complete. All processes start the same sums
    in the same order: early buckets, the counts of the other gradients, the other buckets.
    """

    def __init__(
        self,
        params: Sequence[nn.Parameter],
        bucket_elements: int | None = None,
        start: StartSum = start_sum,
    ):
        """`bucket_elements`: of a bucket at least; None: what suits the number of parameters."""
        self._params = list(params)
        self._start = start
        num_elements = sum(param.numel() for param in self._params)
        suited = min(max(num_elements // NUM_BUCKETS, SMALLEST_BUCKET), LARGEST_BUCKET)
        self._bucket_elements = bucket_elements or suited
        self._buckets: list[list[int]] = []  # empty until processes have told each other which gradients come, and how
        self._bucket_of: dict[int, int] = {}
        self._can_be_early = False
        self._early: list[int] = []
        self._started: list[_Started] = []
        self._num_launched = 0
        self._missing: set[int] = set()  # parameters that have a gradient in no process, in this step
        self._waits_for: dict[int, set[int]] = {}
        self._arrivals: list[int] = []  # indices of parameters, as their gradients came in the last backward pass
        self._is_last = False
        for index, param in enumerate(self._params):
            param.register_post_accumulate_grad_hook(lambda _, index=index: self._has_gradient(index))

    @property
    def num_early(self) -> int:
        """How many buckets have been started before `finish`, in this step."""
        return self._num_launched

    def expect_last_backward(self) -> None:
        """The next backward pass is the last of the step."""
        self._waits_for = {bucket: set(self._buckets[bucket]) for bucket in self._early}
        self._is_last = True

    def _has_gradient(self, index: int) -> None:
        if not self._is_last:
            return
        if not self._buckets:
            self._arrivals.append(index)
            return
        waits_for = self._waits_for.get(self._bucket_of[index])
        if waits_for is None:
            return
        if not waits_for and self._bucket_of[index] in self._early[: self._num_launched]:
            raise RuntimeError("a gradient has come twice in one backward pass, and in the first step had not")
        waits_for.discard(index)
        while self._num_launched < len(self._early) and not self._waits_for[self._early[self._num_launched]]:
            self._launch_next()

    def _launch_next(self) -> None:
        self._launch(self._buckets[self._early[self._num_launched]], is_early=True)
        self._num_launched += 1

    def _launch(self, members: list[int], *, is_early: bool) -> None:
        params = [self._params[index] for index in members]
        has = [param.grad is not None for param in params]
        tensors = [torch.zeros_like(param) if param.grad is None else param.grad for param in params]
        if is_early:
            tensors.append(self._as_tensor(has, members[0]))
        num_elements = sum(tensor.numel() for tensor in tensors)
        while self._started and num_elements + sum(each.total.numel() for each in self._started) > MAX_STARTED:
            self._wait()
        total = _flatten_dense_tensors(tensors)
        for param in params:
            param.grad = None  # it has been copied
        self._started.append(_Started(self._start(total), total, members, is_early and not all(has)))

    def _as_tensor(self, numbers: Sequence[float], index: int) -> torch.Tensor:
        """A tensor of the kind of this parameter."""
        param = self._params[index]
        return torch.tensor(numbers, dtype=param.dtype, device=param.device)

    def _wait(self) -> None:
        """For the sum that was started first: it becomes the gradients."""
        started = self._started.pop(0)
        started.wait()
        params = [self._params[index] for index in started.members]
        found = [True] * len(params)
        if started.looks_at_counts:  # only then wait for the device
            found = [bool(count) for count in started.total[-len(params) :].tolist()]
        parts = _unflatten_dense_tensors(started.total, params)
        for index, param, part, is_found in zip(started.members, params, parts, found, strict=True):
            if is_found:
                param.grad = part if param.is_contiguous() else torch.empty_like(param).copy_(part)
            else:
                self._missing.add(index)

    def finish(self) -> None:
        """Reduces what is left, and waits for all. Every process calls it once in a step, whatever it has computed."""
        self._is_last = False
        self._missing = set()
        if not self._buckets:
            self._agree_on_buckets()
        while self._num_launched < len(self._early):
            self._launch_next()
        early = set(self._early)
        late = [bucket for bucket in range(len(self._buckets)) if bucket not in early]
        self._missing |= self._missing_of([index for bucket in late for index in self._buckets[bucket]])
        for bucket in late:
            members = [index for index in self._buckets[bucket] if index not in self._missing]
            if members:
                self._launch(members, is_early=False)
        while self._started:
            self._wait()
        complete = [number for number, members in enumerate(self._buckets) if self._missing.isdisjoint(members)]
        self._early = complete if self._can_be_early else []
        self._num_launched = 0

    def _missing_of(self, indices: list[int]) -> set[int]:
        """Those of the parameters that have a gradient in no process."""
        if not indices:
            return set()
        has = [self._params[index].grad is not None for index in indices]
        counts = torch.tensor(has, dtype=torch.float32, device=self._params[0].device)
        self._start(counts)()
        if all(has):  # in this process, which is enough
            return set()
        return {index for index, count in zip(indices, counts.tolist(), strict=True) if not count}

    def _agree_on_buckets(self) -> None:
        """By the sum over the processes of when a gradient comes: the one order that all of them can work out."""
        positions = [float(len(self._params))] * len(self._params)
        for position, index in enumerate(self._arrivals):
            positions[index] = position
        # a gradient that comes several times in a backward pass is complete only at its end
        comes_again = len(set(self._arrivals)) < len(self._arrivals)
        facts = torch.tensor([*positions, comes_again], dtype=torch.float32, device=self._params[0].device)
        self._start(facts)()
        *sums, num_again = facts.tolist()
        order = sorted(range(len(self._params)), key=lambda index: (sums[index], -index))
        self._buckets = list(_buckets(self._params, order, self._bucket_elements))
        self._bucket_of = {index: bucket for bucket, members in enumerate(self._buckets) for index in members}
        self._can_be_early = not num_again
        self._arrivals.clear()


def _buckets(params: Sequence[nn.Parameter], order: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Indices of parameters of one dtype and device, in buckets of at least `limit` elements."""
    filling: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    sizes: Counter[tuple[torch.dtype, torch.device]] = Counter()
    for index in order:
        kind = params[index].dtype, params[index].device
        filling.setdefault(kind, []).append(index)
        sizes[kind] += params[index].numel()
        if sizes[kind] >= limit:
            yield filling.pop(kind)
            del sizes[kind]
    yield from filling.values()
