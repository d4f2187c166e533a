"""Many tenants in one continuous run of transformers: each gets the tokens that `generate` gives it alone."""

import copy
import pickle

import pytest
import torch

from metalora import AdapterConfig, Condition, ConditionConfig, adapter_of, attach, detach
from metalora.adapters.continuous import blocks_of_tenants, manager
from support.adapters import randomise

transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.generation.continuous_batching.cache_allocators")

SIZES = dict(
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    vocab_size=50,
    initializer_range=0.3,
)
SUPPORT = ConditionConfig(scope="support", labelled=False)
PROMPT = ConditionConfig(scope="sample")
CONFIGS = {
    "tasks": AdapterConfig("metatt-4+1d", 3, targets=("q_proj", "v_proj", "down_proj"), tasks=4),
    "tasks and heads": AdapterConfig("metatt-6d", 3, targets=("q_proj", "v_proj"), tasks=4),
    "cp": AdapterConfig("metalora-cp", 2, targets=("q_proj", "v_proj", "down_proj"), condition=SUPPORT),
    "tr": AdapterConfig("metalora-tr", 2, targets=("k_proj", "up_proj"), condition=SUPPORT),
    "head and embedding": AdapterConfig("metalora-cp", 2, targets=("lm_head", "embed_tokens"), condition=SUPPORT),
    "scaled outputs": AdapterConfig("film", targets=("v_proj", "up_proj"), condition=SUPPORT),
    "from the prompt": AdapterConfig("metalora-cp", 2, targets=("q_proj", "v_proj"), condition=PROMPT),
}
TENANTS = 4
PROMPTS = [[7, 8, 9, 10, 11, 12, 13, 14, 15], [5, 6], [7, 8, 9, 10, 11, 12, 13, 14, 16], [9], [7, 8, 9, 10, 11], [5, 6]]
OWNERS = [0, 1, 2, 3, 1, 2]
SAME = [[7, 8, 9, 10, 11, 12, 13, 14, 15]] * TENANTS
NEW = 5
GREEDY = dict(do_sample=False, pad_token_id=0, eos_token_id=-1)


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))


def qwen3():
    config = transformers.Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=16, tie_word_embeddings=False)
    return transformers.Qwen3ForCausalLM(config)


def gpt2():
    sizes = dict(n_embd=32, n_layer=2, n_head=2, n_positions=40, vocab_size=50, initializer_range=0.3)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))


def memory(**settings):
    return transformers.ContinuousBatchingConfig(
        **{**dict(num_blocks=32, page_size=4, max_batch_tokens=64), **settings}
    )


class Served:
    """An adapted model of four tenants, and the tokens that each of them gets alone."""

    def __init__(self, config="cp", model=llama):
        torch.manual_seed(0)
        self.model = model().double().eval()
        config = CONFIGS[config] if isinstance(config, str) else config
        ids = torch.randint(50, (TENANTS, 6))
        self.adapter = attach(self.model, config, example={"input_ids": ids})
        torch.manual_seed(3)
        randomise(self.adapter, 0.9)
        self.adapter.requires_grad_(False)
        self.made_from_prompt = config.tasks == 1 and config.condition.scope == "sample"
        if config.tasks > 1:
            self.condition = self.adapter.task(range(TENANTS))
        elif not self.made_from_prompt:
            self.condition = Condition.stack([self.adapter.condition({"input_ids": row[None]}) for row in ids])

    def arguments(self, owners):
        return {} if self.made_from_prompt else {"condition": self.condition[torch.tensor(owners)]}

    def alone(self, prompt, owner):
        written = self.model.generate(torch.tensor([prompt]), max_new_tokens=NEW, **self.arguments([owner]), **GREEDY)
        return written[0, len(prompt) :].tolist()

    def together(self, prompts, owners, config=None, **more):
        more = more or self.arguments(owners)
        options = dict(continuous_batching_config=config or memory(), max_new_tokens=NEW)
        outputs = self.adapter.generate_batch(prompts, **options, **more).values()
        assert [output.error for output in outputs] == [None] * len(prompts)
        return [output.generated_tokens for output in outputs]

    def right(self, prompts, owners):
        right = [self.alone(prompt, owner) for prompt, owner in zip(prompts, owners, strict=True)]
        if not self.made_from_prompt:
            assert len({tuple(tokens) for tokens in right}) > 1, "the tenants must differ"
        return right


