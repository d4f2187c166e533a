"""Conditions and task ids through a PeftModel: forward, generate, beams, checkpointing, the Trainer."""

import pytest
import torch
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

import metalora.peft as mp

IDS = torch.arange(3 * 5).reshape(3, 5) % 50 + 3


def gpt():
    torch.manual_seed(1)
    ends = dict(bos_token_id=0, eos_token_id=1, pad_token_id=0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=32, **ends)).eval()


def t5():
    torch.manual_seed(1)
    sizes = dict(vocab_size=64, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0)).eval()


def task_config(**more):
    return mp.MetaTTConfig(method="metatt-4+1d", r=4, tasks=3, **more)


def trained(model, std=0.5):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "metalora_" in name:
                parameter.normal_(0, std)
    return model


def served(model, std=0.3):
    return trained(model, std).eval().requires_grad_(False)  # nothing is trained, so the inputs are prompts


def tasks_of(base, kind, targets):
    return mp.wrap(trained(get_peft_model(base, task_config(target_modules=targets, task_type=kind))).eval())


def test_a_batch_of_tasks_is_each_task_alone():
    model = tasks_of(gpt(), "CAUSAL_LM", ["c_attn", "c_fc"])
    together = model(input_ids=IDS, task_ids=[0, 1, 2]).logits
    alone = [model(input_ids=IDS, task_ids=task).logits[task] for task in range(3)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-4)
    assert (together[0] - model(input_ids=IDS, task_ids=1).logits[0]).abs().max() > 1e-2


SKIP_OLD_PEFT = pytest.mark.skipif(
    not hasattr(BaseTuner, "_get_adapter_state_dict"),
    reason="PEFT before 0.21 asks an encoder-decoder for a method that transformers 5 does not have",
)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(
    "base, kind, targets",
    [(gpt, "CAUSAL_LM", ["c_attn"]), pytest.param(t5, "SEQ_2_SEQ_LM", ["q", "v"], marks=SKIP_OLD_PEFT)],
)
def test_generate_gives_every_example_its_task_and_its_adapter(base, kind, targets, beams):
    model = tasks_of(base(), kind, targets)
    model.add_adapter("lotr", mp.LoTRConfig(r=4, target_modules=targets, task_type=kind))
    trained(model)
    mask = torch.ones_like(IDS)
    options = dict(max_new_tokens=5, min_new_tokens=5, num_beams=beams, do_sample=False, pad_token_id=0)

    def alone(k, **more):
        return model.generate(input_ids=IDS[k : k + 1], attention_mask=mask[k : k + 1], **more, **options)[0]

    together = model.generate(input_ids=IDS, attention_mask=mask, task_ids=[0, 1, 2], **options)
    assert torch.equal(together, torch.stack([alone(k, task_ids=k) for k in range(3)]))
    mixed = model.generate(
        input_ids=IDS, attention_mask=mask, task_ids=[2, 0, 0], adapter_names=["default", "lotr", "__base__"], **options
    )
    first = alone(0, task_ids=2)
    model.set_adapter("lotr")
    second = alone(1)
    with model.disable_adapter():
        third = alone(2)
    assert torch.equal(mixed, torch.stack([first, second, third]))


def test_generate_under_conditions_made_from_the_inputs():
    config = mp.MetaLoRAConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM")
    model = mp.wrap(served(get_peft_model(gpt(), config)))
    condition = mp.adapter_of(model).condition({"input_ids": IDS})
    torch.testing.assert_close(model(input_ids=IDS).logits, model(input_ids=IDS, condition=condition).logits)
    options = dict(max_new_tokens=4, min_new_tokens=4, num_beams=2, do_sample=False, pad_token_id=0)
    together = model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), condition=condition, **options)
    for k in range(3):
        example = dict(input_ids=IDS[k : k + 1], attention_mask=torch.ones(1, 5, dtype=torch.long))
        assert torch.equal(together[k], model.generate(**example, condition=condition[k], **options)[0])


@pytest.mark.parametrize("beams", [1, 2])
def test_generate_makes_the_condition_once_from_the_prompt(beams):
    config = mp.MetaLoRAConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM")
    model = served(get_peft_model(gpt(), config))
    adapter, conditions = mp.adapter_of(model), []
    adapter.conditioner.register_forward_hook(lambda module, args, output: conditions.append(output))
    options = dict(max_new_tokens=4, min_new_tokens=4, num_beams=beams, do_sample=False, pad_token_id=0)
    generated = model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **options)
    assert len(conditions) == 1
    mp.wrap(model)
    condition = adapter.condition({"input_ids": IDS})
    expected = model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), condition=condition, **options)
    assert torch.equal(generated, expected)


