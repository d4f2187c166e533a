"""Combined adapters: against dense sums of Delta W, PEFT's functions for merging, and PEFT's `add_weighted_adapter`."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import merge_utils
from safetensors.torch import save_file
from torch import nn
from transformers import BertConfig, BertModel

import metalora
from metalora import AdapterConfig, ConditionConfig
from metalora.fitting.updates import LowRankUpdate
from metalora.io.lora.combine import combine, read_updates
from support.command import metalora_command


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 6)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"query": nn.Linear(6, 6), "value": nn.Linear(6, 6)}) for _ in range(2)
        )
        self.conv = nn.Conv1d(6, 4, 3)

    def forward(self, ids):
        x = self.words(ids)
        for layer in self.layers:
            x = x + layer["query"](x).tanh() * layer["value"](x)
        return self.conv(x.mT).mean(-1)


def net():
    torch.manual_seed(1)
    return Net().double().eval()


IDS = torch.randint(9, (5, 7), generator=torch.Generator().manual_seed(0))
CONDITION = ConditionConfig(source="tensor", feature_size=7, hidden=6)
CONSTANT = ConditionConfig(source="tensor", feature_size=7, hidden=6, scope="constant")


def trained(model, seed, **options):
    """An adapter with random factors on a copy of the model."""
    copied = copy.deepcopy(model)
    options = {"rank": 2, "targets": ("query", "value")} | options
    adapter = metalora.attach(copied, AdapterConfig(**options)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return adapter


def features_of(adapter):
    return adapter.condition(torch.randn(1, 7, generator=torch.Generator().manual_seed(3)).double())


ADAPTERS = {
    "lora": ({"method": "lora", "alpha": 3.0}, {}),
    "lora of all kinds": ({"method": "lora", "targets": ("words", "conv", "query")}, {}),
    "metatt": ({"method": "metatt-4d"}, {}),
    "tenslora": ({"method": "tenslora-qkv-depth"}, {}),
    "vera": ({"method": "vera", "targets": ("value",)}, {}),
    "pissa": ({"method": "pissa", "alpha": 2.0}, {}),
    "lokr-full": ({"method": "lokr-full"}, {}),
    "generated": ({"method": "metalora-cp", "condition": CONDITION}, {"condition": features_of}),
    "tasks": ({"method": "metatt-4+1d", "tasks": 3, "condition": CONSTANT}, {"task": 2}),
}


@pytest.fixture(scope="module")
def pool():
    """Name -> its updates, and target -> its dense Delta W as the adapter itself computes it."""
    base, updates, deltas = net(), {}, {}
    for seed, (name, (config, choice)) in enumerate(ADAPTERS.items()):
        adapter = trained(base, seed, **config)
        if "condition" in choice:
            choice = {"condition": choice["condition"](adapter)}
        updates[name] = metalora.low_rank_updates(adapter, **choice)
        condition = adapter.task(choice["task"]) if "task" in choice else choice.get("condition")
        deltas[name] = {path: adapter.delta(path, condition).detach() for path in adapter.targets}
    return updates, deltas


SUMS = {
    "two methods": {"lora": 0.7, "metatt": 0.3},
    "subtracted": {"tenslora": 1.0, "lora": -0.5},
    "twice the same": {"lora": 0.5, "pissa": 0.25},
    "other targets": {"vera": 2.0, "lora of all kinds": 1.5},
    "full rank": {"lokr-full": 1.0, "metatt": -1.0},
    "a snapshot and a task": {"generated": 0.4, "tasks": 0.6, "lora of all kinds": 1.0},
}


@pytest.mark.parametrize("weights", SUMS.values(), ids=SUMS)
def test_a_sum_is_the_model_with_all_updates(weights, pool):
    updates, deltas = pool
    model, plain = net(), net()
    with torch.no_grad():
        for name, weight in weights.items():
            for path, delta in deltas[name].items():
                plain.get_submodule(path).weight += weight * delta
        adapter, report = metalora.combine(model, [updates[name] for name in weights], list(weights.values()))
        assert adapter.method.name == "lora" and {*adapter.targets} == {path for n in weights for path in deltas[n]}
        assert report.error < 1e-12 and (plain(IDS) - net()(IDS)).abs().max() > 0.01
        torch.testing.assert_close(model(IDS), plain(IDS), rtol=1e-10, atol=1e-10)


PRUNED = {
    "magnitude_prune": ("magnitude_prune", {}),
    "dare_linear": ("dare_linear", {}),
    "ties": ("ties", {"majority_sign_method": "total"}),
    "ties, frequency": ("ties", {"majority_sign_method": "frequency"}),
    "dare_ties": ("dare_ties", {"majority_sign_method": "frequency"}),
}


@pytest.mark.parametrize("rank", (None, 1, 6))
@pytest.mark.parametrize("how, options", PRUNED.values(), ids=PRUNED)
def test_pruning_and_election_are_those_of_peft(how, options, rank, pool):
    updates, deltas = pool
    names, weights, path = ("lora", "metatt", "tenslora"), [0.5, 1.0, 2.0], "layers.0.query"
    only = [{path: updates[name][path]} for name in names]
    sign = options.get("majority_sign_method", "total")
    adapter, report = metalora.combine(net(), only, weights, how, density=0.4, rank=rank, sign=sign, seed=5)
    torch.manual_seed(5)  # PEFT draws from the global generator
    tensors = [deltas[name][path] for name in names]
    combined = getattr(merge_utils, how)(tensors, torch.tensor(weights, dtype=torch.float64), 0.4, **options)
    u, s, v = torch.linalg.svd(combined)
    kept = min(rank or 2, 6)
    assert report.ranks == {path: kept}
    torch.testing.assert_close(adapter.delta(path).detach(), u[:, :kept] * s[:kept] @ v[:kept], rtol=1e-9, atol=1e-9)
    lost = float(s[kept:].norm() / s.norm())
    assert report.errors == pytest.approx({path: lost}, abs=1e-12) and report.error == pytest.approx(lost, abs=1e-12)


def test_the_error_of_all_targets_is_that_of_the_dense_updates(pool):
    updates, deltas = pool
    adapter, report = metalora.combine(net(), [updates["lora"], updates["tasks"]], [1.0, 2.0], rank=2)
    wanted = {path: deltas["lora"][path] + 2 * deltas["tasks"][path] for path in deltas["lora"]}
    lost = sum(float((wanted[path] - adapter.delta(path)).square().sum()) for path in wanted)
    assert 0.01 < report.error == pytest.approx((lost / sum(float(w.square().sum()) for w in wanted.values())) ** 0.5)


def test_updates_do_not_change_with_the_adapter():
    adapter = trained(net(), 0, method="lora")
    updates = metalora.low_rank_updates(adapter)
    before = {path: (update.up @ update.down).clone() for path, update in updates.items()}
    for parameter in adapter.parameters():
        parameter.data.fill_(1.0)
    assert all(torch.equal(update.up @ update.down, before[path]) for path, update in updates.items())
    assert not any(tensor.requires_grad for update in updates.values() for tensor in update)


# ---- folders of PEFT ------------------------------------------------------------------------------------------------
def bert():
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20, vocab_size=30)
    return BertModel(BertConfig(**sizes, max_position_embeddings=16)).eval()


TOKENS = torch.arange(12).reshape(3, 4)
LORAS = {
    "first": LoraConfig(r=4, lora_alpha=6, target_modules=["query", "value"], init_lora_weights=False),
    "second": LoraConfig(r=3, use_rslora=True, target_modules=["query", "dense"], init_lora_weights=False),
}
THEIRS = {
    "cat": ({"how": "sum"}, {}),
    "svd": ({"how": "sum", "rank": 3}, {"svd_rank": 3}),
    "ties_svd": ({"how": "ties", "density": 0.5, "rank": 4}, {"density": 0.5, "svd_rank": 4}),
    "magnitude_prune_svd": ({"how": "magnitude_prune", "density": 0.3, "rank": 5}, {"density": 0.3, "svd_rank": 5}),
}


@pytest.mark.parametrize("kind", THEIRS)
def test_folders_are_combined_as_peft_does(kind, tmp_path):
    ours, theirs = THEIRS[kind]
    peft = get_peft_model(bert(), copy.deepcopy(LORAS["first"]), adapter_name="first")
    peft.add_adapter("second", copy.deepcopy(LORAS["second"]))
    peft.save_pretrained(tmp_path)
    peft.add_weighted_adapter(["first", "second"], [0.7, 0.4], "both", combination_type=kind, **theirs)
    peft.set_adapter("both")
    model = bert()
    metalora.combine(model, [tmp_path / "first", tmp_path / "second"], [0.7, 0.4], **ours)
    with torch.no_grad():
        want = peft.eval()(TOKENS).last_hidden_state
        assert (want - bert()(TOKENS).last_hidden_state).abs().max() > 0.01
        torch.testing.assert_close(model(TOKENS).last_hidden_state, want, rtol=1e-3, atol=1e-4)


# ---- the command ----------------------------------------------------------------------------------------------------
@pytest.fixture
def files(tmp_path):
    """The folder of a base with a file of MetaTT with tasks, a file of LoRA and a folder of PEFT's LoRA."""
    bert().save_pretrained(tmp_path / "bert")
    base = BertModel.from_pretrained(tmp_path / "bert")
    get_peft_model(copy.deepcopy(base), copy.deepcopy(LORAS["first"])).save_pretrained(tmp_path / "peft")
    for name, options in {"tasks": {"method": "metatt-4+1d", "tasks": 3, "condition": CONSTANT}, "lora": {}}.items():
        adapter = trained(base, 5, **{"method": "lora"} | options).float()
        metalora.save(adapter.model, tmp_path / f"{name}.safetensors", extra_module=nn.Linear(2, 2))
    return tmp_path


