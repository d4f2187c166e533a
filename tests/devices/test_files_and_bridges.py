"""LoRA files, PEFT, continuous batches and k-NN on a second device: what they give is what they give on the CPU."""

import peft
import pytest
import torch
from transformers import BertConfig, BertModel, ContinuousBatchingConfig, LlamaConfig, LlamaForCausalLM

import metalora.peft as mp
from metalora import AdapterConfig, Condition, ConditionConfig, attach, detach, low_rank_updates
from metalora.fitting.fit_updates import fit_updates
from metalora.io.lora.combine import combine
from metalora.io.lora.import_ import load_lora
from metalora.io.mixture import mixture
from metalora.knn import (
    knn_accuracy,
    knn_predict,
    knn_predict_many,
    lda_transform,
    linear_probe_accuracy,
    nearest_class_mean_accuracy,
)
from support.adapters import assert_close, attach_random
from support.query_value_blocks import Network
from support.second_device import CARD, counting_waits

X = torch.linspace(-1, 1, 30, dtype=torch.float64).reshape(5, 6)
TARGETS = ("query", "value")


def network(device):
    torch.manual_seed(0)
    return Network().double().to(device)


def exported(device, folder):
    """Two LoRA folders of adapters on the device, and their outputs."""
    outputs = []
    for number, method in enumerate(("lora", "metatt-4d")):
        model = network("cpu")
        torch.manual_seed(number)
        adapter = attach_random(model, AdapterConfig(method, 2, targets=TARGETS))
        model.to(device)
        adapter.export_lora(folder / str(number))
        outputs.append(model(X.to(device)).detach().cpu())
    return [folder / str(number) for number in range(2)], outputs


@torch.no_grad()
@pytest.mark.slow
def test_lora_folders_are_read_combined_and_mixed(tmp_path):
    folders, outputs = exported(CARD, tmp_path)
    _, expected = exported("cpu", tmp_path / "cpu")
    for folder, output, right in zip(folders, outputs, expected, strict=True):
        assert_close(output, right)
        for device in (CARD, "cpu"):
            model = network(device)
            load_lora(model, folder)
            assert_close(model(X.to(device)).cpu(), right, 1e-5)  # a LoRA folder holds float32
    for how, density in (("sum", None), ("ties", 0.5), ("dare_linear", 0.5)):
        results = []
        for device in (CARD, "cpu"):
            model = network(device)
            combine(model, folders, [0.7, 0.3], how=how, density=density)
            results.append(model(X.to(device)).cpu())
        assert_close(*results, 1e-6)
    gated = [network(device) for device in (CARD, "cpu")]
    for model in gated:
        mixture(model, folders, ConditionConfig(scope="constant"))
    assert_close(gated[0](X.to(CARD)).cpu(), gated[1](X), 1e-6)


@torch.no_grad()
def test_updates_are_read_and_fitted():
    model = network(CARD)
    adapter = attach_random(model, AdapterConfig("lora", 2, targets=TARGETS))
    output = model(X.to(CARD))
    updates = low_rank_updates(adapter)
    detach(model)
    chain = attach(model, AdapterConfig("lotr", 6, targets=TARGETS))
    fit_updates(chain, [updates])
    assert {factor.device.type for factor in chain.factors.values()} == {CARD}
    assert_close(model(X.to(CARD)), output, 1e-5)


def bert(device):
    torch.manual_seed(1)
    config = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=20)
    return BertModel(config).eval().to(device)


@torch.no_grad()
def test_peft_s_model_with_several_adapters(tmp_path):
    ids = torch.arange(15).reshape(3, 5)
    outputs = {}
    for device in ("cpu", CARD):
        torch.manual_seed(2)
        model = peft.get_peft_model(bert(device), mp.MetaTTConfig(r=2, target_modules=["query", "value"]), "tt")
        model.add_adapter("lotr", mp.LoTRConfig(r=2, target_modules=["query"]))
        for name, parameter in model.named_parameters():
            if "metalora_" in name:
                assert parameter.device.type == device
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
        inputs = ids.to(device)
        with counting_waits() as waits:
            mixed = model.eval()(input_ids=inputs, adapter_names=["tt", "lotr", "__base__"])[0]
        assert not waits, waits
        model.set_adapter("tt")
        outputs[device] = [mixed.cpu(), model(input_ids=inputs)[0].cpu()]
    for output, expected in zip(outputs[CARD], outputs["cpu"], strict=True):
        assert_close(output, expected, 1e-4)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(bert(CARD), tmp_path / "tt").eval()
    assert_close(again(input_ids=ids.to(CARD))[0].cpu(), outputs["cpu"][1], 1e-4)
    again.merge_and_unload()


def llama():
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=30)
    return LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.5)).double().eval()


@torch.no_grad()
def test_texts_that_are_written_under_the_condition_of_their_prompt():
    model, prompts = llama(), torch.randint(30, (2, 5))
    config = AdapterConfig("metalora-tr", 2, targets=("q_proj", "up_proj"), condition=ConditionConfig(scope="sample"))
    attach_random(model, config, 0.9)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    written = []
    for device in ("cpu", CARD):
        model.to(device)
        inputs = {"input_ids": prompts.to(device), "attention_mask": mask.to(device)}
        written.append(model.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=0).tolist())
    assert written[0] == written[1]


@torch.no_grad()
def test_continuous_batches_of_tenants():
    model = llama()
    condition = ConditionConfig(scope="support", labelled=False)
    config = AdapterConfig("metalora-cp", 2, targets=("q_proj", "down_proj"), condition=condition)
    ids = torch.randint(30, (2, 6))
    adapter = attach_random(model, config, 0.9)
    prompts, written = [[7, 8, 9], [5, 6], [7, 8, 9]], []
    for device in ("cpu", CARD):
        model.to(device)
        tenants = [adapter.condition({"input_ids": row[None].to(device)}) for row in ids]
        outputs = adapter.generate_batch(
            prompts,
            condition=Condition.stack([tenants[0], tenants[1], tenants[1]]),
            max_new_tokens=3,
            continuous_batching_config=ContinuousBatchingConfig(num_blocks=16, page_size=4, max_batch_tokens=16),
        )
        assert [output.error for output in outputs.values()] == [None] * len(prompts)
        written.append([output.generated_tokens for output in outputs.values()])
    assert written[0] == written[1]


def test_neighbours_means_probes_and_directions():
    generator = torch.Generator().manual_seed(0)
    bank, queries = (torch.randn(count, 5, generator=generator).double() for count in (40, 9))
    labels, truth = (bank[:, 0] > 0).long() * 3, (queries[:, 0] > 0).long() * 3
    there = [tensor.to(CARD) for tensor in (bank, labels, queries, truth)]
    here = [bank, labels, queries, truth]
    assert knn_predict(*there[:3], 3).tolist() == knn_predict(*here[:3], 3).tolist()
    scores = [knn_accuracy, nearest_class_mean_accuracy, linear_probe_accuracy]
    more = [(3,), (), ()]
    for score, options in zip(scores, more, strict=True):
        assert score(*there, *options) == pytest.approx(score(*here, *options))
    assert_close(lda_transform(*there[:2])(there[2]).cpu().abs(), lda_transform(*here[:2])(queries).abs(), 1e-6)
    many = [knn_predict_many([tensors[0]] * 2, [tensors[1]] * 2, [tensors[2]] * 2, 3) for tensors in (there, here)]
    for predicted, expected in zip(*many, strict=True):
        assert predicted.tolist() == expected.tolist()
