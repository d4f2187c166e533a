"""A condition on a language model is made from the prompt: it never sees the answer that it is trained to predict."""

import math

import pytest
import torch

from metalora import AdapterConfig, ConditionConfig, attach
from metalora.adapters.conditioning.prompt import prompt_inputs

transformers = pytest.importorskip("transformers")

CHANCE = math.log(4)  # nats, for answers that are drawn from four tokens
PROMPT, ANSWERS = 4, (10, 14)
EMBEDDINGS = {"source": "stem", "stem": "model.embed_tokens"}


def llama():
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=50)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()


def bert():
    torch.manual_seed(1)
    sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=50)
    return transformers.BertModel(transformers.BertConfig(**sizes))


def adapted(method="metalora-cp", extractor=None, **condition):
    targets = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj", "lm_head")
    config = AdapterConfig(method, 4, targets=targets, condition=ConditionConfig(**condition))
    model = llama()
    example = {"input_ids": torch.arange(6)[None]}
    return model, attach(model, config, example=example, extractor=extractor)


def batch_of_random_answers(generator, size=16):
    prompt = torch.full((size, PROMPT), 5)
    ids = torch.cat([prompt, torch.randint(*ANSWERS, (size, 1), generator=generator)], 1)
    return {"input_ids": ids, "labels": ids.where(torch.arange(PROMPT + 1) >= PROMPT, -100)}


def loss_on_random_answers(model, adapter, steps=100, last=20):
    generator = torch.Generator().manual_seed(1)
    if adapter.conditional:
        adapter.calibrate({"input_ids": torch.randint(3, 50, (64, PROMPT + 1), generator=generator)})
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        loss = model(**batch_of_random_answers(generator)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-last:]) / last


@pytest.mark.parametrize(
    "method, condition",
    [("lora", {}), ("metalora-cp", {}), ("metalora-tr", {}), ("metalora-cp", EMBEDDINGS)],
    ids=["lora", "cp", "tr", "stem"],
)
def test_random_answers_stay_at_chance(method, condition):
    assert abs(loss_on_random_answers(*adapted(method, **condition)) - CHANCE) < 0.05


def test_a_condition_from_all_tokens_gives_the_answer_away():
    assert loss_on_random_answers(*adapted(tokens="all", **EMBEDDINGS)) < CHANCE - 0.3


