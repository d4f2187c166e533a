"""Suite continuation: styles by hand, a tiny decoder, losses and conditions of prompts."""

import dataclasses

import pytest
import torch

from metalora import AdapterConfig
from metalora.config import TrainConfig
from metalora_papers.metalora.continuation import ContinuationSuite
from metalora_papers.metalora.continuation_config import ContinuationRunConfig, ContinuationTableConfig, DecoderConfig
from metalora_papers.metalora.continuation_table import ContinuationComparison
from metalora_papers.metalora.decoder import character_tokenizer, pretrained_decoder
from metalora_papers.metalora.styles import ALL, STYLES, Style

pytest.importorskip("transformers")
from metalora_papers.execution import execute  # noqa: E402

TEXT = "The Bank of England"
WRITTEN = {
    ("as written", "all vowels", " ", "forwards"): "The Bank of England",
    ("upper", "no vowels", "_", "forwards"): "TH_BNK_F_NGLND",
    ("lower", "digits", ".", "forwards"): "th3.b4nk.0f.3ngl4nd",
    ("lower", "all vowels", " ", "backwards"): "eht knab fo dnalgne",
}


@pytest.mark.parametrize("parts", WRITTEN)
def test_a_style(parts):
    assert Style(*parts).write(TEXT) == WRITTEN[parts]


def test_every_part_of_a_new_style_was_seen_in_other_company():
    assert len(ALL) == len({style.write(TEXT) for style in ALL}) == sum(map(len, STYLES.values()))
    assert not set(STYLES["seen"]) & set(STYLES["unseen"]) and len(STYLES["unseen"]) == len(ALL) // 3
    for group in ("seen", "unseen"):
        parts = [{vars(style)[name] for style in STYLES[group]} for name in vars(ALL[0])]
        assert [len(values) for values in parts] == [3, 3, 3, 2]


def test_a_token_is_a_byte():
    tokenizer = character_tokenizer()
    ids = tokenizer("Zoë_1.")["input_ids"]
    assert len(ids) == len("Zoë_1.".encode()) and tokenizer.decode(ids) == "Zoë_1."
    assert len(tokenizer) == 257 and tokenizer.eos_token_id == 256


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    decoder = DecoderConfig(width=16, layers=2, heads=2, context=24, steps=3, batch=2)
    folder = pretrained_decoder(decoder, ["a text of some words that goes on and on. " * 4], cache)
    train = TrainConfig(steps=3, lr=1e-2)
    return ContinuationRunConfig(model=f"hf:{folder}", train=train, batch=4, prompt=10, response=14, test_examples=4)


def test_a_decoder_is_trained_once(tmp_path):
    texts = ["to be or not to be, that is the question of all. " * 3]
    decoder = DecoderConfig(width=16, layers=2, heads=2, context=24, steps=4, batch=2)
    first = pretrained_decoder(decoder, texts, tmp_path)
    written = (first / "model.safetensors").read_bytes()
    assert pretrained_decoder(decoder, texts, tmp_path) == first
    assert (pretrained_decoder(decoder, texts, tmp_path / "b") / "model.safetensors").read_bytes() == written
    assert pretrained_decoder(dataclasses.replace(decoder, seed=1), texts, tmp_path) != first
    assert sorted(path.name for path in tmp_path.iterdir() if path.name == first.name) == [first.name]


def test_the_loss_is_the_cross_entropy_after_the_prompt(run):
    suite = ContinuationSuite(run)
    samples = suite.samples("train", STYLES["seen"], run.batch, 5)
    assert all(len(sample.ids) == 24 and sample.start == 10 for sample in samples)
    with torch.no_grad():
        logits = suite.model(input_ids=torch.tensor([sample.ids for sample in samples])).logits.double()
        found = float(suite.train_step(None, 5))
    surprise = [
        -float(logits[row, place - 1].log_softmax(-1)[sample.ids[place]])
        for row, sample in enumerate(samples)
        for place in range(10, 24)
    ]
    assert found == pytest.approx(sum(surprise) / len(surprise), abs=1e-5)


@pytest.mark.parametrize("method", [None, "lora", "metalora-cp", "metalora-tr"])
def test_a_run(method, run):
    adapter = None if method is None else AdapterConfig(method, 2, targets="linear")
    row, trained, _ = execute(dataclasses.replace(run, adapter=adapter, method=method or "frozen"))
    results = row["results"]
    assert set(results["nats"]) == {"seen", "unseen", "plain"} and all(value > 0 for value in results["nats"].values())
    assert len(results["nats_of_style"]["unseen"]) == len(STYLES["unseen"])
    assert ("nats_with_another_prompt" in results) == (method in ("metalora-cp", "metalora-tr"))
    again = ContinuationSuite(run)
    again.model = trained.model if trained else again.model
    assert again.evaluate(trained)["nats"] == results["nats"]


def test_the_core_is_that_of_the_prompt(run):
    suite = ContinuationSuite(run)
    _, adapter, _ = execute(dataclasses.replace(run, adapter=AdapterConfig("metalora-cp", 2, targets="linear")))
    suite.model = adapter.model
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(0, 0.3)
    made = []
    adapter.conditioner.register_forward_hook(lambda module, args, condition: made.append(condition.vector()))
    with torch.no_grad():
        suite.train_step(adapter, 0)
        prompts = [sample.ids[:10] for sample in suite.samples("train", STYLES["seen"], run.batch, 0)]
        expected = adapter.condition({"input_ids": torch.tensor(prompts)}).vector()
    torch.testing.assert_close(made[0], expected, rtol=1e-4, atol=1e-5)


def test_the_table_chooses_rates_on_validation_and_compares_with_lora(run, tmp_path):
    table = ContinuationTableConfig(model=run.model, seeds=(0, 1), lr_grid=(1e-3, 1e-2), steps=1)
    comparison = ContinuationComparison("metalora-continuation", table)
    assert {run.split for run in comparison.choosing_runs()} == {"val"} and len(comparison.choosing_runs()) == 6
    rows = [_row(chosen, nats=1.0 + 10 * chosen.train.lr) for chosen in comparison.choosing_runs()]
    rates = comparison.chosen_rates(rows)
    assert rates == {(name,): 1e-3 for name in ("lora", "metalora-cp", "metalora-tr")}
    nats = {"frozen": 3.0, "lora": 2.0, "metalora-cp": 1.5, "metalora-tr": 2.5}
    rows += [_row(one, nats=nats[one.method] + 0.1 * one.seed**2) for one in comparison.runs(rates)]
    report = comparison.report(comparison.rows_of(rows))
    assert [cells[0] for cells in report.tables[0].cells] == list(nats)
    assert [pair.difference for pair in report.comparisons[:2]] == pytest.approx([-0.5, 0.5])
    assert all(path.stat().st_size > 1000 for path in comparison.plot(comparison.rows_of(rows), tmp_path))
    with pytest.raises(ValueError, match="unknown row 'metalora-cpp'; did you mean 'metalora-cp'"):
        ContinuationComparison("metalora-continuation", dataclasses.replace(table, methods=("metalora-cpp",)))


def _row(run, nats):
    from metalora.config import to_dict

    return {
        "key": repr(run),
        "suite": run.suite,
        "seed": run.seed,
        "config": to_dict(run),
        "results": {"nats": dict.fromkeys(("seen", "unseen", "plain"), nats), "num_params": 100},
    }
