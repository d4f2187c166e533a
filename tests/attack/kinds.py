"""The kinds of files under attack: how a valid one is written, loaded and used, on networks of a few numbers."""

import atexit
import copy
import functools
import shutil
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import nn

from attack import readers
from attack.judge import Kind
from metalora import AdapterConfig, Condition, ConditionConfig, adapter_of, attach, load, load_lora, save
from metalora.config import to_dict
from support.adapters import randomise

X = torch.arange(24.0).reshape(4, 6) / 11 - 1
FEATURES = torch.arange(30.0).reshape(6, 5).sin()
TARGETS, ALPHA = ("0", "2"), 3.0
SUPPORT = ConditionConfig(source="tensor", scope="support", labelled=False, feature_size=5, hidden=3)
GENERATED = AdapterConfig("metalora-cp", 2, targets=TARGETS, alpha=ALPHA, condition=SUPPORT)
LORA = AdapterConfig("lora", 2, targets=TARGETS, alpha=ALPHA)


@functools.cache
def _base(owner: int = 0) -> nn.Module:
    torch.manual_seed(owner)
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3)).eval()


def base(owner: int = 0) -> nn.Module:
    return copy.deepcopy(_base(owner))


def adapted(config: AdapterConfig, owner: int = 0) -> nn.Module:
    model = base(owner)
    torch.manual_seed(10 + owner)
    randomise(attach(model, config), 0.3)
    return model


# ---- adapters and conditions -----------------------------------------------------------------------------------------
def write_adapter(config, path, owner):
    save(adapted(config, owner), path)


def use_adapter(model, path):
    adapter = load(model, path)
    return model(X, condition=adapter.condition(FEATURES)) if adapter.conditional else model(X)


def write_condition(path, owner):
    adapter_of(adapted(GENERATED, owner)).condition(FEATURES + owner).detach().save(path)


def use_condition(model, path):
    return model(X, condition=Condition.load(path))


def read_condition(path):
    factors = {key: value.detach() for key, value in adapter_of(adapted(GENERATED)).factors.items()}
    return readers.condition_of_cp(base(), X, factors, ALPHA, path)


# ---- LoRA folders, LoCon files, folders of metalora.peft -------------------------------------------------------------
def write_lora(path, owner):
    from peft import LoraConfig, get_peft_model

    patterns = dict(rank_pattern={"2": 3}, alpha_pattern={"0": 5})
    model = get_peft_model(base(owner), LoraConfig(r=2, lora_alpha=4, target_modules=list(TARGETS), **patterns))
    _randomise_peft(model, owner)
    model.save_pretrained(path)


def _randomise_peft(model, owner):
    generator = torch.Generator().manual_seed(20 + owner)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name or "metalora" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def use_lora(model, path):
    load_lora(model, path)
    return model(X)


def write_locon(path, owner):
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(30 + owner)
    tensors = {}
    for target in TARGETS:
        name = f"lora_unet_{target}"
        tensors[f"{name}.lora_down.weight"] = torch.randn(2, 6, generator=generator)
        tensors[f"{name}.lora_up.weight"] = torch.randn(6, 2, generator=generator) * 0.3
        tensors[f"{name}.alpha"] = torch.tensor(1.5)
    save_file(tensors, path)


def write_peft(path, owner):
    from peft import get_peft_model

    import metalora.peft

    config = metalora.peft.LoTRConfig(r=2, target_modules=list(TARGETS), alpha=ALPHA, seed=owner)
    model = get_peft_model(base(owner), config)
    _randomise_peft(model, owner)
    model.save_pretrained(path)


def use_peft(model, path):
    import metalora.peft

    return metalora.peft.load(model, path)(X)


# ---- learners and tasks ----------------------------------------------------------------------------------------------
@functools.cache
def learner(owner: int):
    from metalora.learner import MetaLearner

    learner = MetaLearner(base(owner), adapter=LORA, support=6, query=6, steps=0, device="cpu")
    torch.manual_seed(40 + owner)
    randomise(learner.adapter, 0.3)
    return learner


