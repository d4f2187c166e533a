"""Learners, tasks, fine-tuned networks and adapters of PEFT go to the Hub and come back, or one error says why not."""

import errno
import json
from functools import partial

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from torch import nn

import metalora
import metalora.peft as mp
from metalora import AdapterConfig
from metalora.learner import AdaptedTask, FineTuned, MetaLearner, finetune
from support.local_hub import TOKEN, local_hub

INPUTS = torch.randn(8, 4, generator=torch.Generator().manual_seed(3))
LABELS = ["a", "b"] * 4


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))


def point_to(monkeypatch, address, tmp_path):
    """Make huggingface_hub use an address and an empty cache."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("time.sleep", lambda _: None)  # huggingface_hub waits 20 seconds in all for a silent server


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with local_hub() as started:
        point_to(monkeypatch, started.address, tmp_path)
        yield started


@pytest.fixture
def learner():
    return MetaLearner(network(), adapter=None)


def without_token(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))


def test_a_learner_and_its_task_go_and_come_back(hub, learner):
    task = learner.adapt(INPUTS, LABELS)
    assert learner.push_to_hub("somebody/learner").startswith(f"{hub.address}/somebody/learner")
    task.push_to_hub("somebody/task", private=True)
    assert hub.repositories["somebody/task"].private and not hub.repositories["somebody/learner"].private
    again = MetaLearner.from_pretrained("somebody/learner", backbone=network())
    same = AdaptedTask.from_pretrained("somebody/task", again)
    assert (same.predict_proba(INPUTS) == task.predict_proba(INPUTS)).all()


def test_a_pushed_task_does_not_say_where_its_learner_was(hub, learner, tmp_path):
    learner.save_pretrained(tmp_path / "secret place")
    learner.adapt(INPUTS, LABELS).push_to_hub("somebody/task")
    [files] = hub.repositories["somebody/task"].commits.values()
    assert b"secret place" not in files["task.safetensors"]
    with pytest.raises(ValueError, match="somebody/task: no such folder here, and for a task on the Hub pass its lear"):
        AdaptedTask.from_pretrained("somebody/task")


def test_a_finetuned_network_goes_and_comes_back(hub):
    tuned = finetune(network(), INPUTS, LABELS, AdapterConfig("lora", rank=2), steps=1)
    tuned.push_to_hub("somebody/tuned")
    again = FineTuned.from_pretrained("somebody/tuned", backbone=network())
    assert (again.predict_proba(INPUTS) == tuned.predict_proba(INPUTS)).all()


def test_an_adapter_of_peft_comes_back(hub, tmp_path):
    model = get_peft_model(network(), mp.LoTRConfig(r=2, target_modules=["0"], init_weights=False)).eval()
    model.save_pretrained(tmp_path / "lotr")
    commit = hub.add("somebody/lotr", tmp_path / "lotr")
    hub.repositories["somebody/lotr"].commit({"adapter_model.safetensors": b"broken"})
    again = mp.load(network(), "somebody/lotr", revision=commit).eval()
    assert torch.equal(again(INPUTS), model(INPUTS))
    with pytest.raises(ValueError, match="models--somebody--lotr.*adapter_model.safetensors"):  # as in a folder
        mp.load(network(), "somebody/lotr")


def test_an_adapter_and_a_lora_come_back(hub, tmp_path):
    model = network()
    adapter = metalora.attach(model, AdapterConfig("lora", rank=2, targets=("0", "2")))
    adapter.factors["0.B"].data.fill_(0.5)
    adapter.export_lora(tmp_path / "lora" / "last")
    adapter.save(tmp_path / "adapter.safetensors")
    (tmp_path / "lora" / "adapter.safetensors").write_bytes((tmp_path / "adapter.safetensors").read_bytes())
    (tmp_path / "lora" / "model.safetensors").write_bytes(b"large")
    first = hub.add("somebody/lora", tmp_path / "lora")
    hub.repositories["somebody/lora"].commit({"adapter.safetensors": b"broken", "last/adapter_config.json": b"broken"})
    base = network()
    metalora.load(base, "somebody/lora", revision=first)
    assert torch.equal(base(INPUTS), model(INPUTS))
    assert not [asked for asked in hub.requests if "model.safetensors" in asked]  # only the file of the adapter
    base = network()
    metalora.load_lora(base, "somebody/lora", subfolder="last", revision=first)
    assert torch.allclose(base(INPUTS), model(INPUTS), atol=1e-6)
    for load in (metalora.load, partial(metalora.load_lora, subfolder="last")):
        with pytest.raises(ValueError, match="models--somebody--lora"):
            load(network(), "somebody/lora")


def test_a_file_that_is_missing_is_not_asked_of_the_hub(hub, tmp_path):
    with pytest.raises(ValueError, match="runs/adapter.safetensors: no such adapter file"):
        metalora.load(network(), "runs/adapter.safetensors")
    with pytest.raises(ValueError, match="runs/lora.safetensors: no such file or folder"):
        metalora.load_lora(network(), "runs/lora.safetensors")
    with pytest.raises(ValueError, match="runs/adapter.safetensors: a file has no revision 'v1'"):
        metalora.load(network(), "runs/adapter.safetensors", revision="v1")
    assert not hub.requests


def test_a_revision_is_a_branch_or_a_commit(hub, learner, tmp_path):
    learner.save_pretrained(tmp_path / "first")
    first = hub.add("somebody/learner", tmp_path / "first")
    MetaLearner(network(1), adapter=None).save_pretrained(tmp_path / "second")
    hub.add("somebody/learner", tmp_path / "second")
    hub.add("somebody/learner", tmp_path / "first", revision="v1")
    for revision, seed in ((None, 1), ("main", 1), ("v1", 0), (first, 0)):
        loaded = MetaLearner.from_pretrained("somebody/learner", backbone=network(seed), revision=revision)
        assert loaded.fingerprint == MetaLearner(network(seed), adapter=None).fingerprint
        with pytest.raises(ValueError, match="the backbone or a file of the learner is not the one that was saved"):
            MetaLearner.from_pretrained("somebody/learner", backbone=network(1 - seed), revision=revision)


def test_the_cache_is_enough_without_a_network(hub, learner, tmp_path, monkeypatch):
    learner.push_to_hub("somebody/learner")
    MetaLearner.from_pretrained("somebody/learner", backbone=network())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    again = MetaLearner.from_pretrained("somebody/learner", backbone=network())
    assert again.fingerprint == learner.fingerprint and len(hub.requests) == asked


def test_a_cache_that_somebody_copied_here_is_read(learner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    point_to(monkeypatch, "http://127.0.0.1:1", tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit, folder = "0123456789" * 4, tmp_path / "cache" / "models--somebody--learner"
    learner.save_pretrained(folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    again = MetaLearner.from_pretrained("somebody/learner", backbone=network())
    assert again.fingerprint == learner.fingerprint


def test_a_folder_of_that_name_is_read_first(hub, learner, tmp_path):
    learner.save_pretrained(tmp_path / "somebody" / "learner")
    assert MetaLearner.from_pretrained("somebody/learner", backbone=network()).fingerprint == learner.fingerprint
    with pytest.raises(ValueError, match="somebody/learner: a folder has no revision 'v1'"):
        MetaLearner.from_pretrained("somebody/learner", backbone=network(), revision="v1")
    with pytest.raises(ValueError, match="not the folder of a learner"):
        MetaLearner.from_pretrained("./somebody/other", backbone=network())
    assert not hub.requests


LOADERS = {
    "a learner": lambda: MetaLearner.from_pretrained("somebody/thing", backbone=network()),
    "a task": lambda: AdaptedTask.from_pretrained("somebody/thing", MetaLearner(network(), adapter=None)),
    "a fine-tuned network": lambda: FineTuned.from_pretrained("somebody/thing", backbone=network()),
    "an adapter of PEFT": lambda: mp.load(network(), "somebody/thing"),
    "an adapter": lambda: metalora.load(network(), "somebody/thing"),
    "a LoRA": lambda: metalora.load_lora(network(), "somebody/thing"),
}
CASES = pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
NOT_HERE = "^somebody/thing: neither a (file|folder|file or folder) nor a repository of the Hub: "


@CASES
def test_no_such_repository_and_a_private_one_are_told_alike(load, hub, learner, tmp_path, monkeypatch):
    learner.save_pretrained(tmp_path / "secret")
    with pytest.raises(ValueError, match=NOT_HERE + "there is none that you may read"):
        load()
    without_token(monkeypatch, tmp_path)
    hub.add("somebody/thing", tmp_path / "secret", private=True)
    with pytest.raises(ValueError, match=NOT_HERE + "there is none that you may read .*hf auth login.* HF_TOKEN"):
        load()


@CASES
def test_no_network(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    point_to(monkeypatch, "http://127.0.0.1:1", tmp_path)
    with pytest.raises(ValueError, match=NOT_HERE + "http://127.0.0.1:1 cannot be reached, and the cache"):
        load()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=NOT_HERE + "HF_HUB_OFFLINE is set, and the cache of this machine does not"):
        load()


def test_a_full_disk_is_not_a_fault_of_the_network(hub, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(ValueError, match=NOT_HERE + ".*No space left on device$"):
        LOADERS["a learner"]()


def test_no_such_revision(hub, learner, tmp_path):
    learner.save_pretrained(tmp_path / "learner")
    hub.add("somebody/learner", tmp_path / "learner")
    with pytest.raises(ValueError, match="somebody/learner: neither .*: it has no revision 'v9'"):
        MetaLearner.from_pretrained("somebody/learner", backbone=network(), revision="v9")


@CASES
def test_a_model_is_of_another_kind_and_its_weights_are_not_downloaded(load, hub, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"large")
    hub.add("somebody/thing", tmp_path / "model")
    with pytest.raises(ValueError, match="^somebody/thing: not .*: it has no .*, it holds a model of transformers"):
        load()
    assert not [asked for asked in hub.requests if "model.safetensors" in asked]


def test_other_kinds_are_named(hub, learner, tmp_path):
    get_peft_model(network(), LoraConfig(r=2, target_modules=["0"])).save_pretrained(tmp_path / "lora")
    hub.add("somebody/lora", tmp_path / "lora")
    with pytest.raises(ValueError, match="not a learner: it has no learner.json, it holds an adapter of PEFT"):
        MetaLearner.from_pretrained("somebody/lora", backbone=network())
    with pytest.raises(ValueError, match="peft_type is 'LORA', expected 'METALORA'"):
        mp.load(network(), "somebody/lora")
    learner.adapt(INPUTS, LABELS).push_to_hub("somebody/task")
    with pytest.raises(ValueError, match="it holds a task: metalora.learner.AdaptedTask loads it"):
        MetaLearner.from_pretrained("somebody/task", backbone=network())


def test_an_upload_that_fails_says_why(hub, learner, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="somebody/learner: not uploaded: it has no revision 'v9'"):
        learner.push_to_hub("somebody/learner", revision="v9")
    with pytest.raises(ValueError, match="not uploaded"):
        learner.push_to_hub("not a name")
    without_token(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match="somebody/learner: not uploaded: you may not write to it"):
        learner.push_to_hub("somebody/learner")
    point_to(monkeypatch, "http://127.0.0.1:1", tmp_path)
    with pytest.raises(ValueError, match="not uploaded: http://127.0.0.1:1 cannot be reached$"):
        learner.push_to_hub("somebody/learner")
