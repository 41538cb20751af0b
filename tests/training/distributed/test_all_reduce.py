"""If these fail, several processes train on sums that are not those of all gradients, or wait for each other forever.

"Processes" are threads here, which sum by meeting each other; runs of real processes are in tests/end_to_end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from library.training.distributed.all_reduce import GradientAllReduce

NUM = 2


class Meeting:
    """Sums a tensor of each thread, where all start with one of the same size at the same time."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(NUM)
        self._given: list[torch.Tensor] = []

    def start(self, tensor: torch.Tensor) -> Callable[[], None]:
        self._given.append(tensor.clone())
        self._barrier.wait(timeout=30)
        total = torch.stack(self._given).sum(0)
        if self._barrier.wait(timeout=30) == 0:
            self._given.clear()
        self._barrier.wait(timeout=30)
        return lambda: tensor.copy_(total)


def in_threads(work: Callable[[int], object]) -> list[object]:
    with ThreadPoolExecutor(NUM) as pool:
        return list(pool.map(work, range(NUM), timeout=60))


def lists(params: Sequence[nn.Parameter]) -> list[list[float] | None]:
    return [None if param.grad is None else param.grad.tolist() for param in params]


def test_a_gradient_of_one_process_counts_and_one_of_none_stays_none():
    """The first has gradients of the parameters 0 and 1, the second of 1 and 2, neither of 3."""
    grads = [[[1.0, 2.0], [3.0], None, None], [None, [10.0], [20.0, 30.0], None]]
    meeting = Meeting()

    def reduced(rank: int) -> list[list[float] | None]:
        params = [nn.Parameter(torch.zeros(size)) for size in (2, 1, 2, 3)]
        all_reduce = GradientAllReduce(params, start=meeting.start)
        for param, value in zip(params, grads[rank], strict=True):
            param.grad = None if value is None else torch.tensor(value)
        all_reduce.finish()
        return lists(params)

    assert in_threads(reduced) == [[[1.0, 2.0], [13.0], [20.0, 30.0], None]] * NUM


def layers_of_inputs(params: Sequence[nn.Parameter], inputs: Sequence[float], uses: Sequence[int]) -> torch.Tensor:
    """Sum of input x product of the parameters that are used: the gradient of each is the product of the others."""
    product = torch.ones(())
    for index in uses:
        product = product * params[index].sum()
    return sum((x * product for x in inputs), torch.zeros(()))


def test_buckets_are_reduced_in_the_last_backward_pass_of_a_step_and_sums_are_of_all_processes():
    """Parameters 2, 3, 5, each a bucket. Process r has inputs 1 + r, and in step 3 the first process skips a parameter.

    Gradients of a product: of 2 it is 15 times the sum of the inputs, and so on.
    """
    values, meeting = (2.0, 3.0, 5.0), Meeting()
    products = (15.0, 10.0, 6.0)

    def trained(rank: int) -> list[tuple[int, list[list[float] | None]]]:
        params = [nn.Parameter(torch.tensor([value])) for value in values]
        all_reduce = GradientAllReduce(params, bucket_elements=1, start=meeting.start)
        found = []
        for step in (1, 2, 3, 4):
            uses = (0, 1) if (step, rank) == (3, 0) else (0, 1, 2)
            layers_of_inputs(params, [1.0 + rank], (0, 1, 2)).backward()  # of two micro-batches
            if (step, rank) == (3, 0):
                params[2].grad = None
            all_reduce.expect_last_backward()
            layers_of_inputs(params, [10.0], uses).backward()
            early = all_reduce.num_early
            all_reduce.finish()
            found.append((early, lists(params)))
            for param in params:
                param.grad = None
        return found

    whole = [[product * (1 + 2 + 20)] for product in products]
    skipped = [[15.0 * (1 + 2 + 10) + 3.0 * 10], [10.0 * (1 + 2 + 10) + 2.0 * 10], [6.0 * (2 + 10)]]
    first, second = in_threads(trained)
    assert [grads for _, grads in first] == [whole, whole, skipped, whole]
    assert [grads for _, grads in second] == [whole, whole, skipped, whole]
    # none before the processes know which gradients come; the last parameter's is the first bucket, so that the first
    # process in step 3 can start none
    assert [early for early, _ in first] == [0, 3, 0, 3]
    assert [early for early, _ in second] == [0, 3, 3, 3]


