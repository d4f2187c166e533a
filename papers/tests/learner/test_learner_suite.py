"""A whole run on items that the tests make: episodes, the frozen network with its peers, a trained adapter."""

import dataclasses

import pytest
import torch
from papers_oracles.points import CP, GROUPS, LORA, RUN, item_data
from torch import nn

from metalora.learner import Backbone, ImagePreprocessor, TextPreprocessor
from metalora.learner.features import StageFeatures
from metalora.learner.peers import PEERS
from metalora_papers.execution import execute
from metalora_papers.learner.fitted import HeadPeer, Setting, choose, fit_and_score, make_peer
from metalora_papers.learner.item_data import ItemData
from metalora_papers.learner.line_up import FITTED_PEERS, LORA_READOUT
from metalora_papers.learner.setfit import SetFit, draw_pairs
from metalora_papers.learner.suite import LearnerSuite
from metalora_papers.learner.suites import LabelledEpisode
from metalora_papers.metalora.emoji import load_emoji
from metalora_papers.metalora.labelled_items import LabelledItems, Notion


def results_of(run):
    return execute(run, suite=LearnerSuite(item_data(run), run)).row["results"]


def test_support_and_queries_of_a_training_episode_share_no_group():
    data = item_data()
    source = data.source(StageFeatures(data.model, None), label_sets=3)
    train = data.items.parts["train"]
    names = set()
    for seed in range(8):
        draw = source.draw(torch.Generator().manual_seed(seed))
        groups = GROUPS[train[draw.rows]]
        assert not set(groups[: draw.support].tolist()) & set(groups[draw.support :].tolist())
        names |= set(draw.names)
    assert names == {"left", "high", "procedural"}  # never "near"
    unlabelled = item_data(dataclasses.replace(RUN, procedural=1.0))
    source = unlabelled.source(StageFeatures(unlabelled.model, None), label_sets=3)
    assert set(source.draw(torch.Generator().manual_seed(0)).names) == {"procedural"}


def test_validation_is_another_part():
    data = item_data()
    episode, validation = data.test_episode("left", 0), data.validation().test_episode("left", 0)
    groups = [set(GROUPS[data.items.parts[part]].tolist()) for part in ("test", "val")]
    assert not groups[0] & groups[1]
    assert not torch.equal(episode.support, validation.support)


def test_the_frozen_network_and_its_peers():
    results = results_of(dataclasses.replace(RUN, method="original"))
    assert {f"{name}, {kind}" for name, kind in PEERS} | {"readout"} <= set(results)
    assert results["trained"] == ["left", "high"] and results["num_params"] == 0
    assert set(results["readout"]["episodes"]) == {"left", "high", "near"}
    assert results["readout"]["trained_mean"] > 0.7  # the notions are nearly linear in the features


@pytest.mark.parametrize(
    "change",
    [
        {"adapter": LORA},
        {"adapter": CP},
        {"adapter": CP, "generator": "gradient-step", "static_steps": 1},
        {"adapter": LORA, "procedural": 1.0},
    ],
)
def test_an_adapter(change):
    results = results_of(dataclasses.replace(RUN, **change))
    assert 0.5 < results["readout"]["trained_mean"] <= 1 and set(results["seconds"]) == {"readout", "readout alone"}
    assert results["num_params"] > 0 and results["loss"] > 0
    if "generator" in change:  # the cores c0 and one rate for each of them, without the mapping net
        assert results["num_params"] == 2 * (4 + 8) + 2 * (8 + 8) + 2 * (2 + 1)


def test_a_run_with_fitted_peers():
    adapter = dataclasses.replace(LORA, rank=1)
    peers = (FITTED_PEERS[0], FITTED_PEERS[3])
    run = dataclasses.replace(RUN, method="fitted", peers=peers, peer_adapter=adapter, test_episodes=1)
    suite = LearnerSuite(item_data(run), run)
    before = {name: tensor.clone() for name, tensor in suite.model.state_dict().items()}
    results = execute(run, suite=suite).row["results"]
    assert set(results["chosen"]) == set(peers) < set(results)
    assert set(results["seconds"]) == {"readout", "readout alone", LORA_READOUT, *peers}
    assert results[peers[1]]["trained_mean"] > 0.7 and "k-NN, all stages" not in results
    after = suite.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


