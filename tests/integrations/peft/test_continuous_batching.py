"""Continuous batching of a PeftModel: one condition for all requests is served, and anything else is refused."""

import pytest
import torch

import metalora.peft
from metalora.peft import MetaLoRAConfig, MetaTTConfig
from support.adapters import randomise

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytest.importorskip("transformers.generation.continuous_batching.cache_allocators")

PROMPTS = [[7, 8, 9, 10, 11], [5, 6]]
OPTIONS = dict(max_new_tokens=4, do_sample=False, pad_token_id=0)
MEMORY = dict(num_blocks=16, page_size=4, max_batch_tokens=32)


def adapted(config):
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=50)
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, initializer_range=0.3)).double().eval()
    model = peft.get_peft_model(base, config).eval()
    adapter = metalora.peft.adapter_of(model)
    randomise(adapter, 0.9)
    adapter.requires_grad_(False)
    return model, adapter


def written(model):
    memory = transformers.ContinuousBatchingConfig(**MEMORY)
    outputs = model.generate_batch(PROMPTS, continuous_batching_config=memory, max_new_tokens=4)
    return [output.generated_tokens for output in outputs.values()]


def alone(model, **arguments):
    texts = [model.generate(input_ids=torch.tensor([prompt]), **OPTIONS, **arguments)[0] for prompt in PROMPTS]
    return [text[len(prompt) :].tolist() for prompt, text in zip(PROMPTS, texts, strict=True)]


def test_a_fixed_task_is_served():
    model, adapter = adapted(MetaTTConfig(method="metatt-4+1d", r=3, tasks=3, target_modules=["q_proj", "v_proj"]))
    right = [alone(model, task_ids=task) for task in (0, 1)]
    assert right[0] != right[1]
    for task in (0, 1):
        adapter.fix(adapter.task(task))
        assert written(model) == right[task]


def test_one_adapter_for_all_is_served():
    model, _ = adapted(MetaTTConfig(r=3, target_modules=["q_proj", "v_proj"]))
    assert written(model) == alone(model)


def by_task():
    return adapted(MetaTTConfig(method="metatt-4+1d", r=3, tasks=3, target_modules=["q_proj"]))


def in_using():
    model, adapter = by_task()
    adapter.fix(adapter.task(0))
    with adapter.using(adapter.task(1)):
        written(model)


def in_paged_generate():
    model, _ = by_task()
    model.generate(input_ids=torch.tensor(PROMPTS[:1]), cache_implementation="paged", task_ids=[1], **OPTIONS)


REFUSALS = {
    "tasks": lambda: written(by_task()[0]),
    "conditions": lambda: written(adapted(MetaLoRAConfig(r=2, target_modules=["q_proj"]))[0]),
    "using": in_using,
    "paged": in_paged_generate,
}


@pytest.mark.parametrize("call", REFUSALS.values(), ids=REFUSALS)
def test_several_conditions_are_refused(call):
    with pytest.raises(ValueError, match="run under one condition"):
        call()


def test_arguments_that_no_request_would_see_are_refused():
    model, adapter = by_task()
    adapter.fix(adapter.task(0))
    with pytest.raises(ValueError, match="takes no task_ids=..., since all requests"):
        model.generate_batch(PROMPTS, task_ids=[1, 2])