WAYS = {
    "no cache": {"use_cache": False},
    "chunks": {"prefill_chunk_size": 2},
    "static cache, beams": {"cache_implementation": "static", "num_beams": 2},
    "samples": {"num_return_sequences": 2, "num_beams": 2},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrapped", [True, False], ids=["wrapped", "as it is"])
def test_every_way_to_generate_is_that_of_the_dense_weights(way, wrapped):
    config = mp.MetaLoRAConfig(method="metalora-tr", r=2, target_modules=["c_attn", "c_fc"], task_type="CAUSAL_LM")
    model = served(get_peft_model(gpt().double(), config), 0.9)
    model = mp.wrap(model) if wrapped else model
    adapter = mp.adapter_of(model)
    options = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=1)
    how = {key: value for key, value in WAYS[way].items() if key.startswith("num")}
    with torch.no_grad():
        condition = adapter.condition({"input_ids": IDS})
        rows = []
        for row in range(3):
            dense = gpt().double()
            for path in adapter.targets:
                dense.get_submodule(path).weight += adapter.delta(path, condition[row])
            rows.append(dense.generate(IDS[row : row + 1], **options, **how, use_cache=False))
    right = torch.cat(rows)
    assert torch.equal(model.generate(input_ids=IDS, **options, **WAYS[way]), right)
    assert torch.equal(model.generate(input_ids=IDS, condition=condition, **options, **WAYS[way]), right)
    assert torch.equal(adapter.generate(input_ids=IDS, condition=condition, **options, **WAYS[way]), right)
    turned = model.generate(input_ids=IDS, condition=condition[[1, 2, 0]], **options, **WAYS[way])
    assert not torch.equal(turned, right)
    with pytest.raises(ValueError, match="the condition is for 2 examples, and the prompt has 3"):
        model.generate(input_ids=IDS, condition=condition[[0, 1]], **options, **WAYS[way])


