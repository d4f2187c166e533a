"""The adapters that are stored in the tests' data folders, to check that files of earlier versions still load.

The files were written once, by version 0.1.0 before its modules were renamed. To store a further file, add a case and
call `write_adapter_file` or `write_peft_folder` with the version whose format is to be kept. Never write an old case
again.
"""

import torch
from safetensors.torch import save_file
from torch import nn

from metalora import AdapterConfig, ConditionConfig, attach, save

STANDARD_DEVIATION = 0.8  # of the stored factors


def fill_exactly(model):
    """Give every weight multiples of 1/64, which are the same bits on every platform and in every version of torch."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            values = (torch.arange(parameter.numel()) * 37 + 11 * number) % 61 - 30
            parameter.copy_((values / 64).reshape(parameter.shape))
    return model


def small_bert():
    """A BERT of two layers, width 16."""
    from transformers import BertConfig, BertModel

    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=24)
    return fill_exactly(BertModel(BertConfig(**sizes, max_position_embeddings=8))).eval()


def small_convolutions():
    """Two convolutions and a head, for images `(batch, 3, 6, 6)`."""
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()]
    return fill_exactly(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))).eval()


def small_mlp():
    """Two linear layers, 16 -> 8 -> 8."""
    return fill_exactly(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8))).eval()


def support_set():
    """Six images `(6, 3, 6, 6)` of two classes and their labels `(6,)`."""
    numbers = torch.arange(6 * 3 * 6 * 6) * 29 % 64
    return numbers.reshape(6, 3, 6, 6) / 64, torch.tensor([0, 1, 0, 1, 1, 0])


SUPPORT = ConditionConfig(source="stages", scope="support", stages=("0", "2"), hidden=4)

# name of the file -> (the base model, the configuration of its adapter)
ADAPTER_FILES = {
    "metalora-cp": (
        small_convolutions,
        AdapterConfig(method="metalora-cp", rank=2, alpha=4.0, targets="conv", condition=SUPPORT),
    ),
    "metatt-4d": (small_bert, AdapterConfig(method="metatt-4d", rank=3, alpha=2.0, targets=("query", "value"))),
    "tenslora-qkv-depth": (
        small_bert,
        AdapterConfig(method="tenslora-qkv-depth", rank=2, targets=("query", "key", "value")),
    ),
    "quanta": (small_mlp, AdapterConfig(method="quanta", targets="2", digits={"in": "2 2 2", "out": "2 2 2"})),
    "vera": (small_mlp, AdapterConfig(method="vera", rank=4, targets=("0", "2"), seed=3)),
}


def randomise(parameters):
    """Draw factors that no initialisation gives, in place of training."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * STANDARD_DEVIATION)


def deltas_of(adapter):
    """Path of a target -> its dense Delta W, under the support set's condition if the method needs one."""
    condition = adapter.condition(*support_set()) if adapter.conditional else None
    with torch.no_grad():
        return {path: adapter.delta(path, condition).contiguous() for path in adapter.targets}


def write_adapter_file(name, folder):
    """Write NAME.adapter and, next to it, NAME.deltas with the dense Delta W of every target."""
    make_base, config = ADAPTER_FILES[name]
    model = make_base()
    images, _ = support_set()
    adapter = attach(model, config, example=images if make_base is small_convolutions else None)
    if adapter.conditional:
        adapter.calibrate(images)
    randomise(adapter.parameters())
    save(model, folder / f"{name}.adapter")
    save_file(deltas_of(adapter), folder / f"{name}.deltas")


def write_peft_folder(folder):
    """Write the folder of a PEFT adapter with two tasks and, in it, the dense Delta W of every task and target."""
    from peft import get_peft_model

    import metalora.peft as mp

    targets = ["query", "value"]
    config = mp.MetaTTConfig(method="metatt-4+1d", r=3, alpha=2.0, tasks=2, target_modules=targets, seed=7)
    model = mp.wrap(get_peft_model(small_bert(), config)).eval()
    adapter = mp.adapter_of(model)
    randomise(adapter.parameters())
    model.save_pretrained(folder)
    save_file(deltas_of_tasks(adapter), folder / "deltas.safetensors")


def deltas_of_tasks(adapter):
    """ "task/path" -> the dense Delta W of a task at a target."""
    deltas = {}
    with torch.no_grad():
        for task in range(adapter.config.tasks):
            for path in adapter.targets:
                deltas[f"{task}/{path}"] = adapter.delta(path, adapter.task(task)).contiguous()
    return deltas