@pytest.mark.parametrize("out", ("out.safetensors", "folder/"))
def test_the_command(out, files):
    arguments = ["combine", files / "tasks.safetensors", files / "peft", "--weights", "1.5", "-0.5"]
    arguments += ["--model", f"hf:{files}/bert", "--out", f"{files}/{out}", "--tasks", "2", "None", "--json"]
    with pytest.warns(UserWarning, match="tasks.safetensors: 2 tensors of a further module are left out"):
        code, text, err = metalora_command(*arguments)
    assert code == 0, err
    shown = json.loads(text)
    assert shown["error"] < 1e-6 and shown["bytes"] > 0
    base = BertModel.from_pretrained(files / "bert").eval()
    with torch.no_grad():
        want = copy.deepcopy(base)
        theirs = PeftModel.from_pretrained(copy.deepcopy(base), files / "peft").merge_and_unload()
        ours = copy.deepcopy(base)
        metalora.merge(ours, metalora.load(ours, files / "tasks.safetensors").task(2))
        for path in shown["targets"]:
            weight, plain = want.get_submodule(path).weight, base.get_submodule(path).weight
            weight += 1.5 * (ours.state_dict()[f"{path}.base.weight"] - plain)
            weight -= 0.5 * (theirs.get_submodule(path).weight - plain)
        if out == "folder/":
            got = PeftModel.from_pretrained(base, files / "folder").eval()
        else:
            metalora.load(base, files / out)
            got = base
        torch.testing.assert_close(got(TOKENS)[0], want(TOKENS)[0], rtol=1e-4, atol=1e-4)


