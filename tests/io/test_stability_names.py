"""Names of Stability's UNets as paths of diffusers: pairs that both codes document, for all layers of a small UNet."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from metalora import load_lora
from metalora.io.lora.stability_names import name_in_diffusers

PAIRS = {  # path of diffusers -> that of Stability's code, as in the checkpoints of SDXL and (upsamplers) of SD 1.5
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2",
    "down_blocks.0.resnets.1.conv2": "input_blocks.2.0.out_layers.3",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks.4.0.skip_connection",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
    "down_blocks.1.attentions.1.proj_in": "input_blocks.5.1.proj_in",
    "down_blocks.2.attentions.1.transformer_blocks.0.ff.net.2": "input_blocks.8.1.transformer_blocks.0.ff.net.2",
    "mid_block.resnets.0.time_emb_proj": "middle_block.0.emb_layers.1",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k": "middle_block.1.transformer_blocks.0.attn2.to_k",
    "mid_block.resnets.1.conv1": "middle_block.2.in_layers.2",
    "up_blocks.0.attentions.0.proj_out": "output_blocks.0.1.proj_out",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
    "up_blocks.1.attentions.1.proj_in": "output_blocks.4.1.proj_in",
    "up_blocks.1.resnets.2.conv1": "output_blocks.5.0.in_layers.2",
    "up_blocks.2.resnets.0.conv2": "output_blocks.6.0.out_layers.3",
    "time_embedding.linear_1": "time_embed.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_out": "out.2",
}


def tree(paths):
    """A model with a linear layer at each path."""
    root = nn.Module()
    for path in paths:
        *parents, last = path.split(".")
        module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
        module.add_module(last, nn.Linear(4, 4))
    return root


@pytest.mark.parametrize(
    "joint, prefix", (("_", "lora_unet_"), (".", "diffusion_model."), (".", "model.diffusion_model."))
)
def test_every_layer_gets_its_own_update(joint, prefix, tmp_path):
    tensors, wants = {}, {}
    for number, (path, name) in enumerate(PAIRS.items()):
        down, up = torch.randn(1, 4), torch.full((4, 1), float(number + 1))
        key = prefix + name.replace(".", joint)
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
        wants[path] = up @ down
    save_file(tensors, tmp_path / "lora.safetensors")
    adapter = load_lora(tree(PAIRS), tmp_path / "lora.safetensors")
    assert adapter.targets.keys() == wants.keys()
    for path, want in wants.items():
        torch.testing.assert_close(adapter.delta(path), want)


def test_the_upsampler_of_a_stage_without_attention():
    assert name_in_diffusers("lora_unet_output_blocks_2_1_conv", "_") == "lora_unet_up_blocks_0_upsamplers_0_conv"


@pytest.mark.parametrize(
    "name", ("unet.down_blocks.0.resnets.0.conv1", "middle_block.7.conv", "input_blocks.4.conv", "fc")
)
def test_other_names_stay(name):
    assert name_in_diffusers(name, ".") == name
