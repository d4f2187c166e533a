"""torch.export of adapted models: the same outputs, at the batch that it was traced with and at others."""

import pytest
import torch
from torch import nn
from torch.export import Dim

import metalora
from support.adapters import attach_random

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*certain side effects happened")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2)
        self.out = nn.Linear(8, 5)

    def forward(self, x):
        return self.out(self.second(self.first(x).relu()).relu().mean((2, 3)))


def attach_method(model, method, **options):
    return attach_random(model.eval(), metalora.AdapterConfig(method, 2, **options), std=0.3)


def check(model, inputs, others, shapes):
    """The program of `inputs` gives what the model gives, for other sizes too; and not what the base alone gives."""
    program = torch.export.export(model, inputs, dynamic_shapes=shapes).module()
    with torch.no_grad():
        for one in (inputs, others):
            torch.testing.assert_close(program(*one), model(*one), rtol=1e-5, atol=1e-5)
        with metalora.adapter_of(model).disabled():
            base = model(*inputs)
        assert not torch.allclose(program(*inputs), base, atol=1e-3)


def test_metatt_on_a_bert():
    transformers = pytest.importorskip("transformers")
    sizes = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=30,
        return_dict=False,
    )

    class First(transformers.BertModel):
        def forward(self, ids):
            return super().forward(ids)[0]

    model = First(sizes, add_pooling_layer=False)
    attach_method(model, "metatt-4d", targets="query,value")
    ids = torch.arange(24).reshape(2, 12)
    check(model, (ids,), (ids[:1, :3],), ({0: Dim("b", max=64), 1: Dim("t", min=2, max=32)},))


CONDITIONS = {
    "no condition": ("lora", {}),
    "one that is fixed": ("metalora-cp", {"scope": "support", "stages": ("first", "second")}),
    "one for each example": ("metalora-cp", {"scope": "sample", "stages": ("first", "second")}),
}


@pytest.mark.parametrize("method, condition", CONDITIONS.values(), ids=CONDITIONS)
def test_conv_lora_on_a_cnn(method, condition):
    model, images = Net(), torch.rand(3, 3, 8, 8)
    adapter = attach_method(model, method, targets="conv", condition=metalora.ConditionConfig(**condition))
    if adapter.conditional:
        adapter.calibrate(torch.rand(6, 3, 8, 8))
    if condition.get("scope") == "support":
        with torch.no_grad():
            adapter.fix(adapter.condition(torch.rand(6, 3, 8, 8), torch.arange(6) % 2))
    check(model, (images,), (torch.rand(5, 3, 8, 8),), ({0: Dim("b", max=64)},))
