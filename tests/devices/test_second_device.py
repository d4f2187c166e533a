"""The second device of the tests refuses and counts what CUDA refuses and waits for."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import nn

from support.second_device import CARD, counting_waits


def vector(*numbers):
    return torch.tensor(numbers, device=CARD)


REFUSED = {
    "two devices": lambda: vector(1.0, 2.0) + torch.ones(2),
    "two devices in a product": lambda: torch.ones(2, 2, device=CARD) @ torch.ones(2, 2),
    "a weight on the CPU": lambda: nn.Linear(2, 2)(torch.ones(1, 2, device=CARD)),
    "a stack of both": lambda: torch.stack([vector(1.0)[0], torch.tensor(1.0)]),
    "a value of a mask on the CPU": lambda: vector(1.0, 2.0).__setitem__(vector(True, True), torch.ones(2)),
    "a CPU number that is changed": lambda: torch.tensor(1.0).add_(vector(1.0)[0]),
    "an index of gather on the CPU": lambda: vector(1.0, 2.0).gather(0, torch.tensor([0])),
    "a generator of the CPU": lambda: torch.randn(2, device=CARD, generator=torch.Generator()),
    "a generator of the CPU in place": lambda: vector(1.0).normal_(generator=torch.Generator()),
    "numpy": lambda: vector(1.0).numpy(),
    "an array": lambda: np.asarray(vector(1.0)),
    "two devices of a loss": lambda: nn.functional.cross_entropy(torch.ones(1, 2, device=CARD), torch.tensor([0])),
}
ALLOWED = {
    "a number of the CPU": (lambda: vector(1.0, 2.0) + torch.tensor(1.0), [2.0, 3.0]),
    "an index on the CPU": (lambda: vector(1.0, 2.0)[torch.tensor([1, 0])], [2.0, 1.0]),
    "a copy between devices": (lambda: vector(1.0, 2.0).copy_(torch.zeros(2)), [0.0, 0.0]),
    "numbers of the device": (lambda: torch.arange(2, device=CARD) * 2.0, [0.0, 2.0]),
    "as another": (lambda: torch.zeros_like(torch.ones(2), device=CARD), [0.0, 0.0]),
    "numbers of the CPU there": (lambda: vector(1.0, 2.0).new_tensor([3.0, 4.0]), [3.0, 4.0]),
}
# name -> (what is done with [0, 1, 2], how often CUDA waits)
WAITS = {
    "arithmetic": (lambda x: ((x + 1).exp() @ x).relu(), 0),
    "item": (lambda x: x[1].item(), 1),
    "float": (lambda x: float(x.sum()), 1),
    "bool": (lambda x: bool((x > 0).all()), 1),
    "tolist": (lambda x: x.tolist(), 1),
    "to the CPU": (lambda x: x.cpu(), 1),
    "to the device": (lambda x: torch.ones(3).to(CARD), 1),
    "to the device, later": (lambda x: torch.ones(3).to(CARD, non_blocking=True), 0),
    "numbers": (lambda x: torch.tensor([1.0, 2.0], device=CARD), 1),
    "made there": (
        lambda x: (torch.arange(3, device=CARD), torch.rand(2, device=CARD)),
        0,
    ),
    "a mask": (lambda x: x[x > 0], 1),
    "filled under a mask": (lambda x: x.__setitem__(x > 0, 1.0), 0),
    "indices": (lambda x: x[torch.zeros(2, dtype=torch.long, device=CARD)], 0),
    "indices on the CPU": (lambda x: x[torch.tensor([0, 1])], 1),
    "equal": (lambda x: torch.equal(x, x), 1),
    "another type": (lambda x: x.double(), 0),
    "unique": (lambda x: x.unique(), 1),
    "cholesky": (lambda x: torch.linalg.cholesky(torch.eye(2, device=CARD)), 1),
    "cholesky_ex": (lambda x: torch.linalg.cholesky_ex(torch.eye(2, device=CARD)), 0),
    "eigh": (lambda x: torch.linalg.eigh(torch.eye(2, device=CARD)), 1),
    "an adapted step": (lambda x: training_step(nn.Linear(3, 2, device=CARD), x), 0),
}


def training_step(module, x):
    module(x).square().mean().backward()
    return module.weight.grad


@pytest.mark.parametrize("name", REFUSED)
def test_what_cuda_refuses_is_refused(name):
    with pytest.raises((RuntimeError, TypeError), match="device|generator"):
        REFUSED[name]()


@pytest.mark.parametrize("name", ALLOWED)
def test_what_cuda_allows_is_allowed(name):
    make, expected = ALLOWED[name]
    result = make()
    assert result.device.type == CARD and result.tolist() == expected


@pytest.mark.parametrize("name", WAITS)
def test_waits_are_counted(name):
    use, expected = WAITS[name]
    x = torch.arange(3.0, device=CARD)
    with counting_waits() as waits:
        use(x)
    assert len(waits) == expected, waits


def test_modules_their_gradients_and_copies_lie_on_the_device():
    torch.manual_seed(0)
    reference = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    module = copy.deepcopy(reference).to(CARD)
    x = torch.randn(5, 3)
    reference(x).square().mean().backward()
    module(x.to(CARD)).square().mean().backward()
    for expected, parameter in zip(reference.parameters(), module.parameters(), strict=True):
        assert parameter.device.type == CARD and torch.equal(parameter.grad.cpu(), expected.grad)
    again = pickle.loads(pickle.dumps(copy.deepcopy(module)))
    assert {parameter.device.type for parameter in again.parameters()} == {CARD}
    assert torch.equal(again.cpu()(x), reference(x))


def test_data_is_replaced_and_read():
    parameter = nn.Parameter(vector(1.0, 2.0))
    before, after = parameter.data, vector(3.0, 4.0, 5.0)
    parameter.data = after
    parameter.data.add_(1)
    assert (before.tolist(), after.tolist()) == ([1.0, 2.0], [4.0, 5.0, 6.0])
    assert parameter.shape == (3,) and parameter.tolist() == after.tolist()


def test_autocast_lowers_products_and_the_device_is_there_in_every_thread():
    layer, outputs = nn.Linear(3, 2, device=CARD), []
    x = torch.ones(1, 3, device=CARD)
    thread = threading.Thread(target=lambda: outputs.append(layer(x)))
    thread.start()
    thread.join()
    with torch.autocast(CARD, dtype=torch.bfloat16):
        outputs.append(layer(x))
    assert [output.dtype for output in outputs] == [torch.float32, torch.bfloat16]
    assert torch.allclose(outputs[0], outputs[1].float(), atol=0.02)
