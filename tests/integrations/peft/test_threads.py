"""Calls of one PeftModel in several threads, each with an adapter or a condition of its own."""

import threading

import pytest
import torch
from torch import nn

peft = pytest.importorskip("peft")
import metalora.peft as integration  # noqa: E402

X = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))


def tuned(names, **options):
    """A PeftModel of several adapters, whose head is a module that is trained along with each of them."""
    torch.manual_seed(0)
    layers = {"body": nn.Linear(6, 6), "head": nn.Linear(6, 3)}

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = layers["body"], layers["head"]

        def forward(self, x):
            return self.head(self.body(x))

    config = integration.LoTRConfig(r=2, target_modules=["body"], modules_to_save=["head"], **options)
    model = peft.get_peft_model(Net(), config, names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    return model.eval()


def serve(calls, right, rounds=60):
    """Repeat every call in a thread of its own; return the numbers of the threads that got a wrong output or none."""
    wrong, entered = [], threading.Barrier(len(calls))

    def work(number):
        entered.wait()
        with torch.no_grad():
            for _ in range(rounds):
                try:
                    if not torch.equal(calls[number](), right[number]):
                        wrong.append(number)
                except Exception as error:
                    wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


def test_every_thread_gets_the_adapters_that_its_call_names():
    names = ("red", "green", "blue")
    model = tuned(names)
    rows = [[first, second] for first in (*names, "__base__") for second in names][:8]
    calls = [lambda row=row: model(X, adapter_names=row) for row in rows]
    with torch.no_grad():
        right = [call() for call in calls]
    assert len({tuple(output.flatten().tolist()) for output in right}) == len(rows)
    assert not serve(calls, right)
