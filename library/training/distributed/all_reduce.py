"""All-reduce of gradients in buckets, while the backward pass still computes other gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

# Starts to sum a tensor over the processes, in place; what it gives waits for that.
StartSum = Callable[[torch.Tensor], Callable[[], object]]

BUCKET_ELEMENTS = 2**23  # 32 MiB in float32
MAX_STARTED = 4  # buckets at once: a second copy of all gradients of a model would be large


def start_sum(tensor: torch.Tensor) -> Callable[[], object]:
    """`StartSum` of PyTorch's default process group."""
    work = torch.distributed.all_reduce(tensor, async_op=True)
    assert work is not None, "this process belongs to the group"
    return work.wait


class GradientAllReduce:
    """Sums the gradients of parameters over all processes; a missing gradient counts as zeros.

    A parameter without a gradient in every process stays without: the optimizer skips it, as with one process.

    Buckets are in reverse order of the parameters, since the last layers get their gradients first. A bucket is early
    where in the last step every parameter of it got a gradient in some process: the last backward pass of a step
    starts to reduce it as soon as it and the early ones before it are complete. All processes start the same buckets
    in the same order: early ones, the counts of gradients, the others.
    """

    def __init__(
        self,
        params: Sequence[nn.Parameter],
        bucket_elements: int = BUCKET_ELEMENTS,
        start: StartSum = start_sum,
    ):
        self._params = list(params)
        self._start = start
        self._buckets = list(_buckets(self._params, bucket_elements))
        self._bucket_of = {index: bucket for bucket, members in enumerate(self._buckets) for index in members}
        self._early: list[int] = []
        self._started: list[tuple[Callable[[], object], torch.Tensor, list[torch.Tensor]]] = []
        self._num_launched = 0
        self._waits_for: dict[int, set[int]] = {}
        self._num_backward: list[int] = []
        self._is_last = False
        self._is_known = False  # whether processes have told each other which gradients come, and how
        self._can_be_early = False
        for index, param in enumerate(self._params):
            param.register_post_accumulate_grad_hook(lambda _, index=index: self._has_gradient(index))

    @property
    def num_early(self) -> int:
        """How many buckets have been started before `finish`, in this step."""
        return self._num_launched

    def expect_last_backward(self) -> None:
        """The next backward pass is the last of the step."""
        self._waits_for = {bucket: set(self._buckets[bucket]) for bucket in self._early}
        self._num_backward = [0] * len(self._params)
        self._is_last = True

    def _has_gradient(self, index: int) -> None:
        if not self._is_last:
            return
        bucket = self._bucket_of[index]
        self._num_backward[index] += 1
        if bucket in self._early[: self._num_launched]:
            raise RuntimeError("a gradient has come twice in one backward pass, and in the first step had not")
        self._waits_for.get(bucket, set()).discard(index)
        while self._num_launched < len(self._early) and not self._waits_for[self._early[self._num_launched]]:
            self._launch_next()

    def _launch_next(self) -> None:
        self._launch([self._params[index] for index in self._buckets[self._early[self._num_launched]]])
        self._num_launched += 1

    def _launch(self, params: list[nn.Parameter]) -> None:
        if len(self._started) == MAX_STARTED:
            self._wait()
        for param in params:
            if param.grad is None:
                param.grad = torch.zeros_like(param)
        grads = [param.grad for param in params if param.grad is not None]  # all have one now
        total = torch.cat([grad.flatten() for grad in grads])
        self._started.append((self._start(total), total, grads))

    def _wait(self) -> None:
        """For the bucket that was started first."""
        wait, total, grads = self._started.pop(0)
        wait()
        parts = total.split([grad.numel() for grad in grads])
        torch._foreach_copy_(grads, [part.view_as(grad) for part, grad in zip(parts, grads, strict=True)])

    def finish(self) -> None:
        """Reduces what is left, and waits for all. Every process calls it once in a step, whatever it has computed."""
        self._is_last = False
        have = [param.grad is not None for param in self._params]
        while self._num_launched < len(self._early):
            self._launch_next()
        # a gradient that comes several times in a backward pass is complete only at its end
        comes_again = any(number > 1 for number in self._num_backward)
        counts = torch.tensor([*have, comes_again], dtype=torch.float32, device=self._params[0].device)
        self._start(counts)()
        if not self._is_known or not all(have):  # only then wait for the device
            *found, num_again = counts.tolist()
            if not self._is_known:  # later some processes may not look, and all have to start the same buckets
                self._is_known, self._can_be_early = True, not num_again
        else:
            found = have
        early = set(self._early)
        for bucket, members in enumerate(self._buckets):
            params = [self._params[index] for index in members if found[index]]
            if bucket not in early and params:
                self._launch(params)
        while self._started:
            self._wait()
        for param, count in zip(self._params, found, strict=True):
            if not count:
                param.grad = None
        complete = [bucket for bucket, members in enumerate(self._buckets) if all(found[index] for index in members)]
        self._early = complete if self._can_be_early else []
        self._num_launched = 0


def _buckets(params: Sequence[nn.Parameter], limit: int) -> Iterator[list[int]]:
    """Indices of parameters of one dtype and device, the last first, in buckets of at least `limit` elements."""
    bucket: list[int] = []
    size = 0
    for index in reversed(range(len(params))):
        param = params[index]
        is_other = bool(bucket) and (param.dtype, param.device) != (params[bucket[0]].dtype, params[bucket[0]].device)
        if bucket and (size >= limit or is_other):
            yield bucket
            bucket, size = [], 0
        bucket.append(index)
        size += param.numel()
    if bucket:
        yield bucket
