"""If these fail, several processes do not learn what one does where a parameter has a gradient in some of them only."""

import threading

import torch
from torch import nn

from library.training.distributed.strategy import reduce_gradients


class InThread:
    """What `reduce_gradients` needs of an accelerator, for two "processes" that are threads."""

    num_processes = 2
    device = torch.device("cpu")

    def __init__(self, meeting, given):
        self._meeting = meeting
        self._given = given  # the tensors of the sum that is made

    def reduce(self, tensor, reduction):
        assert reduction == "sum"
        self._given.append(tensor.clone())
        self._meeting.wait(timeout=30)
        total = torch.stack(self._given).sum(0)
        if self._meeting.wait(timeout=30) == 0:
            self._given.clear()
        self._meeting.wait(timeout=30)
        return total


def test_a_gradient_of_one_process_counts_and_one_of_none_stays_none():
    """The first has gradients of the parameters 0 and 1, the second of 1 and 2, neither of 3."""
    grads = [[[1.0, 2.0], [3.0], None, None], [None, [10.0], [20.0, 30.0], None]]
    shapes = [2, 1, 2, 3]
    params = [[nn.Parameter(torch.zeros(size)) for size in shapes] for _ in grads]
    meeting, given = threading.Barrier(2), []
    threads = []
    for mine, values in zip(params, grads, strict=True):
        for param, value in zip(mine, values, strict=True):
            param.grad = None if value is None else torch.tensor(value)
        threads.append(threading.Thread(target=reduce_gradients, args=(InThread(meeting, given), mine)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for mine in params:
        reduced = [None if param.grad is None else param.grad.tolist() for param in mine]
        assert reduced == [[1.0, 2.0], [13.0], [20.0, 30.0], None]
