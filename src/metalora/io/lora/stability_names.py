"""Names of a UNet in Stability's own code, which kohya's files of SDXL have, as the paths of diffusers.

Both number the same layers: Stability counts all blocks of the way down in one row, diffusers counts stages of two
blocks and a downsampler; on the way up a stage has three blocks, and the upsampler is a part of the last one.
"""

from __future__ import annotations

import re

BLOCKS_DOWN, BLOCKS_UP = 3, 3  # blocks of a stage of Stable Diffusion, with its downsampler
MIDDLE = {"0": "mid_block.resnets.0", "1": "mid_block.attentions.0", "2": "mid_block.resnets.1"}
RESNET_PARTS = {
    "in_layers.2": "conv1", "out_layers.3": "conv2", "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}  # fmt: skip
DOWNSAMPLER_PARTS = {"op": "conv"}
OTHERS = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in", "out.2": "conv_out",
}  # fmt: skip
BLOCK = re.compile(
    r"(?P<before>(.*[._])?)(?P<way>input_blocks|output_blocks|middle_block)"
    r"[._](?P<numbers>\d{1,3}([._]\d{1,3})?)[._](?P<part>.+)"
)


def name_in_diffusers(name: str, joint: str) -> str:
    """Return a name with the path of diffusers in place of Stability's; any other name as it is.

    Args:
        name: Name of a module in a file.
        joint: What separates the components of its path: "." or "_".

    Example:
        >>> name_in_diffusers("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", "_")
        'lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q'
        >>> name_in_diffusers("diffusion_model.output_blocks.2.2.conv", ".")
        'diffusion_model.up_blocks.0.upsamplers.0.conv'
    """
    for old, new in OTHERS.items():
        end = old.replace(".", joint)
        if name == end or name.endswith(f"{joint}{end}"):
            return name.removesuffix(end) + new.replace(".", joint)
    match = BLOCK.fullmatch(name)
    if match is None:
        return name
    numbers, part = re.split(r"[._]", match["numbers"]), match["part"]
    if match["way"] == "middle_block":
        block = MIDDLE.get(numbers[0])
    elif len(numbers) == 1:
        return name
    elif match["way"] == "input_blocks":
        block = _block_down(int(numbers[0]), numbers[1])
    else:
        block = _block_up(int(numbers[0]), numbers[1], part)
    if block is None:
        return name
    parts = RESNET_PARTS if "resnets" in block else DOWNSAMPLER_PARTS if "downsamplers" in block else {}
    part = {old.replace(".", joint): new for old, new in parts.items()}.get(part, part)
    return match["before"] + block.replace(".", joint) + joint + part


def _block_down(block: int, layer: str) -> str:
    stage, index = divmod(block - 1, BLOCKS_DOWN)  # block 0 is conv_in
    if index == BLOCKS_DOWN - 1:
        return f"down_blocks.{stage}.downsamplers.0"
    return f"down_blocks.{stage}.{'resnets' if layer == '0' else 'attentions'}.{index}"


def _block_up(block: int, layer: str, part: str) -> str:
    stage, index = divmod(block, BLOCKS_UP)
    if part == "conv":  # the upsampler, behind the attention or in its place
        return f"up_blocks.{stage}.upsamplers.0"
    return f"up_blocks.{stage}.{'resnets' if layer == '0' else 'attentions'}.{index}"