# ---- peers that are fitted on the support set ------------------------------------------------------------------------
@pytest.fixture(scope="module")
def halves():
    """Points on either side of a plane."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(120, 4, generator=generator)
    labels = (points[:, 0] + points[:, 1] > 0).long()
    return LabelledEpisode(points[:60], labels[:60], points[60:], labels[60:])


@pytest.mark.parametrize("name", FITTED_PEERS)
def test_a_fitted_peer_learns(name, halves):
    data = item_data()
    peer = make_peer(name, data.model, LORA)
    assert isinstance(peer, HeadPeer) and (peer.adapter is None) == name.startswith("linear head")
    accuracy, seconds = fit_and_score(peer, Setting(80, peer.rates[1]), halves, 0)
    assert accuracy > 0.7 and seconds > 0
    again, _ = fit_and_score(peer, Setting(80, peer.rates[1]), halves, 0)
    assert again == accuracy  # nothing of the first training is left in the network


def test_a_setting_is_chosen_by_the_mean_accuracy(halves):
    class Peer:
        rates, steps = (0.1, 0.2), (20, 40)

        def predictions(self, episode, lr, steps, seed):
            right = {(0.1, 20): 10, (0.1, 40): 30, (0.2, 20): 50, (0.2, 40): 20}
            truth = episode.query_labels
            return {k: torch.where(torch.arange(60) < right[lr, k], truth, 1 - truth) for k in steps}

    assert choose(Peer(), [halves, halves]) == Setting(20, 0.2)


def test_setfit(halves):
    data = item_data()
    before = {name: tensor.clone() for name, tensor in data.model.state_dict().items()}
    peer = make_peer("SetFit", data.model, None)
    assert isinstance(peer, SetFit)
    accuracy, _ = fit_and_score(peer, Setting(200, 1e-2), halves, 0)
    assert accuracy > 0.75
    assert all(torch.equal(before[name], tensor) for name, tensor in data.model.state_dict().items())
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    first, second = draw_pairs(labels, 40, torch.Generator().manual_seed(0))
    assert (first != second).all() and int((labels[first] == labels[second]).sum()) == 20


# ---- pictures and texts ----------------------------------------------------------------------------------------------
def test_emoji(emoji_folder):
    run = dataclasses.replace(RUN, suite="learner-emoji", trained=("vendor", "filled"), held_out=("skin",), size=16)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    items = load_emoji(("google", "apple"), emoji_folder)
    data = ItemData(items, Backbone(network.requires_grad_(False), ImagePreprocessor(size=(16, 16), resize=16)), run)
    episode = data.test_episode("skin", 0)
    assert episode.support.shape[1:] == (3, 16, 16) and len(episode.support) == len(episode.support_labels)
    rows = [items.parts["test"][part] for part in (episode.support_rows, episode.query_rows)]
    assert torch.equal(items.notions["skin"].codes[rows[0]].unique(return_inverse=True)[1], episode.support_labels)
    assert not set(items.groups[rows[0]].tolist()) & set(items.groups[rows[1]].tolist())
    draw = data.source(StageFeatures(network, None), label_sets=2).draw(torch.Generator().manual_seed(1))
    assert draw.inputs.shape == (40, 3, 16, 16) and set(draw.names) <= {"vendor", "filled", "procedural"}


def test_texts():
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [f"word{k}" for k in range(20)]
    vocabulary = {"[PAD]": 0} | {word: k + 1 for k, word in enumerate(words)}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="[PAD]")
    network = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=21, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8
        )
    ).eval()
    draws = torch.randint(20, (240, 5), generator=torch.Generator().manual_seed(0)).tolist()
    texts = tuple(" ".join(words[k] for k in line[: 3 + line[0] % 3]) for line in draws)
    notions = {"first": Notion(torch.tensor([line[0] % 2 for line in draws]), ("even", "odd"))}
    parts = {name: torch.arange(80 * k, 80 * k + 80) for k, name in enumerate(("train", "val", "test"))}
    items = LabelledItems("texts", texts, notions, GROUPS, parts, ("first",), ())
    data = ItemData(items, Backbone(network.requires_grad_(False), TextPreprocessor(tokenizer, 8)), RUN)
    results = LearnerSuite(data, RUN)
    results.prepare(None, training=False)
    found = results.evaluate(None)
    assert found["readout"]["held_out_mean"] is None and 0 <= found["readout"]["trained_mean"] <= 1
    assert set(data.calibration_batches()[0]) >= {"input_ids", "attention_mask"}