@pytest.mark.parametrize("config", CONFIGS)
def test_every_prompt_gets_what_its_tenant_gets_alone(config):
    served = Served(config)
    assert served.together(PROMPTS, OWNERS) == served.right(PROMPTS, OWNERS)


@pytest.mark.parametrize(
    "model, targets", [(gpt2, ("c_attn", "c_fc")), (qwen3, ("q_proj", "down_proj"))], ids=("gpt2", "qwen3")
)
@pytest.mark.parametrize("method, tasks", [("metalora-cp", 1), ("metatt-4+1d", TENANTS)])
def test_other_architectures(model, targets, method, tasks):
    served = Served(AdapterConfig(method, 3, targets=targets, tasks=tasks, condition=SUPPORT), model)
    assert served.together(PROMPTS, OWNERS) == served.right(PROMPTS, OWNERS)


SETTINGS = {
    "sharing": {},
    "no sharing": {"allow_block_sharing": False},
    "prompts in pieces": {"max_batch_tokens": 5},
    "too few blocks for all": {"num_blocks": 9},
    "prefill first": {"scheduler_type": "prefill_first"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_equal_prompts_of_several_tenants(settings):
    served = Served()
    prompts, owners = SAME * 2, [0, 1, 2, 3, 3, 2, 1, 0]
    assert served.together(prompts, owners, memory(**settings)) == served.right(prompts, owners)


def test_the_hash_of_transformers_alone_would_mix_the_tenants(monkeypatch):
    served = Served()
    right = served.right(SAME, range(TENANTS))
    monkeypatch.setattr(manager, "share_within_tenants", lambda cache, requests: None)
    assert served.together(SAME, range(TENANTS)) != right


def test_another_way_of_hashing_is_refused(monkeypatch):
    served = Served()
    monkeypatch.setattr(blocks_of_tenants.SaltedTokens, "__getitem__", list.__getitem__)
    with served.model.continuous_batching_context_manager(continuous_batching_config=memory(), warmup=False) as run:
        run.add_request(SAME[0], condition=served.condition[0], max_new_tokens=NEW)
        output = run.get_result(timeout=20)
    assert "tenants could read those of each other" in output.error


def test_a_prefix_is_reused_by_its_tenant_and_by_no_other():
    served = Served()
    found = []
    with served.model.continuous_batching_context_manager(
        transformers.GenerationConfig(**GREEDY), continuous_batching_config=memory(), warmup=True
    ) as run:
        own = run.batch_processor.cache.search_prefix_match
        run.batch_processor.cache.search_prefix_match = lambda *a: found.append(own(*a)) or found[-1]
        for owner in (0, 1, 0, 1):
            name = run.add_request(SAME[0], condition=served.condition[owner], max_new_tokens=NEW)
            output = run.get_result(name, timeout=20)
            assert output.generated_tokens == served.alone(SAME[0], owner)
    assert found == [0, 0, 8, 8]


def test_a_manager_that_is_kept_forgets_no_tenant_and_mixes_none():
    served = Served()
    options = dict(continuous_batching_config=memory(), max_new_tokens=NEW, persistent_manager=True)
    try:
        for owner in (0, 1, 0):
            served.adapter.fix(served.condition[owner])
            (output,) = served.model.generate_batch(SAME[:1], **options).values()
            assert output.generated_tokens == served.alone(SAME[0], owner)
    finally:
        served.model.destroy_cached_continuous_batching_manager()


def test_several_sequences_of_a_prompt_have_its_condition():
    served = Served()
    config = transformers.GenerationConfig(num_return_sequences=2, **{**GREEDY, "do_sample": True, "top_k": 1})
    outputs = served.model.generate_batch(SAME, config, memory(), condition=served.condition, max_new_tokens=NEW)
    right = [tokens for tokens in served.right(SAME, range(TENANTS)) for _ in range(2)]
    assert [output.generated_tokens for output in outputs.values()] == right


def test_task_ids_and_one_condition_for_all():
    served = Served("tasks")
    assert served.together(PROMPTS, None, task_ids=OWNERS) == served.right(PROMPTS, OWNERS)
    assert served.together(PROMPTS, None, task_ids=2) == served.right(PROMPTS, [2] * len(PROMPTS))


def test_blocks_and_the_fixed_condition_count_as_for_generate():
    served = Served()
    config = dict(continuous_batching_config=memory(), max_new_tokens=NEW)
    served.adapter.fix(served.condition[1])
    for owner, block in ((1, None), (2, served.condition[2])):
        with served.adapter.using(block if block is not None else served.condition[1]):
            (output,) = served.model.generate_batch(SAME[:1], **config).values()
        assert output.generated_tokens == served.alone(SAME[0], owner)


def test_paged_generate_takes_conditions():
    served = Served()
    ids = torch.tensor(SAME)
    options = dict(continuous_batching_config=memory(), max_new_tokens=NEW, **GREEDY)
    written = served.model.generate(ids, cache_implementation="paged", condition=served.condition, **options)[0]
    assert written[:, ids.shape[1] :].tolist() == served.right(SAME, range(TENANTS))


def test_copies_and_detached_models():
    served = Served()
    right = served.right(SAME, range(TENANTS))
    for copied in (copy.deepcopy(served.model), pickle.loads(pickle.dumps(served.model))):
        config = dict(continuous_batching_config=memory(), max_new_tokens=NEW)
        detach(served.model) if adapter_of(served.model) is not None else None
        outputs = copied.generate_batch(SAME, condition=served.condition, **config).values()
        assert [output.generated_tokens for output in outputs] == right
    assert not {"generate_batch", "init_continuous_batching"} & vars(served.model).keys()


def run_with(**settings):
    served = Served()
    served.adapter.generate_batch(SAME, served.condition, continuous_batching_config=memory(**settings))


def disabled(served):
    with served.adapter.disabled():
        served.model.generate_batch(SAME)


def merged(served):
    served.adapter.merge(served.condition[0])
    served.adapter.generate_batch(SAME, served.condition)


def twice(served):
    run = served.model.init_continuous_batching(continuous_batching_config=memory())
    for owner in range(2):
        run.add_request([5], "one name", condition=served.condition[owner])


def while_running(served):
    served.model.init_continuous_batching(continuous_batching_config=memory()).add_request([5])


def of_the_body():
    """An adapter of a part of the model, whose condition would be made from the row of all requests."""
    model = llama().double().eval()
    attach(model.model, CONFIGS["from the prompt"], example={"input_ids": torch.tensor([SAME[0]])}).requires_grad_(
        False
    )
    with model.continuous_batching_context_manager(continuous_batching_config=memory(), warmup=False) as run:
        run.add_request(SAME[0], max_new_tokens=NEW)
        raise ValueError(run.get_result(timeout=20).error)


def static(**arguments):
    attach(llama(), AdapterConfig("lora", 2, targets="q_proj")).generate_batch(SAME, **arguments)


def disabled_static():
    model = llama()
    adapter = attach(model, AdapterConfig("lora", 2, targets="q_proj"))
    with adapter.disabled():
        model.generate_batch(SAME)


def no_continuous_batching():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    attach(model, AdapterConfig("lora", 2, targets="0")).generate_batch(SAME)


REFUSALS = {
    "no condition": (lambda: Served().model.generate_batch(SAME), "comes from a support set"),
    "no task": (lambda: Served("tasks").model.generate_batch(SAME), "has 4 tasks"),
    "number of conditions": (lambda: Served().adapter.generate_batch(SAME[:3], Served().condition), "for 4 examples"),
    "recorded steps": (lambda: run_with(use_cuda_graph=True), "use_cuda_graph=True"),
    "compiled steps": (lambda: run_with(default_compile_level=1), "default_compile_level=1"),
    "disabled": (lambda: disabled(Served()), "a thread of its own"),
    "disabled, one adapter for all": (disabled_static, "a thread of its own"),
    "merged": (lambda: merged(Served()), "is merged"),
    "a part of the model": (of_the_body, "a row holds several texts"),
    "static": (lambda: static(task_ids=2), "no factor of this lora differs"),
    "one name twice": (lambda: twice(Served()), "'one name' waits or runs already"),
    "a prompt while others run": (lambda: while_running(Served("from the prompt")), "needs the model that is running"),
    "no continuous batching": (no_continuous_batching, "has no continuous batching"),
}


@pytest.mark.parametrize("call, message", REFUSALS.values(), ids=REFUSALS)
def test_what_would_run_under_another_condition_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
