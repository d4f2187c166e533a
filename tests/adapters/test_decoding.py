"""ConditionCache step by step: the condition of a prompt serves every step that continues it."""

import copy
import gc
import pickle
from types import SimpleNamespace

import pytest
import torch

from metalora import AdapterConfig, ConditionConfig, adapter_of, attach
from metalora.adapters.conditioning.condition_cache import ConditionCache

transformers = pytest.importorskip("transformers")

IDS = torch.arange(3 * 5).reshape(3, 5) % 47 + 3
SOURCES = {"stages": {}, "pooled": {}, "stem": {"stem": "model.embed_tokens"}}


def decoder(source="stages", **stem):
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=50)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()
    condition = ConditionConfig(source=source, **{**SOURCES[source], **stem})
    config = AdapterConfig("metalora-cp", 2, targets=("q_proj", "v_proj"), condition=condition)
    adapter = attach(model, config, example={"input_ids": IDS})
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(0, 0.5)
    adapter.requires_grad_(False)  # nothing is trained here, so the inputs are prompts
    return model, adapter


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("beams", [1, 2])
def test_generate_makes_one_condition(source, beams):
    model, adapter = decoder(source)
    made = []
    adapter.conditioner.register_forward_hook(lambda module, args, output: made.append(output))
    options = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False, num_beams=beams, pad_token_id=0)
    options["attention_mask"] = torch.ones_like(IDS)
    with torch.no_grad():
        found = model.generate(input_ids=IDS, **options)
        assert len(made) == 1
        used = made.pop()
        assert len(used) == (3 * beams if source == "stem" else 3)  # a stem is read where every beam is computed
        prompt = adapter.condition({"input_ids": IDS})[torch.arange(3).repeat_interleave(len(used) // 3)]
        torch.testing.assert_close(used.vector(), prompt.vector(), rtol=1e-4, atol=1e-4)
        made.clear()
        with adapter.using(used):
            assert torch.equal(found, model.generate(input_ids=IDS, **options))
        assert len(made) == 0 and len({*map(tuple, found[:, 5:].tolist())}) > 1


def test_layers_up_to_the_stem_have_no_condition_in_any_step():
    model, adapter = decoder("stem", stem="model.layers.0")
    inside, after = (model.model.layers[k].self_attn.q_proj for k in (0, 1))
    seen = []
    for layer in (inside, after):
        layer.register_forward_pre_hook(
            lambda module, args: seen.append(module.bound.read(adapter.current().values)["c"].detach())
        )
    first = model(input_ids=IDS)
    model(input_ids=torch.tensor([[7], [8], [9]]), past_key_values=first.past_key_values)
    start, made, later_start, later_made = seen
    assert torch.equal(start, later_start) and len(start) == 1
    assert torch.equal(made, later_made) and len(made) == 3 and (made - start).abs().max() > 1e-2


@pytest.mark.parametrize("given", [False, True], ids=["condition of the prompt", "condition given with the prompt"])
def test_a_step_continues_under_the_condition_of_its_prompt(given):
    model, adapter = decoder()
    more = torch.tensor([[7], [8], [9]])
    condition = adapter.condition({"input_ids": IDS.flip(0) if given else IDS})
    first = model(input_ids=IDS, **({"condition": condition} if given else {}))
    step = model(input_ids=more, past_key_values=first.past_key_values)
    whole = torch.cat([IDS, more], 1)
    want = model(input_ids=whole, condition=condition).logits[:, -1:]
    torch.testing.assert_close(step.logits, want, rtol=1e-4, atol=1e-4)
    assert (model(input_ids=whole).logits[:, -1:] - want).abs().max() > 1e-3
    assert adapter.current().values is None


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_no_part_of_a_condition(source, side):
    model, adapter = decoder(source)
    zeros, ones = torch.zeros(3, 2, dtype=torch.long), torch.ones(3, 5, dtype=torch.long)
    parts = [(zeros, zeros), (IDS, ones)][:: 1 if side == "left" else -1]
    ids, mask = (torch.cat(one, 1) for one in zip(*parts, strict=True))
    real = slice(2, None) if side == "left" else slice(0, 5)
    padded = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    with torch.no_grad():
        found = model(**padded).logits[:, real]
        torch.testing.assert_close(found, model(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found, model(**padded, condition=adapter.condition(padded)).logits[:, real])
        free = model(input_ids=ids, position_ids=padded["position_ids"]).logits[:, real]
        assert (found - free).abs().max() > 1e-3


class MambaCache:
    """The cache of transformers 5.0: it counts nothing, and is made before the prompt."""

    def __init__(self, states):
        self.ssm_states = states


@pytest.mark.parametrize("states, known", [(torch.zeros(2, 3, 4), False), (torch.eye(4)[None], True)])
def test_a_cache_without_a_length_continues_a_prompt_if_it_holds_one(states, known):
    cache, conditions, values = MambaCache([states, states]), ConditionCache(), {"C": torch.ones(1, 2)}
    conditions.keep(SimpleNamespace(cache_params=cache), values)
    assert conditions.values({"cache_params": cache}, needed=True) == (values if known else None)


def test_a_state_space_model_continues_under_the_condition_of_its_prompt():
    torch.manual_seed(0)
    sizes = dict(vocab_size=50, hidden_size=32, state_size=4, num_hidden_layers=2, time_step_rank=4)
    model = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes)).eval()
    adapter = attach(model, AdapterConfig("metalora-cp", 2, targets="in_proj"), example={"input_ids": IDS})
    made = []
    adapter.conditioner.register_forward_hook(lambda module, args, output: made.append(output))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(0, 0.5)
        options = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)
        found = model.generate(input_ids=IDS, **options)
        assert len(made) == 1
        with adapter.using(adapter.condition({"input_ids": IDS})):
            assert torch.equal(found, model.generate(input_ids=IDS, **options))


def test_a_cache_used_again_is_a_new_prompt():
    model, adapter = decoder()
    cache = transformers.StaticCache(config=model.config, max_cache_len=16)
    with torch.no_grad():
        model(input_ids=IDS.flip(0), past_key_values=cache)
        cache.reset()
        found = model(input_ids=IDS, past_key_values=cache)
        torch.testing.assert_close(found.logits, model(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)


def test_a_cache_that_is_not_known_asks_for_the_condition():
    model, adapter = decoder()
    more = torch.tensor([[7], [8], [9]])
    with torch.no_grad():
        first = model(input_ids=IDS)
    cache = copy.deepcopy(first.past_key_values)
    with pytest.raises(ValueError, match="cache holds 5 positions whose condition is not known .* condition=condition"):
        model(input_ids=more, past_key_values=cache)
    assert cache.get_seq_length() == 5 and adapter.current().values is None
    given = model(input_ids=more, past_key_values=cache, condition=adapter.condition({"input_ids": IDS}))
    known = model(input_ids=more, past_key_values=first.past_key_values)
    torch.testing.assert_close(given.logits, known.logits)


def test_a_condition_goes_with_its_cache():
    model, adapter = decoder()
    output = model(input_ids=IDS)
    assert len(adapter.condition_cache.entries) == 1
    assert (
        not adapter_of(copy.deepcopy(model)).condition_cache.entries
        and not pickle.loads(pickle.dumps(adapter.condition_cache)).entries
    )
    del output
    gc.collect()
    assert not adapter.condition_cache.entries
