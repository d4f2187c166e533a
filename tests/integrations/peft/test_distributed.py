"""DDP and FSDP2 on two gloo processes give the gradients of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

IDS, TASKS = torch.arange(4 * 6).reshape(4, 6) % 60, torch.tensor([0, 1, 1, 0])
LABELS = IDS.masked_fill(torch.arange(6) < 2, -100)  # two tokens of a prompt, from which a condition is made


def adapted_model(name):
    from peft import get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    import metalora.peft as mp

    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
    more = dict(target_modules=["q_proj", "v_proj", "up_proj"], seed=0, task_type="CAUSAL_LM")
    config = mp.MetaTTConfig(method="metatt-4+1d", r=4, tasks=2, **more) if name == "tasks" else None
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**sizes)), config or mp.MetaLoRAConfig(r=2, **more))
    torch.manual_seed(1)
    for parameter in mp.adapter_of(model).parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return mp.wrap(model).train()


def loss(model, name, rows):
    more = {"task_ids": TASKS[rows]} if name == "tasks" else {}
    return model(input_ids=IDS[rows], labels=LABELS[rows], **more).loss


def check(name, sharded):
    """Each process runs this: its half of the batch with the other process, and the complete batch alone."""
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    alone = adapted_model(name)
    loss(alone, name, slice(0, 4)).backward()
    expected = {key: parameter.grad for key, parameter in alone.named_parameters() if parameter.requires_grad}
    model, rank = adapted_model(name), torch.distributed.get_rank()
    if sharded:
        for layer in model.get_base_model().model.layers:
            fully_shard(layer)
        together = fully_shard(model)
    else:
        together = DistributedDataParallel(model)
    loss(together, name, slice(2 * rank, 2 * rank + 2)).backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            gradient = parameter.grad.full_tensor() if sharded else parameter.grad
            assert expected[key].abs().max() > 0
            torch.testing.assert_close(gradient, expected[key], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tasks", "generated"])
@pytest.mark.parametrize("sharded", [False, True], ids=["DDP", "FSDP2"])
def test_two_processes_are_one(name, sharded):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run([*command, name, str(int(sharded))], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]


if __name__ == "__main__":
    sys.path[:] = [path for path in sys.path if path != str(Path(__file__).parent)]
    torch.distributed.init_process_group("gloo")
    check(sys.argv[1], sys.argv[2] == "1")
    torch.distributed.destroy_process_group()