SOURCES = {
    "stages": {},
    "pooled": {"source": "pooled"},
    "extractor": {"source": "extractor", "stages": ("encoder.layer.1",)},
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("given", ["labels", "prompt_mask"])
def test_the_condition_of_a_training_batch_is_that_of_its_prompt(source, given):
    model, adapter = adapted(extractor=bert() if source == "extractor" else None, **SOURCES[source])
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(0, 0.3)
    batch = batch_of_random_answers(torch.Generator().manual_seed(0), size=3)
    batch["input_ids"][:, :PROMPT] = torch.arange(12).reshape(3, 4) + 20
    prompt = {"input_ids": batch["input_ids"][:, :PROMPT], "prompt_mask": torch.ones(3, PROMPT)}
    if given == "prompt_mask":
        batch["prompt_mask"] = (batch.pop("labels") == -100).long()
    condition = adapter.condition(prompt)
    torch.testing.assert_close(adapter.condition(batch).vector(), condition.vector(), rtol=1e-5, atol=1e-5)
    want = model(input_ids=batch["input_ids"], condition=condition).logits
    torch.testing.assert_close(model(**batch).logits, want, rtol=1e-4, atol=1e-4)
    assert (condition.vector()[0] - condition.vector()[1]).abs().max() > 1e-3


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_answer_are_left_out_together(side):
    _, adapter = adapted()
    batch = batch_of_random_answers(torch.Generator().manual_seed(0), size=2)
    ids, labels = batch["input_ids"], batch["labels"]
    nothing = torch.zeros(2, 3, dtype=torch.long)
    order = (lambda *parts: torch.cat(parts[::-1], 1)) if side == "left" else (lambda *parts: torch.cat(parts, 1))
    padded = {
        "input_ids": order(ids, nothing),
        "labels": order(labels, nothing - 100),
        "attention_mask": order(torch.ones_like(ids), nothing),
        "position_ids": order(torch.arange(PROMPT + 1).expand(2, -1), nothing),
    }
    found = adapter.condition(padded).vector()
    torch.testing.assert_close(found, adapter.condition(batch).vector(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "condition, labels, positions",
    [
        ({}, False, 1),
        ({}, True, 1),  # features of a prompt: labels say where it ends, and no loss is computed
        ({"scope": "support"}, False, 1),
        ({"scope": "support"}, True, 6),  # this loss needs all of them
        ({"stages": ("model.layers.0", "lm_head")}, False, 6),
        ({"source": "pooled"}, False, 6),
    ],
)
def test_the_pass_for_the_features_of_stages_spares_the_head(condition, labels, positions):
    ids = torch.arange(12).view(2, 6)
    inputs = {"input_ids": ids, **({"labels": ids.where(torch.arange(6) >= PROMPT, -100)} if labels else {})}
    model, adapter = adapted(**condition)
    seen = []
    model.lm_head.register_forward_hook(lambda layer, args, output: seen.append(args[0].shape[1]))
    features = adapter.features(inputs)
    assert seen == [positions]
    read = prompt_inputs(inputs) if adapter.reads_prompt else inputs
    with torch.no_grad(), adapter.running_frozen():
        assert torch.equal(adapter.recorder.features_of(model, read), features) and seen == [positions, 6]


def test_labels_next_to_a_positional_argument_count():
    model, adapter = adapted()
    batch = batch_of_random_answers(torch.Generator().manual_seed(0), size=2)
    assert torch.equal(model(batch["input_ids"], labels=batch["labels"]).logits, model(**batch).logits)


REFUSALS = {
    "no labels": (lambda ids: {}, "pass labels .* or prompt_mask .* or run under torch.no_grad"),
    "no prompt": (lambda ids: {"labels": ids}, "example 0 has no prompt: its first token is an answer"),
    "other shape": (lambda ids: {"labels": ids, "prompt_mask": ids[:, 1:]}, r"prompt_mask \(2, 4\): .* \(2, 5\)"),
    "packed": (
        lambda ids: {"labels": ids, "position_ids": torch.tensor([[0, 1, 0, 1, 2]]).expand(2, -1)},
        "a row holds several texts",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
@pytest.mark.parametrize("condition", [{}, EMBEDDINGS], ids=["stages", "stem"])
def test_a_prompt_that_is_not_known_is_refused(case, condition):
    model, adapter = adapted(**condition)
    more, message = REFUSALS[case]
    ids = batch_of_random_answers(torch.Generator(), size=2)["input_ids"]
    with pytest.raises(ValueError, match=message):
        model(input_ids=ids, **more(ids))
    assert adapter.current().values is None
    with torch.no_grad():  # inputs without an answer, as `generate` passes them
        assert model(input_ids=ids).logits.isfinite().all()


def t5():
    torch.manual_seed(0)
    sizes = dict(vocab_size=64, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    config = transformers.T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0)
    return transformers.T5ForConditionalGeneration(config).eval()


def t5_config(**condition):
    return AdapterConfig("metalora-cp", 2, targets=("q", "v"), condition=ConditionConfig(**condition))


def test_an_encoder_decoder_reads_its_encoder_alone():
    model = t5()
    ids = torch.arange(8).reshape(2, 4) + 3
    adapter = attach(model, t5_config(), example={"input_ids": ids, "labels": ids})
    found = adapter.condition({"input_ids": ids, "labels": ids}).vector()
    assert torch.equal(found, adapter.condition({"input_ids": ids, "labels": ids + 9}).vector())
    assert (found - adapter.condition({"input_ids": ids + 9, "labels": ids}).vector()).abs().max() > 1e-5


@pytest.mark.parametrize(
    "condition", [{"stages": ("decoder.block.1",)}, {"source": "pooled"}, {"stages": ("shared",)}], ids=str
)
def test_an_encoder_decoder_is_not_read_where_it_answers(condition):
    model, ids = t5(), torch.arange(8).reshape(2, 4) + 3
    with pytest.raises(ValueError, match="reads the answer, .*: read modules of 'encoder' alone"):
        attach(model, t5_config(**condition), example={"input_ids": ids, "labels": ids})
    assert not any(module._forward_hooks for module in model.modules())
