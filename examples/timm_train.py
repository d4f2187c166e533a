"""timm's own train.py with an adapter: `python timm_train.py TRAIN.PY DATA --model resnet18 --pretrained ...`.

This script stands in front of train.py of a checkout of timm (pytorch-image-models). It replaces `timm.create_model`,
as train.py sees it, by one that attaches an adapter and keeps the head trainable. The optimisers of timm take only the
parameters that need a gradient, so that the arguments of train.py stay what they are.
"""

import runpy
import sys
from collections.abc import Callable
from typing import Any

import timm
from torch import nn

import metalora

CONFIG = metalora.AdapterConfig("lora", rank=8, targets="conv", clip_rank=True)


def with_adapter(create: Callable[..., nn.Module], config: metalora.AdapterConfig = CONFIG) -> Callable[..., nn.Module]:
    """Return `create_model` of timm, whose models have an adapter and a trainable head."""

    def create_adapted(*arguments: Any, **options: Any) -> nn.Module:
        model = create(*arguments, **options)
        adapter = metalora.attach(model, config)
        model.get_classifier().requires_grad_(True)
        print(f"metalora: {adapter.num_params():,} numbers of {config.method} in {len(adapter.targets)} layers")
        return model

    return create_adapted


def main(script: str, *arguments: str) -> None:
    timm.create_model = timm.models.create_model = with_adapter(timm.create_model)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