def test_the_command_takes_another_base_only_on_request(files):
    model = BertModel.from_pretrained(files / "bert")
    with torch.no_grad():
        model.encoder.layer[0].attention.self.query.weight.add_(1.0)
    model.save_pretrained(files / "bert")
    arguments = ["combine", files / "lora.safetensors", "--weights", "2", "--model", f"hf:{files}/bert"]
    arguments += ["--out", files / "out.safetensors", "--json"]
    with pytest.warns(UserWarning, match="2 tensors of a further module are left out"):
        code, _, err = metalora_command(*arguments)
        assert code == 2 and "fingerprints differ" in err and not (files / "out.safetensors").exists()
        code, _, err = metalora_command(*arguments, "--no-check-base")
    assert code == 0, err
    combined = metalora.load(model, files / "out.safetensors")
    wanted = metalora.load(BertModel.from_pretrained(files / "bert"), files / "lora.safetensors", check_base=False)
    for path in wanted.targets:
        torch.testing.assert_close(combined.delta(path), 2 * wanted.delta(path), rtol=1e-4, atol=1e-5)


def test_another_base_is_taken_only_on_request(tmp_path):
    adapter = trained(net(), 5, method="lora")
    metalora.save(adapter.model, tmp_path / "lora")
    other = net()
    with torch.no_grad():
        other.layers[0]["query"].weight.add_(1.0)
    with pytest.raises(ValueError, match="fingerprints differ"):
        combine(other, [tmp_path / "lora"], [2.0])
    combined, _ = combine(other, [tmp_path / "lora"], [2.0], check_base=False)
    for path in adapter.targets:
        torch.testing.assert_close(combined.delta(path), 2 * adapter.delta(path))


