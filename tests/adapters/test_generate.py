"""Decoding in every way of transformers: each row is what its dense weights give, row by row and without a cache."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, ConditionConfig, attach, merge
from support.adapters import randomise

transformers = pytest.importorskip("transformers")

IDS = torch.arange(3 * 5).reshape(3, 5) % 47 + 3
TASKS = [2, 0, 1]
NEW = 4
OPTIONS = dict(max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0)


def llama(**more):
    sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=50)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, initializer_range=0.3, **more))


def mistral():
    sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=50)
    config = transformers.MistralConfig(
        **sizes, num_key_value_heads=2, head_dim=16, sliding_window=4, initializer_range=0.3
    )
    return transformers.MistralForCausalLM(config)


def gpt2():
    sizes = dict(n_embd=32, n_layer=2, n_head=2, n_positions=40, vocab_size=50, initializer_range=0.3)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=1))


def t5():
    sizes = dict(vocab_size=50, d_model=32, d_kv=16, d_ff=32, num_layers=2, num_heads=2, initializer_factor=4.0)
    ends = dict(decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **ends))


MODELS = {
    "llama": (llama, ("q_proj", "v_proj", "down_proj")),
    "mistral": (mistral, ("k_proj", "v_proj", "up_proj")),
    "gpt2": (gpt2, ("c_attn", "c_fc")),
    "t5": (t5, ("q", "v", "wi")),
}
METHODS = {"cp": ("metalora-cp", 2, 1), "tr": ("metalora-tr", 2, 1), "tasks": ("metatt-4+1d", 3, 3)}


def frozen(name):
    torch.manual_seed(0)
    return MODELS[name][0]().double().eval()


class Decoder:
    """An adapted model, the condition of each of the three prompts, and dense copies of the model, one for each."""

    def __init__(self, name="llama", method="cp", **condition):
        base = frozen(name)
        method_name, rank, tasks = METHODS[method]
        config = AdapterConfig(
            method_name, rank, targets=MODELS[name][1], tasks=tasks, condition=ConditionConfig(**condition)
        )
        self.model = copy.deepcopy(base)
        self.inputs = {"input_ids": IDS}
        example = {**self.inputs, "decoder_input_ids": torch.zeros(3, 1, dtype=torch.long)} if name == "t5" else None
        self.adapter = attach(self.model, config, example=example or self.inputs)
        torch.manual_seed(3)
        randomise(self.adapter, 0.9)
        self.adapter.requires_grad_(False)  # nothing is trained here, so the inputs are prompts
        self.arguments = {"task_ids": TASKS} if method == "tasks" else {}
        with torch.no_grad():
            self.condition = (
                self.adapter.task(TASKS) if method == "tasks" else self.adapter.condition(example or self.inputs)
            )
            self.dense = [self.with_weights(base, self.condition[row]) for row in range(len(self.condition))]

    def with_weights(self, base, condition):
        dense = copy.deepcopy(base)
        for path in self.adapter.targets:
            dense.get_submodule(path).weight += self.adapter.delta(path, condition)
        return dense

    def right(self, rows=range(3), inputs=None, **how):
        """What the dense copies write, row by row and without a cache."""
        inputs = self.inputs if inputs is None else inputs
        texts = []
        for row in rows:
            one = {name: value[row : row + 1] for name, value in inputs.items()}
            texts.append(self.dense[row].generate(**one, **{**OPTIONS, "use_cache": False, **how}))
        return torch.cat(texts)


WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "beams, all returned": {"num_beams": 3, "num_return_sequences": 3},
    "no cache": {"use_cache": False},
    "beams without a cache": {"num_beams": 2, "use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "static cache, beams": {"cache_implementation": "static", "num_beams": 2},
    "chunks": {"prefill_chunk_size": 2},
    "guided": {"guidance_scale": 1.5},
}
CHANGE_NO_TOKEN = ("use_cache", "cache_implementation", "prefill_chunk_size")
CASES = [
    *[("llama", method, way) for method in ("cp", "tasks") for way in WAYS],
    *[("llama", "tr", way) for way in ("greedy", "beams, all returned", "no cache")],
    *[(name, method, way) for name in ("gpt2", "mistral") for method in ("tr", "tasks") for way in ("beams", "chunks")],
    *[("t5", method, way) for method in ("cp", "tasks") for way in ("greedy", "beams, all returned", "static cache")],
]


@pytest.mark.parametrize("name, method, way", CASES, ids=lambda case: case)
def test_each_row_is_what_its_dense_weights_write(name, method, way):
    decoder = Decoder(name, method)
    how = {key: value for key, value in WAYS[way].items() if key not in CHANGE_NO_TOKEN}
    right = decoder.right(**how)
    assert torch.equal(decoder.model.generate(**decoder.inputs, **decoder.arguments, **OPTIONS, **WAYS[way]), right)
    explicit = decoder.adapter.generate(**decoder.inputs, condition=decoder.condition, **OPTIONS, **WAYS[way])
    assert torch.equal(explicit, right)
    with decoder.adapter.using(decoder.condition):
        assert torch.equal(decoder.model.generate(**decoder.inputs, **OPTIONS, **WAYS[way]), right)
    turned = decoder.adapter.generate(**decoder.inputs, condition=decoder.condition[[1, 2, 0]], **OPTIONS, **WAYS[way])
    assert not torch.equal(turned, right)


HELPED = {
    "prompt lookup": lambda decoder: {"prompt_lookup_num_tokens": 2},
    "frozen assistant": lambda decoder: {"assistant_model": frozen("llama")},
    "adapted assistant": lambda decoder: {"assistant_model": Decoder(method="tr").model},
    "itself as the assistant": lambda decoder: {"assistant_model": decoder.model},
    "early exit": lambda decoder: {"assistant_early_exit": 1},
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("method", ["cp", "tr"])
@pytest.mark.parametrize("helper", HELPED)
def test_each_row_with_candidates_is_what_its_dense_weights_write(method, helper):
    decoder = Decoder(method=method)
    right = decoder.right()
    help_ = HELPED[helper](decoder)
    rows = [decoder.model.generate(input_ids=IDS[row : row + 1], **OPTIONS, **help_) for row in range(3)]
    assert torch.equal(torch.cat(rows), right)


def test_an_adapted_assistant_does_not_change_what_a_frozen_model_writes():
    decoder, base = Decoder(), frozen("llama")
    for row in range(3):
        one = {"input_ids": IDS[row : row + 1]}
        found = base.generate(**one, **OPTIONS, assistant_model=decoder.model)
        assert torch.equal(found, base.generate(**one, **OPTIONS, use_cache=False))


@pytest.mark.parametrize("name, method", [("llama", "cp"), ("llama", "tasks"), ("gpt2", "tr"), ("t5", "cp")])
def test_every_sampled_token_has_the_logits_of_its_dense_weights(name, method):
    decoder = Decoder(name, method)
    torch.manual_seed(5)
    options = {**OPTIONS, "do_sample": True, "num_return_sequences": 2}
    output = decoder.adapter.generate(
        **decoder.inputs, **decoder.arguments, **options, output_logits=True, return_dict_in_generate=True
    )
    found = torch.stack(output.logits, 1)  # (sequences, new tokens, vocabulary)
    for sequence in range(6):
        row, text = sequence // 2, output.sequences[sequence : sequence + 1, :-1]
        inputs = {"input_ids": IDS[row : row + 1], "decoder_input_ids": text} if name == "t5" else {"input_ids": text}
        with torch.no_grad():
            want, other = (
                decoder.dense[number](**inputs, use_cache=False).logits[0, -NEW:].to(found.dtype)
                for number in (row, (row + 1) % 3)
            )
        torch.testing.assert_close(found[sequence], want, rtol=1e-4, atol=1e-4)  # generate keeps logits in float32
        assert (want - other).abs().max() > 1e-2


@pytest.mark.parametrize("mask", ["passed", "inferred"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_padding_is_no_part_of_the_prompt(name, mask):
    decoder = Decoder(name)
    padded = torch.cat([torch.zeros(3, 2, dtype=torch.long), IDS], 1)
    inputs = {"input_ids": padded, **({"attention_mask": (padded != 0).long()} if mask == "passed" else {})}
    for how in ({}, {"num_beams": 2}):
        assert torch.equal(decoder.model.generate(**inputs, **OPTIONS, **how)[:, 2:], decoder.right(**how))


def test_rows_that_end_early_leave_the_others_alone():
    decoder = Decoder()
    long = decoder.right()
    end = int(long[0, IDS.shape[1] + 1])
    options = {**OPTIONS, "min_new_tokens": 0, "eos_token_id": end}
    rows = [
        decoder.dense[row].generate(input_ids=IDS[row : row + 1], **options, use_cache=False)[0] for row in range(3)
    ]
    right = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    assert len({len(row) for row in rows}) > 1
    assert torch.equal(decoder.model.generate(**decoder.inputs, **options), right)


# ---- caches that the caller handles ----------------------------------------------------------------------------------
def reordered(cache):
    cache.reorder_cache(torch.tensor([2, 0, 1]))
    return [2, 0, 1], 0


def selected(cache):
    cache.batch_select_indices(torch.tensor([2, 0]))
    return [2, 0], 0


def repeated(cache):
    cache.batch_repeat_interleave(2)
    return [0, 0, 1, 1, 2, 2], 0


def cropped(cache):
    cache.crop(-2)
    return [0, 1, 2], 2


def all_of_them(cache):
    cache.batch_repeat_interleave(2)
    cache.crop(-1)
    cache.batch_select_indices(torch.tensor([5, 0, 2]))
    cache.reorder_cache(beam_idx=torch.tensor([2, 1, 0]))
    return [1, 0, 2], 1


def dynamic(model):
    return transformers.DynamicCache(config=model.config)


def static(model):
    return transformers.StaticCache(config=model.config, max_cache_len=16)


MOVES = [
    *[(name, dynamic, move) for name in ("llama", "gpt2") for move in (reordered, selected, repeated, cropped)],
    *[("mistral", dynamic, move) for move in (reordered, selected, repeated)],
    *[("llama", static, reordered), ("llama", dynamic, all_of_them)],
]


@pytest.mark.parametrize("method", ["cp", "tasks"])
@pytest.mark.parametrize("name, cache, move", MOVES, ids=lambda case: getattr(case, "__name__", case))
def test_a_cache_whose_rows_move_continues_under_their_conditions(name, cache, move, method):
    decoder = Decoder(name, method)
    model = decoder.model
    with torch.no_grad():
        key_values = model(**decoder.inputs, **decoder.arguments, past_key_values=cache(model)).past_key_values
        rows, removed = move(key_values)
        more = torch.arange(2 * len(rows)).reshape(-1, 2) + 7
        kept = IDS[rows][:, : IDS.shape[1] - removed]
        for step in range(2):
            found = model(input_ids=more[:, step : step + 1], past_key_values=key_values).logits[:, -1]
            text = torch.cat([kept, more[:, : step + 1]], 1)
            for number, row in enumerate(rows):
                want = decoder.dense[row](input_ids=text[number : number + 1], use_cache=False).logits[0, -1]
                torch.testing.assert_close(found[number], want, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
def test_a_second_call_continues_the_cache_of_the_first(method, how):
    decoder = Decoder(method=method)
    first = decoder.model.generate(
        **decoder.inputs, **decoder.arguments, **OPTIONS, **how, return_dict_in_generate=True, num_return_sequences=1
    )
    key_values, rows = first.past_key_values, torch.arange(3)
    if how:  # a cache of all beams: the caller keeps one row of each example
        key_values.batch_select_indices(2 * rows)
        key_values.crop(1 - NEW)
        text = IDS
    else:
        text = first.sequences
    text = torch.cat([text, torch.tensor([[9, 8], [7, 6], [5, 4]])], 1)
    found = decoder.model.generate(input_ids=text, past_key_values=key_values, **OPTIONS)
    assert torch.equal(found, decoder.right(inputs={"input_ids": text}))


@pytest.mark.parametrize("copied_by", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_a_copy_of_a_cache_asks_for_the_condition_and_moves_no_row_of_the_original(copied_by):
    decoder = Decoder()
    with torch.no_grad():
        key_values = decoder.model(**decoder.inputs).past_key_values
    copied = copied_by(key_values)
    copied.reorder_cache(torch.tensor([2, 1, 0]))
    assert not torch.equal(copied.layers[0].keys, key_values.layers[0].keys)
    assert torch.equal(copied.layers[0].keys.flip(0), key_values.layers[0].keys)
    text = torch.cat([IDS, IDS[:, :1]], 1)
    with pytest.raises(ValueError, match="cache holds 5 positions whose condition is not known"):
        decoder.model.generate(input_ids=text.flip(0), past_key_values=copied, **OPTIONS)
    right = decoder.right(inputs={"input_ids": text})
    given = decoder.adapter.generate(
        input_ids=text.flip(0), past_key_values=copied, condition=decoder.condition[[2, 1, 0]], **OPTIONS
    )
    assert torch.equal(given.flip(0), right)
    assert torch.equal(decoder.model.generate(input_ids=text, past_key_values=key_values, **OPTIONS), right)


def in_the_configuration_of_the_model(model):
    model.generation_config.num_beams = 3
    return (), {}


def in_a_configuration(model):
    return (transformers.GenerationConfig(num_beams=3, **OPTIONS),), {}


def in_an_argument(model):
    return (), {"num_beams": 3}


PLACES = [in_the_configuration_of_the_model, in_a_configuration, in_an_argument]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_the_number_of_beams_counts_wherever_it_is_said(place):
    decoder = Decoder("t5")  # its encoder has a row for each example, and its decoder one for each beam
    args, more = place(decoder.model)
    found = decoder.adapter.generate(IDS, *args, **({} if args else OPTIONS), **more, condition=decoder.condition)
    assert torch.equal(found, decoder.right(num_beams=3))


def test_a_model_with_a_generate_of_its_own_has_its_condition_in_every_forward():
    class Writer(nn.Sequential):
        def generate(self, start):
            return self(self(start))

    torch.manual_seed(0)
    model = Writer(nn.Linear(6, 6), nn.Linear(6, 6)).double()
    base, x = copy.deepcopy(model), torch.randn(3, 6, dtype=torch.double)
    config = AdapterConfig("metatt-4+1d", 2, targets="0,1", tasks=3)
    adapter = attach(model, config)
    randomise(adapter)
    with torch.no_grad():
        found = adapter.generate(x, task_ids=TASKS)
        for row, task in enumerate(TASKS):
            dense = copy.deepcopy(base)
            for path in adapter.targets:
                dense.get_submodule(path).weight += adapter.delta(path, adapter.task(task))
            torch.testing.assert_close(found[row], dense.generate(x[row]))


# ---- tenants ---------------------------------------------------------------------------------------------------------
def test_every_thread_writes_under_its_own_condition():
    decoder = Decoder()
    right, found = decoder.right(), {}

    def write(row):
        for _ in range(3):
            one = {"input_ids": IDS[row : row + 1], "condition": decoder.condition[row]}
            found.setdefault(row, []).append(decoder.adapter.generate(**one, **OPTIONS))

    threads = [threading.Thread(target=write, args=(row,)) for row in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(text, right[row : row + 1]) for row in range(3) for text in found[row])
    current = decoder.adapter.current()
    assert current.values is None and current.beams == 1 and decoder.adapter.state.forward is None


def test_one_condition_for_all_is_the_merged_model():
    decoder = Decoder()
    shared = decoder.condition.mean()
    found = decoder.adapter.generate(IDS, condition=shared, **OPTIONS)
    decoder.adapter.fix(shared)
    assert torch.equal(decoder.model.generate(IDS, **OPTIONS), found)
    merge(decoder.model, shared)
    assert torch.equal(decoder.model.generate(IDS, **OPTIONS), found)


@pytest.mark.parametrize("copied_by", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_model_writes_by_itself(copied_by):
    decoder = Decoder()
    copied = copied_by(decoder.model)
    with torch.no_grad():
        for parameter in decoder.adapter.parameters():
            parameter.zero_()
    assert torch.equal(copied.generate(IDS, **OPTIONS), decoder.right())
    assert not torch.equal(decoder.model.generate(IDS, **OPTIONS), decoder.right())


def test_the_guard_of_generate_is_removed_with_the_adapter():
    decoder = Decoder()
    decoder.adapter.detach()
    assert "generate" not in vars(decoder.model)
    assert torch.equal(decoder.model.generate(IDS, **OPTIONS), frozen("llama").generate(IDS, **OPTIONS))


# ---- what is refused -------------------------------------------------------------------------------------------------
STEM = {"source": "stem", "stem": "model.embed_tokens"}


def of_stem(**how):
    return Decoder(**STEM).model.generate(input_ids=IDS[:1], **OPTIONS, **how)


def without_generate():
    adapter = attach(nn.Sequential(nn.Linear(4, 4)), AdapterConfig("metatt-4+1d", 2, targets="0", tasks=2))
    return adapter.generate(torch.rand(1, 4), task_ids=0)


def static_adapter(**arguments):
    return attach(llama(), AdapterConfig("lora", 2, targets="q_proj")).generate(IDS, **arguments, **OPTIONS)


def merged(decoder):
    merge(decoder.model, decoder.condition.mean())
    return decoder.adapter.generate(IDS, condition=decoder.condition, **OPTIONS)


def disabled(decoder):
    with decoder.adapter.disabled():
        return decoder.adapter.generate(IDS, condition=decoder.condition, **OPTIONS)


REFUSALS = {
    "2 of 3 conditions": (
        lambda: Decoder().adapter.generate(IDS, condition=Decoder().condition[[0, 1]], **OPTIONS),
        "the condition is for 2 examples, and the prompt has 3: expected one for each of them, or a single one",
    ),
    "2 of 3 conditions, beams": (
        lambda: Decoder().adapter.generate(IDS, condition=Decoder().condition[[0, 1]], **OPTIONS, num_beams=2),
        "the prompt has 3: expected one for each of them, or one for each of its 6 sequences",
    ),
    "2 of 3 tasks": (
        lambda: Decoder(method="tasks").adapter.generate(IDS, task_ids=[0, 1], **OPTIONS),
        "the condition is for 2 examples, and the prompt has 3",
    ),
    "no task": (lambda: Decoder(method="tasks").adapter.generate(IDS, **OPTIONS), "has 3 tasks: call the model with"),
    "no generate": (without_generate, "Sequential has no method `generate`"),
    "condition of a static adapter": (
        lambda: static_adapter(condition=Decoder().condition), "condition=...: no factor of this lora differs",
    ),
    "task of a static adapter": (lambda: static_adapter(task_ids=0), "task_ids=...: no factor of this lora differs"),
    "task of an adapter without tasks": (
        lambda: Decoder().adapter.generate(IDS, task_ids=0, **OPTIONS), "metalora-cp with tasks=1 has no tasks",
    ),
    "no condition": (
        lambda: Decoder().adapter.generate(IDS, condition="A", **OPTIONS), "expected a metalora.Condition, got a str",
    ),
    "merged": (lambda: merged(Decoder()), "the adapter is merged"),
    "disabled": (lambda: disabled(Decoder()), r"condition=... inside of disabled\(\)"),
    "support set": (
        lambda: Decoder(scope="support", labelled=False).model.generate(IDS, **OPTIONS), "comes from a support set",
    ),
    "stem in chunks": (lambda: of_stem(prefill_chunk_size=2), "reads 2 of the 5 positions of the prompt"),
    "stem without a cache": (lambda: of_stem(use_cache=False), "reads 6 of the 5 positions of the prompt"),
    "stem, prompt lookup": (
        lambda: Decoder(**STEM).model.generate(
            input_ids=torch.tensor([[5, 6, 7, 5, 6]]), **OPTIONS, prompt_lookup_num_tokens=2
        ),
        "of the 5 positions of the prompt",
    ),
}  # fmt: skip


@pytest.mark.parametrize("call, message", REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_have_its_condition_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
