"""An adapter of a language model whose frozen weights FSDP2 spreads over processes: each holds a part of every weight.

    torchrun --nproc_per_node 2 examples/sharded_base.py

The adapter is small, so that every process has all of it: `ignored_params` leaves it out of the sharding.
`metalora.fit` averages its gradients and gives each process batches of its own; the adapter is that of one process with
`accumulate=2`. The model here is small and random; load yours in its place.
"""

import torch
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

import metalora

WORDS = 64


def language_model() -> LlamaForCausalLM:
    """Return the same model in every process."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=WORDS)
    return LlamaForCausalLM(LlamaConfig(**sizes)).eval()


def shard(model: LlamaForCausalLM, adapter: metalora.Adapter) -> None:
    """Spread all frozen weights over the processes: a layer at a time is complete while it runs."""
    of_adapter = set(adapter.parameters())
    for layer in model.model.layers:
        fully_shard(layer, ignored_params=of_adapter)
    fully_shard(model, ignored_params=of_adapter)


def main(steps: int = 20, accumulate: int = 1) -> list[float]:
    distributed = torch.distributed
    model = language_model()
    adapter = metalora.attach(model, metalora.AdapterConfig("metatt-4d", rank=4, targets="q_proj,v_proj,up_proj"))
    if distributed.is_initialized():
        shard(model, adapter)

    def step_loss(k: int) -> torch.Tensor:
        ids = torch.randint(WORDS, (4, 1)) + torch.arange(12)  # batch k; (seed, k) decides on its random numbers
        ids = ids % WORDS  # (sentences, words): sentences that count
        return model(input_ids=ids, labels=ids).loss

    losses = metalora.fit(model, adapter, step_loss, metalora.TrainConfig(steps=steps, lr=1e-2, accumulate=accumulate))
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        metalora.save(model, "adapter.safetensors")  # `metalora merge` or `metalora.load` read it in one process
        print(f"loss {losses[0]:.3f} in the first step, {losses[-1]:.3f} in the last one")
    return losses


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")  # "nccl" with a GPU for each process
    main()
    torch.distributed.destroy_process_group()