def test_a_parameter_that_is_never_used_keeps_no_other_bucket_waiting():
    meeting = Meeting()

    def trained(rank: int) -> list[int]:
        params = [nn.Parameter(torch.tensor([value])) for value in (2.0, 3.0, 5.0)]
        all_reduce = GradientAllReduce(params, bucket_elements=1, start=meeting.start)
        early = []
        for _ in (1, 2):
            all_reduce.expect_last_backward()
            layers_of_inputs(params, [1.0], (0, 1)).backward()
            early.append(all_reduce.num_early)
            all_reduce.finish()
        assert params[2].grad is None
        return early

    assert in_threads(trained) == [[0, 2]] * NUM


def test_a_gradient_that_comes_twice_in_a_backward_pass_is_reduced_after_it():
    """As with reentrant gradient checkpointing of layers that share a parameter: here by a backward pass inside one."""

    class Again(torch.autograd.Function):
        @staticmethod
        def forward(context, value, param):
            context.param = param
            return value.clone()

        @staticmethod
        def backward(context, gradient):
            with torch.enable_grad():
                (7 * context.param.sum()).backward()
            return gradient, None

    meeting = Meeting()

    def trained(rank: int) -> list[tuple[int, list[list[float] | None]]]:
        param = nn.Parameter(torch.tensor([2.0]))
        all_reduce = GradientAllReduce([param], bucket_elements=1, start=meeting.start)
        found = []
        for _ in (1, 2):
            all_reduce.expect_last_backward()
            Again.apply(3 * param.sum(), param).backward()
            early = all_reduce.num_early
            all_reduce.finish()
            found.append((early, lists([param])))
            param.grad = None
        return found

    assert in_threads(trained) == [[(0, [[20.0]])] * 2] * NUM


def test_buckets_are_in_the_order_in_which_gradients_come_and_a_step_has_no_other_sum():
    """Sizes 2, 3 and 5, used in the order 1, 0, 2: backward gives 2, 0, 1. Each is a bucket, a count behind it."""
    meeting = Meeting()

    def trained(rank: int) -> list[int]:
        params = [nn.Parameter(torch.ones(size)) for size in (2, 3, 5)]
        sizes: list[int] = []

        def start(tensor: torch.Tensor) -> Callable[[], None]:
            sizes.append(tensor.numel())
            return meeting.start(tensor)

        all_reduce = GradientAllReduce(params, bucket_elements=1, start=start)
        for _ in (1, 2):
            sizes.clear()
            for param in params:
                param.grad = None
            all_reduce.expect_last_backward()
            layers_of_inputs(params, [1.0], (1, 0, 2)).backward()
            assert not sizes or len(sizes) == len(params)  # none is left for `finish`
            all_reduce.finish()
        assert [param.grad.tolist() for param in params] == [[NUM * 15.0] * 2, [NUM * 10.0] * 3, [NUM * 6.0] * 5]
        return sizes

    assert in_threads(trained) == [[6, 3, 4]] * NUM


def test_processes_agree_on_buckets_where_their_gradients_come_in_different_orders():
    meeting = Meeting()

    def trained(rank: int) -> list[list[float] | None]:
        params = [nn.Parameter(torch.tensor([value])) for value in (2.0, 3.0, 5.0)]
        all_reduce = GradientAllReduce(params, bucket_elements=1, start=meeting.start)
        for _ in (1, 2):
            for param in params:
                param.grad = None
            all_reduce.expect_last_backward()
            layers_of_inputs(params, [1.0], (0, 1, 2) if rank else (2, 0, 1)).backward()
            all_reduce.finish()
        return lists(params)

    assert in_threads(trained) == [[[30.0], [20.0], [12.0]]] * NUM


def test_summed_gradients_lie_in_memory_as_their_parameters_do():
    """Of a model in channels_last: optimizers compute such pairs many times faster."""
    meeting = Meeting()

    def trained(rank: int) -> list[list[float]]:
        weight = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
        params = [nn.Parameter(weight), nn.Parameter(torch.zeros(2))]
        all_reduce = GradientAllReduce(params, start=meeting.start)
        values = torch.arange(96.0).view(2, 3, 4, 4)
        for _ in (1, 2):
            for param in params:
                param.grad = None
            all_reduce.expect_last_backward()
            ((params[0] * values).sum() + params[1].sum()).backward()
            all_reduce.finish()
        assert params[0].grad.stride() == params[0].stride()
        return [param.grad.flatten().tolist() for param in params]

    assert in_threads(trained) == [[[NUM * value for value in range(96)], [NUM] * 2]] * NUM
