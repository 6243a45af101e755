"""One batch's gradients on several processes.

Operations of a small model are too short for threads: two processes with half the batch each are a quarter faster on
two cores than two threads in every operation.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

import torch
from torch import multiprocessing, nn

FEWER = 3  # samples than an even share for the process that also prepares the batch and steps the optimiser

Loss = Callable[..., torch.Tensor]


class Workers:
    """`count` processes, this one among them, that share the weights of `model`.

    `loss(model, *tensors)` is a mean over the first dimension of the tensors, which the processes divide. `trained` are
    the parameters with gradients.
    """

    def __init__(self, model: nn.Module, loss: Loss, count: int):
        self.model, self.loss = model.share_memory(), loss
        self.trained = _trained(model)
        self._helpers = []
        context = multiprocessing.get_context("spawn")
        for _ in range(count - 1):
            ours, theirs = context.Pipe()
            gradients = [torch.zeros_like(parameter).share_memory_() for parameter in self.trained]
            context.Process(target=_help, args=(model, loss, gradients, theirs), daemon=True).start()
            self._helpers.append((ours, gradients))

    def backward(self, *batch: torch.Tensor) -> float:
        """Leave the gradients of the batch's mean loss in the parameters, and return that loss."""
        parts = list(zip(*(self._split(tensor) for tensor in batch), strict=True))
        shares = [len(part[0]) / len(batch[0]) for part in parts]
        for (pipe, _), part, share in zip(self._helpers, parts[1:], shares[1:], strict=True):
            pipe.send((share, [tensor.contiguous() for tensor in part]))
        self.model.zero_grad(set_to_none=True)
        loss = self.loss(self.model, *parts[0]) * shares[0]
        loss.backward()
        total = loss.item()
        for pipe, gradients in self._helpers:
            total += pipe.recv()
            for parameter, gradient in zip(self.trained, gradients, strict=True):
                parameter.grad.add_(gradient)
        return total

    def _split(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        count = len(self._helpers)
        own = len(tensor) if count == 0 else max(len(tensor) // (count + 1) - FEWER, 1)
        return [tensor[:own], *(tensor[own:].tensor_split(count) if count else ())]


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _help(model: nn.Module, loss: Loss, gradients: list[torch.Tensor], pipe) -> None:
    """Work on parts of batches until the other end of `pipe` is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that saves decides when to stop
    torch.set_num_threads(1)
    for parameter, gradient in zip(_trained(model), gradients, strict=True):
        parameter.grad = gradient
    while True:
        try:
            share, part = pipe.recv()
        except EOFError:
            return
        model.zero_grad(set_to_none=False)
        value = loss(model, *part) * share
        value.backward()
        pipe.send(value.item())
