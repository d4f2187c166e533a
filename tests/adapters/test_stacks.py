"""A network with several module stacks: text and vision towers, encoder and decoder, the stages of a ResNet."""

import pytest
import torch
from transformers import BartConfig, BartModel, CLIPConfig, CLIPModel, T5Config, T5Model

from metalora import AdapterConfig, attach, load, save
from metalora.io.adapter_file import read
from support.adapters import randomise


def two_towers():
    """CLIP: two layers of width 32 for texts, three of width 48 for images."""
    text = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=50)
    vision = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=32)
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(text_config=text, vision_config={**vision, "patch_size": 16}, projection_dim=8)).eval()


def t5():
    """Two blocks each; a block of the decoder has a second attention, on the encoder's output."""
    return T5Model(T5Config(d_model=16, d_kv=4, num_heads=4, d_ff=32, num_layers=2, vocab_size=50))


def bart():
    """An encoder of one layer and a decoder of two."""
    sizes = dict(d_model=16, encoder_attention_heads=4, decoder_attention_heads=4, vocab_size=50)
    layers = dict(encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32)
    return BartModel(BartConfig(**sizes, **layers, max_position_embeddings=20))


R = 4
COUNTS = [  # model, targets, method, stacks -> learned numbers by hand: outer factors + layers and projections
    (two_towers, "q_proj,v_proj", "metatt-4d", "successive", 2 * (32 + 48) * R + (2 + 3) * R**2 + 2 * R**2),
    (two_towers, "q_proj,v_proj", "metatt-4d", "aligned", 2 * (32 + 48) * R + 3 * R**2 + 2 * 2 * R**2),
    (two_towers, "q_proj,v_proj", "lotr", "successive", 2 * (32 + 48) * R + (2 + 3) * 2 * R**2),
    (two_towers, "q_proj,v_proj", "lotr", "aligned", 2 * (32 + 48) * R + 3 * 4 * R**2),
    (two_towers, "q_proj,v_proj", "tenslora-qkv", "successive", 2 * (2 * 32 + 3 * 48) * R + 5 * (2 * R + R**3)),
    (two_towers, "q_proj,v_proj", "lora", "successive", 2 * 2 * R * (2 * 32 + 3 * 48)),
    (two_towers, "q_proj,v_proj", "lora", "aligned", 2 * 2 * R * (2 * 32 + 3 * 48)),
    (t5, "q,v", "metatt-4d", "successive", 2 * 16 * R + (2 + 2) * R**2 + 4 * R**2),
    (t5, "q,v", "metatt-4d", "aligned", 2 * 16 * R + 2 * R**2 + (2 + 4) * R**2),
    (bart, "q_proj", "metatt-4d", "successive", 2 * 16 * R + (1 + 2) * R**2 + 2 * R**2),
    (bart, "q_proj", "metatt-4d", "aligned", 2 * 16 * R + 2 * R**2 + (1 + 2) * R**2),
]


@pytest.mark.parametrize("make, targets, method, stacks, count", COUNTS)
def test_the_count_is_that_by_hand(make, targets, method, stacks, count):
    adapter = attach(make(), AdapterConfig(method, R, targets=targets, stacks=stacks))
    assert adapter.num_params() == count


def layers_that_read(adapter, factor, axis):
    """For every slice of a factor along an axis: the layers, "text.1" and so on, whose Delta W change with it."""
    readers = []
    before = {path: adapter.delta(path).detach().clone() for path in adapter.targets}
    for number in range(adapter.factors[factor].shape[axis]):
        values = adapter.factors[factor].data.select(axis, number)
        kept = values.clone()
        values.add_(1)
        changed = [path for path, delta in before.items() if not torch.equal(adapter.delta(path), delta)]
        values.copy_(kept)
        readers.append(sorted({".".join((path.split("_")[0], path.split(".")[3])) for path in changed}))
    return readers


@pytest.mark.parametrize(
    "stacks, layers, projections",
    [
        ("successive", [["text.0"], ["text.1"], ["vision.0"], ["vision.1"], ["vision.2"]], 2),
        ("aligned", [["text.0", "vision.0"], ["text.1", "vision.1"], ["vision.2"]], 4),
    ],
)
def test_which_layers_share_a_slice(stacks, layers, projections):
    adapter = attach(two_towers(), AdapterConfig("metatt-4d", R, targets="q_proj,v_proj", stacks=stacks))
    randomise(adapter)
    assert layers_that_read(adapter, "G2", 1) == layers
    assert adapter.factors["G3"].shape == (R, projections, R)


@pytest.mark.parametrize("stacks", ("successive", "aligned"))
def test_a_file_has_the_field_only_where_it_matters(stacks, tmp_path):
    """Files of before have no field and hold an aligned adapter; with one stack both are the same."""
    for make, targets, is_written in ((two_towers, "q_proj", stacks == "successive"), (t5, "encoder*q", False)):
        torch.manual_seed(0)
        model = make()
        adapter = attach(model, AdapterConfig("metatt-4d", R, targets=targets, stacks=stacks))
        randomise(adapter)
        save(model, tmp_path / "file")
        assert ("stacks" in read(tmp_path / "file")[0]["config"]) == is_written
        expected = {path: adapter.delta(path) for path in adapter.targets}
        adapter.detach()
        loaded = load(model, tmp_path / "file")
        assert all(torch.equal(loaded.delta(path), delta) for path, delta in expected.items())


def test_an_unknown_way_is_refused():
    from metalora.config import from_dict

    with pytest.raises(ValueError, match="stacks.*'succesive'"):
        from_dict(AdapterConfig, {"method": "metatt-4d", "stacks": "succesive"})