WRONG = {
    "no task": ("tasks.safetensors --weights 1", "has 3 tasks: name one"),
    "a task of a LoRA": ("peft --weights 1 --tasks 1", "a plain LoRA, which has neither"),
    "too few tasks": ("peft peft --weights 1 1 --tasks 1", "1 tasks for 2 adapters"),
    "weights": ("peft peft --weights 1", "1 weights for 2 adapters"),
    "not finite": ("peft --weights nan", "--weights[0] is nan, expected a finite number"),
    "no density": ("peft --weights 1 --how ties", "density=None for how='ties', expected above 0"),
    "a density of a sum": ("peft --weights 1 --density 0.5", "how='sum' prunes nothing"),
    "a large density": (
        "peft --weights 1 --how ties --density 1.5",
        "--density is 1.5, expected more than 0",
    ),
    "a sign of a sum": ("peft --weights 1 --sign frequency", "elects no sign"),
    "a negative weight": ("peft --weights -1 --how dare_ties --density 0.5", "subtract with how='sum'"),
    "rank": ("peft --weights 1 --rank 0", "rank is 0"),
    "no such file": ("gone --weights 1", "no such file or folder"),
}


@pytest.mark.parametrize("arguments, message", WRONG.values(), ids=WRONG)
@pytest.mark.filterwarnings("ignore:.*further module")
def test_mistakes_of_the_command(arguments, message, files):
    words = [str(files / word) if (files / word.split("/")[0]).exists() or word == "gone" else word
             for word in arguments.split()]  # fmt: skip
    code, out, err = metalora_command("combine", *words, "--model", f"hf:{files}/bert", "--out", files / "m")
    assert code == 2 and out == "" and message in err.splitlines()[-1] and "Traceback" not in err
    assert not (files / "m").exists()


def another_base(files):
    model = bert()
    nn.init.ones_(model.get_submodule("encoder.layer.0.attention.self.query").weight)
    return model, files / "lora.safetensors"


def adapted(files):
    return trained(bert(), 0, method="lora").model, files / "lora.safetensors"


def another_shape(files):
    pair = LowRankUpdate(down=torch.ones(1, 16), up=torch.ones(15, 1))
    return bert(), {"encoder.layer.0.attention.self.query": pair}


def damaged(files):
    save_file({"weight": torch.ones(2)}, files / "other.safetensors")
    return bert(), files / "other.safetensors"


def with_updates_of(**options):
    def build(files):
        return bert(), metalora.low_rank_updates(trained(bert(), 0, **options))

    return build


REFUSED = {
    "another base": (another_base, "fingerprints differ"),
    "an adapter already": (adapted, "already has an adapter"),
    "another shape": (another_shape, r"weight of \(15, 16\), the model's is \(16, 16\)"),
    "a checkpoint": (damaged, "'weight' is not a part of a Lo"),
    "magnitudes": (with_updates_of(method="dora"), "dora has magnitudes"),
    "biases of other layers": (with_updates_of(method="lora", bias="all"), "is trained too"),
    "a bottleneck": (with_updates_of(method="loretta-adp"), "is not linear"),
    "no condition": (with_updates_of(method="metalora-cp", condition=CONDITION), "pass condition="),
}


@pytest.mark.parametrize("build, message", REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore:.*further module")
def test_refusals(build, message, files):
    with pytest.raises(ValueError, match=message):
        metalora.combine(*(lambda model, source: (model, [source], [1.0]))(*build(files)))


@pytest.mark.filterwarnings("ignore:.*further module")
def test_reading_leaves_the_model_as_it_was(files):
    model = bert()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="tasks.safetensors: .*name one"):
        read_updates(model, files / "tasks.safetensors")
    assert read_updates(model, files / "tasks.safetensors", task=1).keys() and metalora.adapter_of(model) is None
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
