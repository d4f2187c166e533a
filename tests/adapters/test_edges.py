"""Edges that were wrong once, each in its shortest reproduction."""

import copy
from itertools import islice

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, ConditionConfig, adapter_of, attach, detach, load, merge, save
from support.adapters import randomise
from support.cases import CASES, attach_case, features
from support.conv_net import BODY, conv_net, images
from support.layers import LAYERS

TOLERANCE = dict(rtol=1e-10, atol=1e-10)


def static(model, *targets, **options):
    randomise(attach(model, AdapterConfig(rank=2, targets=targets, **options)))
    return model


def test_using_serves_every_forward_inside():
    model, adapter, x, _ = attach_case(CASES["metalora-cp-c"], LAYERS["linear"])
    condition = adapter.condition(features(4))
    with adapter.using(condition):
        first, second = model(x), model(x)
    assert torch.equal(first, second)


def test_using_is_not_silently_left():
    model = conv_net()
    adapter = attach(
        model, AdapterConfig(method="metalora-cp", rank=2, targets=BODY, condition=ConditionConfig(stages=("0",)))
    )
    randomise(adapter)
    x, condition = images(), adapter.condition(images() + 3)
    with adapter.using(condition):
        first, second = model(x), model(x)
    assert torch.equal(first, second)


def test_using_wins_over_fix():
    model, adapter, x, condition = attach_case(CASES["metalora-cp-c"], LAYERS["linear"])
    one, two = condition["condition"][0], condition["condition"][1]
    adapter.fix(one)
    with adapter.using(two):
        got = model(x)
    assert torch.equal(got, model(x, condition=two))


def test_a_condition_can_be_iterated():
    condition = attach_case(CASES["metalora-cp-c"], LAYERS["linear"])[3]["condition"]
    assert len(list(islice(condition, 10))) == 4


def test_an_index_out_of_range_is_an_error():
    condition = attach_case(CASES["metalora-cp-c"], LAYERS["linear"])[3]["condition"]
    with pytest.raises(IndexError):
        condition[4]


@pytest.mark.parametrize("height", (2, 5), ids=("height = rank", "another height"))
def test_unbatched_convolution(height):
    model, x = static(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).double(), "0"), torch.randn(3, height, 4).double()
    adapter_of(model).weight_first = False
    torch.testing.assert_close(model(x), model(x[None])[0], **TOLERANCE)


def test_an_embedding_of_one_id_per_example():
    model, adapter, x, condition = attach_case(CASES["metalora-cp-c"], LAYERS["embedding"])
    torch.testing.assert_close(model(x[:, 0], **condition), model(x, **condition)[:, 0], **TOLERANCE)


class Tied(nn.Module):
    def __init__(self, same_module=False):
        super().__init__()
        self.first = nn.Linear(5, 5, bias=False)
        self.second = self.first if same_module else nn.Linear(5, 5, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


@pytest.mark.parametrize("targets", (("first",), ("first", "second")))
def test_merge_of_a_tied_weight(targets):
    model, x = static(Tied().double(), *targets), torch.randn(2, 5).double()
    before = model(x)
    with pytest.raises(ValueError, match="tied"):
        merge(model)
    assert torch.equal(model(x), before)


def test_a_module_under_two_names():
    model, x = Tied(same_module=True).double(), torch.randn(2, 5).double()
    static(model, "first")
    dense = model.first.base.weight + model.first.delta(None)
    torch.testing.assert_close(model(x), x @ dense.T @ dense.T, **TOLERANCE)


class Ids(nn.Module):
    """A model whose input cannot be guessed."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 5)
        self.blocks = nn.ModuleList(nn.Linear(5, 5) for _ in range(2))

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return x


def test_what_was_attached_with_an_example_can_be_loaded(tmp_path):
    model = Ids()
    fresh, x = copy.deepcopy(model), torch.randint(11, (2, 3))
    attach(model, AdapterConfig(method="metalora-cp", rank=2, targets=("blocks.0",)), example=x)
    save(model, tmp_path / "adapter")
    load(fresh, tmp_path / "adapter")
    assert torch.equal(fresh(x), model(x))


def test_detach_restores_the_mode_of_batch_norm():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    attach(model, AdapterConfig(rank=2, targets=("0",)))
    model(torch.randn(2, 3, 5, 5))
    detach(model)
    assert model.training and model[1].training


def test_the_fast_path_of_torchs_transformer():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), nn.Linear(8, 8))
    with pytest.raises(ValueError, match="match nothing"):  # a preset leaves its layers out
        attach(model, AdapterConfig(rank=2, targets="linear"))
    [adapted] = attach(model, AdapterConfig(rank=2, targets=("linear1",))).layers.values()
    assert type(adapted.base).__name__ == "HeldMatrix"  # W + Delta W stands where the fast path reads


def test_features_do_not_depend_on_gradient_checkpointing():
    from timm.models.resnet import BasicBlock, ResNet

    def width(checkpointed):
        model = ResNet(BasicBlock, [1, 1, 1, 1], channels=(4, 4, 6, 6), stem_width=4, num_classes=3)
        model.set_grad_checkpointing(checkpointed)
        return attach(model, AdapterConfig(method="metalora-cp", rank=2, targets=("conv1",))).conditioner.feature_size

    assert width(True) == width(False)


def test_a_changed_description_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(5, 4))
    fresh, path = copy.deepcopy(model), tmp_path / "adapter"
    static(model, "0", alpha=2.0)
    save(model, path)
    path.write_bytes(path.read_bytes().replace(b'alpha\\": 2.0', b'alpha\\": 9.0'))
    with pytest.raises(ValueError):
        load(fresh, path)


@pytest.mark.parametrize("rank", ("8", 2.5, None))
def test_a_rank_of_the_wrong_type_made_in_python(rank):
    with pytest.raises(ValueError) as error:
        attach(nn.Sequential(nn.Linear(6, 5)), AdapterConfig(rank=rank, targets=("0",)))
    assert "rank" in str(error.value)


def test_load_on_an_adapted_model_says_so(tmp_path):
    model = static(nn.Sequential(nn.Linear(6, 5)), "0")
    save(model, tmp_path / "adapter")
    with pytest.raises(ValueError) as error:
        load(model, tmp_path / "adapter")
    assert "already has an adapter" in str(error.value)


def test_a_stem_that_is_a_target():
    model, x = conv_net(), images()
    condition = ConditionConfig(source="stem", stem="0", hidden=5)
    config = AdapterConfig(method="metalora-cp", rank=2, targets=("0", "2.0"), condition=condition)
    adapter = attach(model, config, example=x)
    randomise(adapter)
    adapter.weight_first = False
    want = model(x)
    adapter.weight_first = True
    torch.testing.assert_close(model(x), want, **TOLERANCE)