@SKIP_OLD_PEFT
@pytest.mark.parametrize("beams", [1, 2])
def test_an_encoder_runs_under_the_condition_of_its_prompt(beams):
    config = mp.MetaLoRAConfig(r=2, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    model = mp.wrap(served(get_peft_model(t5(), config), 0.9))
    start = {"input_ids": IDS, "decoder_input_ids": torch.zeros(3, 1, dtype=torch.long)}
    condition = mp.adapter_of(model).condition(start)
    options = dict(max_new_tokens=4, min_new_tokens=4, num_beams=beams, do_sample=False)
    found = model.generate(input_ids=IDS, **options)
    assert torch.equal(found, model.generate(input_ids=IDS, condition=condition, **options))


def of_one(kind):
    config = mp.LoTRConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM")
    if kind == "generated":
        config = mp.MetaLoRAConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM")
    model = served(mp.wrap(get_peft_model(gpt(), config, adapter_name=kind)))
    model.add_adapter("other", mp.LoTRConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM"))
    return model


def off(model):
    with model.disable_adapter():
        model(input_ids=IDS, condition=mp.adapter_of(model, "generated").neutral())


def off_in_generate(model):
    with model.disable_adapter():
        model.generate(input_ids=IDS, condition=mp.adapter_of(model, "generated").neutral(), max_new_tokens=2)


def off_by_the_adapter(model):
    with mp.adapter_of(model, "generated").disabled():
        model(input_ids=IDS, condition=mp.adapter_of(model, "generated").neutral())


def switched(model):
    condition = mp.adapter_of(model, "generated").neutral()
    model.set_adapter("other")
    model(input_ids=IDS, condition=condition)


def merged(model):
    mp.adapter_of(model, "generated").fix(mp.adapter_of(model, "generated").neutral())
    model.merge_adapter(["generated"])
    model(input_ids=IDS, condition=mp.adapter_of(model, "generated").neutral())


NOT_USED = {
    "disabled": (off, "condition=... has no effect"),
    "disabled, generate": (off_in_generate, "condition=... has no effect"),
    "disabled by the adapter": (off_by_the_adapter, "condition=... has no effect"),
    "not active": (switched, r"condition=... has no effect, .* \(running: other\)"),
    "merged": (merged, "condition=... has no effect"),
    "unknown name": (lambda model: model(input_ids=IDS, condition={"made": None}), "no adapter is named 'made'"),
    "no tasks": (lambda model: model(input_ids=IDS, task_ids=0), r"task_ids=... has no effect, .*running: generated"),
    "no tasks, generate": (lambda model: model.generate(input_ids=IDS, task_ids=0), "task_ids=... has no effect"),
}


@pytest.mark.parametrize("call, message", NOT_USED.values(), ids=NOT_USED)
def test_a_condition_that_nobody_takes_is_refused(call, message):
    model = of_one("generated")
    with pytest.raises(ValueError, match=message):
        call(model)


NOT_FROZEN = {
    "features": lambda adapter, model: adapter.features({"input_ids": IDS}),
    "calibrate": lambda adapter, model: adapter.calibrate({"input_ids": IDS}),
    "condition": lambda adapter, model: adapter.condition({"input_ids": IDS}),
    "forward": lambda adapter, model: model(input_ids=IDS),
    "disabled": lambda adapter, model: model_disabled(adapter, model),
}


def model_disabled(adapter, model):
    with adapter.disabled():
        return model(input_ids=IDS)


@pytest.mark.parametrize("verb", NOT_FROZEN.values(), ids=NOT_FROZEN)
def test_the_frozen_network_is_refused_while_another_adapter_is_merged(verb):
    model = of_one("generated")
    trained(model)
    adapter = mp.adapter_of(model, "generated")
    with torch.no_grad():
        right = adapter.features({"input_ids": IDS})
        model.merge_adapter(["other"])
        with pytest.raises(ValueError, match="the adapters other are merged, so the frozen network cannot run"):
            verb(adapter, model)
        model.unmerge_adapter()
        assert torch.equal(adapter.features({"input_ids": IDS}), right)


def test_conditions_of_two_adapters_by_name():
    config = mp.MetaLoRAConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM")
    model = get_peft_model(gpt(), config, adapter_name="cp")
    config = mp.MetaLoRAConfig(method="metalora-tr", r=2, target_modules=["c_attn"], task_type="CAUSAL_LM")
    model.add_adapter("ring", config)
    mp.wrap(served(model))
    conditions = {name: mp.adapter_of(model, name).condition({"input_ids": IDS}) for name in ("cp", "ring")}
    mixed = model(input_ids=IDS, adapter_names=["cp", "ring", "cp"], condition=conditions).logits
    for k, name in enumerate(["cp", "ring", "cp"]):
        model.set_adapter(name)
        alone = model(input_ids=IDS, condition=conditions[name]).logits[k]
        torch.testing.assert_close(mixed[k], alone, rtol=1e-4, atol=1e-4)


def test_errors_name_what_is_missing():
    model = trained(get_peft_model(gpt(), task_config(target_modules=["c_attn"], task_type="CAUSAL_LM")))
    with pytest.raises(ValueError, match=r"adapter 'default' \(metatt-4\+1d\) has 3 tasks: wrap the model once"):
        model(input_ids=IDS)
    with pytest.raises(ValueError, match="has 3 tasks: wrap the model once"):
        model(input_ids=IDS, task_ids=[0, 1, 2])  # PeftModelForCausalLM drops it
    mp.wrap(model)
    with pytest.raises(ValueError, match="the condition is for 2 examples, the layer got 3"):
        model(input_ids=IDS, task_ids=[0, 1])
    with pytest.raises(ValueError, match=r"task 3: expected 0\.\.2"):
        model(input_ids=IDS, task_ids=3)
    for wrong in (gpt(), model.get_base_model()):
        with pytest.raises(ValueError, match="expected a PeftModel, got a GPT2LMHeadModel"):
            mp.wrap(wrong)
    with pytest.raises(ValueError, match="has no adapter of metalora.peft"):
        mp.adapter_of(gpt())
    with pytest.raises(ValueError, match="adapter 'x': expected the name of one .known: default"):
        mp.adapter_of(model, "x")
    assert model(input_ids=IDS, task_ids=1).logits.isfinite().all()


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("tasks", [True, False], ids=["tasks", "generated"])
def test_checkpointing_is_exact_with_two_forwards_before_a_backward(tasks, use_reentrant):
    config = task_config if tasks else lambda **more: mp.MetaLoRAConfig(r=2, **more)
    model = get_peft_model(gpt(), config(target_modules=["c_attn", "c_fc"], task_type="CAUSAL_LM"))
    mp.wrap(trained(model, 0.3)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batches = [(IDS, [0, 1, 2]), (IDS.flip(0) + 1, [2, 2, 0])]

    def gradients():
        model.zero_grad()
        more = [{"task_ids": ids} if tasks else {} for _, ids in batches]
        answers = [x.where(torch.arange(5) > 1, -100) for x, _ in batches]
        losses = [model(input_ids=x, labels=y, **m).loss for (x, _), y, m in zip(batches, answers, more, strict=True)]
        sum(losses).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}

    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    checkpointed = gradients()
    assert plain and plain.keys() == checkpointed.keys()
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, rtol=1e-5, atol=1e-6)
    assert any(value.abs().max() > 1e-4 for value in plain.values())


def test_trainer_trains_and_saves_tasks(tmp_path):
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=64)
    base = BertForSequenceClassification(BertConfig(**sizes, num_labels=2))
    model = mp.wrap(get_peft_model(base, task_config(target_modules=["query", "value"], task_type="SEQ_CLS")))
    rows = [{"input_ids": IDS[k % 3], "labels": k % 2, "task_ids": k % 3} for k in range(8)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=4, learning_rate=0.05, report_to=[],
        remove_unused_columns=False, use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert any("metalora_" in name for name in changed)
    assert all("metalora_" in name or "modules_to_save" in name for name in changed)
    model.save_pretrained(tmp_path / "saved")
    torch.manual_seed(0)
    loaded = mp.load(BertForSequenceClassification(BertConfig(**sizes, num_labels=2)), tmp_path / "saved")
    batch = dict(input_ids=IDS, task_ids=[0, 1, 2])
    assert torch.equal(loaded.eval()(**batch).logits, model.eval()(**batch).logits)