def task_of(learner):
    inputs = torch.randn(12, 6, generator=torch.Generator().manual_seed(1)).numpy()
    return learner.adapt(inputs, ["ripe" if row[0] > 0 else "green" for row in inputs])


def _probabilities(task):
    return torch.from_numpy(task.predict_proba(X.numpy()))


def write_learner(path, owner):
    learner(owner).save_pretrained(path)


def use_learner(model, path):
    from metalora.learner import MetaLearner

    return _probabilities(task_of(MetaLearner.from_pretrained(path, backbone=model, device="cpu")))


def write_task(path, owner):
    task_of(learner(owner)).save_pretrained(path)


@functools.cache
def valid_task():
    folder = tempfile.mkdtemp(prefix="attack-task-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_task(Path(folder) / "task", 0)
    return Path(folder) / "task"


def read_task(path):
    return readers.task(valid_task(), path)


def use_task(model, path):
    from metalora.learner import AdaptedTask

    return _probabilities(AdaptedTask.from_pretrained(path, learner(0)))


# ---- run files -------------------------------------------------------------------------------------------------------
RUN = """suite: attributes
data: mnist-5k
method: LoRA
seed: 3
split: val
adapter:
  method: lora
  rank: 2
  alpha: 4.0
  targets: linear
  dropout: 0.1
train:
  steps: 20
  lr: 0.01
  warmup: 0.2
  clip: 1.0
  schedule: linear
  checkpoint_every: 5
backbone:
  batch: 32
  label_smoothing: 0.1
"""


def write_run(path, owner):
    path.write_text(RUN.replace("seed: 3", f"seed: {3 + owner}"))


def use_run(model, path):
    """Read the configuration, and attach its adapter, as a run does."""
    from metalora_papers.registry import load_run

    run = load_run(path)
    if run.adapter is not None:
        try:
            attach(copy.deepcopy(model), run.adapter)
        except ValueError as error:  # a run names its file in another place
            raise ValueError(f"{path}: {error}") from None
    return readers.numbers_of_run(to_dict(run))


def read_run(path):
    from metalora_papers.config import RunConfig

    return readers.run_file(dict(readers.flat(to_dict(RunConfig(adapter=AdapterConfig())))), path)


KINDS = (
    Kind("adapter files", 14, "safetensors", partial(write_adapter, GENERATED), base, use_adapter),
    Kind(
        "adapter files, checksum computed again",
        10,
        "safetensors",
        partial(write_adapter, GENERATED),
        base,
        use_adapter,
        partial(readers.adapter_of_cp, _base(), X, FEATURES),
        seal=True,
    ),
    Kind(
        "adapter files of LoRA, checksum computed again",
        8,
        "safetensors",
        partial(write_adapter, LORA),
        base,
        use_adapter,
        partial(readers.adapter_of_lora, _base(), X),
        seal=True,
    ),
    Kind("condition files", 11, "safetensors", write_condition, partial(adapted, GENERATED), use_condition),
    Kind(
        "condition files, checksum computed again",
        8,
        "safetensors",
        write_condition,
        partial(adapted, GENERATED),
        use_condition,
        read_condition,
        seal=True,
    ),
    Kind("task folders", 9, "", write_task, lambda: learner(0).backbone.model, use_task),
    Kind(
        "task folders, checksum computed again",
        6,
        "",
        write_task,
        lambda: learner(0).backbone.model,
        use_task,
        read_task,
        seal=True,
    ),
    Kind("learner folders", 6, "", write_learner, base, use_learner),
    Kind("LoRA folders", 12, "", write_lora, base, use_lora, partial(readers.peft_lora, _base(), X)),
    Kind("LoCon files", 8, "safetensors", write_locon, base, use_lora, partial(readers.locon, _base(), X)),
    Kind("folders of metalora.peft", 7, "", write_peft, base, use_peft, partial(readers.peft_lotr, _base(), X)),
    Kind("run files", 7, "yaml", write_run, base, use_run, read_run),
)
