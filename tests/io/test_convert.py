"""PEFT LoRAs as one adapter: read as PEFT itself runs them, fitted as the dense tensors would be."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from metalora import AdapterConfig, adapter_of, detach, load, save
from metalora.fitting.updates import LowRankUpdate
from metalora.io.lora.convert import convert
from metalora.io.lora.import_ import read_any_lora
from metalora.io.lora.trained_lora import in_model
from support.command import metalora_command


class Block(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.query, self.value = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs)

    def forward(self, x):
        return (self.query(x) + self.value(x).tanh())[..., : x.shape[-1]]


class Net(nn.Module):
    def __init__(self, inputs=18, outputs=22, layers=3):
        super().__init__()
        self.layers = nn.ModuleList(Block(inputs, outputs) for _ in range(layers))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Convs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).tanh()
        return x


def peft_lora(base, folder, pairs=None, **options):
    """Save a LoRA with PEFT and return the model that PEFT runs; random weights, or up and down of `pairs`."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 4, "target_modules": ["query", "value"]} | options)
    model = peft.get_peft_model(copy.deepcopy(base), config)
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            down, up = module.lora_A["default"].weight.data, module.lora_B["default"].weight.data
            pair = (pairs or {}).get(name.removeprefix("base_model.model."))
            down.copy_(torch.randn_like(down) / 4 if pair is None else pair.down)
            up.copy_(torch.randn_like(up) / 4 if pair is None else pair.up)
    model.save_pretrained(folder)
    return model.eval()


def shared_pairs(tasks, rank, inputs, outputs, layers=3, noise=0.0, seed=0):
    """LoRAs that lie in MetaTT-(4+1)D of the rank, each in a basis of its own, plus noise on both halves."""
    drawn = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=drawn)

    first, last = normal(rank, inputs) / inputs**0.5, normal(outputs, rank) / outputs**0.5
    by_layer, by_proj, by_task = (normal(n, rank, rank) / rank**0.5 for n in (layers, 2, tasks))
    clean, noisy = [], []
    for task in range(tasks):
        clean.append({})
        noisy.append({})
        for layer in range(layers):
            for proj, name in enumerate(("query", "value")):
                turn = torch.linalg.qr(normal(rank, rank)).Q
                middle = by_layer[layer] @ by_task[task] @ by_proj[proj]
                down, up = turn @ first, last @ middle.mT @ turn.mT
                path = f"layers.{layer}.{name}"
                clean[-1][path] = LowRankUpdate(down, up)
                noisy[-1][path] = LowRankUpdate(
                    down + noise * down.std() * normal(*down.shape), up + noise * up.std() * normal(*up.shape)
                )
    return clean, noisy


def write_lora(folder, pairs, rank):
    """A PEFT folder of scale one, written without PEFT."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none", "target_modules": ["query", "value"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for path, pair in pairs.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = pair.down.contiguous()
        tensors[f"base_model.model.{path}.lora_B.weight"] = pair.up.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")


@torch.no_grad()
def dense_error(adapter, loras):
    """(relative error of all, path -> error) with dense tensors."""
    squares, total = {}, 0.0
    for task, pairs in enumerate(loras):
        condition = adapter.task(task) if len(loras) > 1 else None
        for path, pair in pairs.items():
            whole = (pair.up.double() @ pair.down.flatten(1).double()).reshape(adapter.delta(path, condition).shape)
            squares[path] = squares.get(path, 0) + float((whole - adapter.delta(path, condition)).square().sum())
            total += float(whole.square().sum())
    return (sum(squares.values()) / total) ** 0.5, squares


# ---- reading --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "options",
    [
        {"lora_alpha": 11},
        {"lora_alpha": 11, "use_rslora": True},
        {"rank_pattern": {"query": 2}, "alpha_pattern": {"layers.1.value": 9}},
        {"rank_pattern": {r"layers\.[02]\.value": 3}},
    ],
    ids=["alpha", "rslora", "patterns", "a regular expression"],
)
def test_a_lora_is_read_as_peft_runs_it(tmp_path, options):
    base, x = Net(), torch.randn(5, 18)
    theirs = peft_lora(base, tmp_path, **options)
    adapter, report = convert(base, [tmp_path], AdapterConfig(method="lora", rank=4))
    torch.testing.assert_close(base(x), theirs(x), rtol=1e-5, atol=1e-5)
    assert report.error < 1e-6


@pytest.mark.parametrize("method", ["lora", "lotr", "tenslora-depth"])
def test_convolutions(tmp_path, method):
    base, x = Convs(), torch.randn(2, 6, 5, 5)
    theirs = peft_lora(base, tmp_path, target_modules=["0", "1", "2"], r=2)
    rank = {"lora": 2, "lotr": 6, "tenslora-depth": {"r1": 6, "r2": 6, "r3": 3}}[method]
    _, report = convert(base, [tmp_path], AdapterConfig(method=method, rank=rank))
    torch.testing.assert_close(base(x), theirs(x), rtol=1e-5, atol=1e-5)
    assert report.error < 1e-6


def test_gpt2_stores_its_weight_the_other_way_round(tmp_path):
    from transformers.pytorch_utils import Conv1D

    base, x = nn.Sequential(Conv1D(7, 5), nn.Sequential(Conv1D(5, 7))), torch.randn(3, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft_lora(base, tmp_path, target_modules=["0"], fan_in_fan_out=True, r=2)
    convert(base, [tmp_path], AdapterConfig(method="lora", rank=2))
    torch.testing.assert_close(base(x), theirs(x), rtol=1e-5, atol=1e-5)


BAD = {
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "no adapter_config.json"),
    "no tensors": (lambda f: (f / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
    "no JSON": (lambda f: (f / "adapter_config.json").write_text("{"), "not JSON"),
    "truncated": (lambda f: cut(f / "adapter_model.safetensors"), "truncated or damaged"),
    "another type": (lambda f: change(f, peft_type="IA3"), "peft_type is 'IA3', expected 'LORA', 'LOHA' or 'LOKR'"),
    "DoRA": (lambda f: change(f, use_dora=True), "has no lora_magnitude_vector, and use_dora"),
    "bias": (lambda f: change(f, bias="all"), "biases"),
    "PiSSA": (lambda f: change(f, init_lora_weights="pissa"), "changed the base's weights"),
    "another rank": (lambda f: change(f, r=3), r"expected \(3, in\)"),
    "no rank": (lambda f: change(f, r=0), "r is 0, expected more than 0"),
    "half": (lambda f: drop(f, "base_model.model.layers.0.query.lora_A.weight"), "has lora_B alone"),
    "no LoRA": (lambda f: drop(f), "holds no LoRA"),
}


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def change(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def drop(folder, name=None):
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({k: v for k, v in tensors.items() if name not in (None, k)}, folder / "adapter_model.safetensors")


@pytest.mark.parametrize("what", BAD)
def test_a_bad_folder_is_refused_in_one_line(tmp_path, what):
    (pairs,), _ = shared_pairs(1, 4, 18, 22)
    write_lora(tmp_path / "lora", pairs, 4)
    read_any_lora(Net(), tmp_path / "lora")
    damage, message = BAD[what]
    damage(tmp_path / "lora")
    with pytest.raises(ValueError, match=message) as error:
        read_any_lora(Net(), tmp_path / "lora")
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_what_is_saved_whole_is_left_out_with_a_warning(tmp_path):
    (pairs,), _ = shared_pairs(1, 4, 18, 22)
    write_lora(tmp_path / "lora", pairs, 4)
    path = tmp_path / "lora" / "adapter_model.safetensors"
    from safetensors.torch import load_file

    save_file(load_file(path) | {"base_model.model.classifier.weight": torch.ones(2, 2)}, path)
    with pytest.warns(UserWarning, match="1 tensors saved whole"):
        assert set(read_any_lora(Net(), tmp_path / "lora")) == set(pairs)


def test_paths_of_the_whole_model_and_of_its_body():
    pair, body = LowRankUpdate(torch.zeros(1, 18), torch.zeros(22, 1)), Net()
    whole = nn.ModuleDict({"net": Net(), "classifier": nn.Linear(2, 2)})
    assert list(in_model({"net.layers.0.query": pair}, body)) == ["layers.0.query"]
    assert list(in_model({"layers.0.query": pair}, whole)) == ["net.layers.0.query"]
    assert list(in_model({"net.layers.0.query": pair}, whole)) == ["net.layers.0.query"]
    with pytest.raises(ValueError, match="lora-3: Net has no module 'net.classifier'"):
        in_model({"net.classifier": pair}, body, "lora-3")
    with pytest.raises(ValueError, match="2 modules 'layers.0.query'"):
        in_model({"layers.0.query": pair}, nn.ModuleDict({"a": Net(), "b": Net()}))


# ---- converting -----------------------------------------------------------------------------------------------------
EXACT = {
    "lotr": 4, "metatt-4d": 4, "metatt-4+1d": 4, "tenslora-att-qkv": {"r1": 4, "r2": 4, "r3": 2, "r4": 2, "r5": 2},
    "tenslora-qkv-depth": {"r1": 4, "r2": 4, "r3": 2, "r4": 3},
}  # fmt: skip


@pytest.mark.parametrize("method", ["lotr", "metatt-4d", "metatt-4+1d", "tenslora-qkv-depth"])
def test_what_lies_in_the_method_is_found_exactly_and_runs_as_in_peft(tmp_path, method):
    base, x, (clean, _) = Net(), torch.randn(5, 18), shared_pairs(1, 4, 18, 22)
    theirs = peft_lora(base, tmp_path, clean[0])
    config = AdapterConfig(method=method, rank=EXACT[method], alpha=3.0)
    adapter, report = convert(base, [tmp_path], config)
    assert report.error < 1e-6
    torch.testing.assert_close(base(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_what_is_a_cp_is_found_exactly(tmp_path):
    drawn = torch.Generator().manual_seed(1)
    first, last, layer, proj = (torch.randn(n, 3, generator=drawn) for n in (18, 22, 3, 2))
    pairs = {
        f"layers.{k}.{name}": LowRankUpdate(first.mT, last * (layer[k] * proj[p]))
        for k in range(3)
        for p, name in enumerate(("query", "value"))
    }
    base, x = Net(), torch.randn(5, 18)
    theirs = peft_lora(base, tmp_path, pairs, r=3, lora_alpha=3)
    _, report = convert(base, [tmp_path], AdapterConfig(method="tenslora-qkv-depth-cp", rank=3))
    assert report.error < 1e-6
    torch.testing.assert_close(base(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_several_loras_are_the_tasks(tmp_path):
    base, x, (clean, _) = Net(), torch.randn(3, 18), shared_pairs(3, 4, 18, 22)
    theirs = [peft_lora(base, tmp_path / str(k), pairs) for k, pairs in enumerate(clean)]
    plain = copy.deepcopy(base)
    _, report = convert(base, [tmp_path / str(k) for k in range(3)], AdapterConfig(method="metatt-4+1d", rank=4))
    expected = torch.stack([one(x[k]) for k, one in enumerate(theirs)])
    assert report.error < 1e-6
    torch.testing.assert_close(base(x, task_ids=[0, 1, 2]), expected, rtol=1e-5, atol=1e-5)
    save(base, tmp_path / "library")
    load(plain, tmp_path / "library")
    torch.testing.assert_close(plain(x, task_ids=[0, 1, 2]), base(x, task_ids=[0, 1, 2]), rtol=0, atol=0)


NOISY = [
    "lora",
    "lotr",
    "metatt-4d",
    "metatt-4+1d",
    "metatt-5d",
    "tenslora-qkv-depth",
    "tenslora-qkv-depth-cp",
    "lorta",
]


@pytest.mark.parametrize("method, tasks", [*((method, 1) for method in NOISY), ("metatt-4+1d", 4), ("metatt-6d", 4)])
def test_the_error_is_that_of_the_dense_tensors(method, tasks):
    base = Net(38, 42).double()
    _, noisy = shared_pairs(tasks, 4, 38, 42, noise=0.7)
    config = AdapterConfig(method=method, rank=2, alpha=5.0, head_dim=14)
    adapter, report = convert(base, noisy, config)
    error, squares = dense_error(adapter, noisy)
    assert 0.05 < error < 0.99
    assert report.error == pytest.approx(error, rel=1e-8)
    by_target = {path: sum(r.error**2 for r in report.fit.rows if r.target == path) for path in squares}
    assert by_target == pytest.approx(squares, rel=1e-8)
    total = sum(row.norm**2 for row in report.fit.rows)
    assert sum(by_target.values()) / total == pytest.approx(report.error**2, rel=1e-12)


@pytest.mark.parametrize("method", ["lotr", "metatt-4d", "tenslora-qkv-depth"])
def test_the_error_falls_with_the_rank_and_is_near_the_best(method):
    _, (noisy,) = shared_pairs(1, 4, 38, 42, noise=0.7)
    errors = []
    for rank in (1, 2, 4, 8, 12):
        base = Net(38, 42).double()
        _, report = convert(base, [noisy], AdapterConfig(method=method, rank=rank, clip_rank=True))
        errors.append(report.error)
        # No fit is better than either side's own best subspace.
        every = torch.cat([pair.up.double() @ pair.down.double() for pair in noisy.values()])
        tail = torch.linalg.svdvals(every)[rank:].norm() / every.norm()
        assert report.error >= float(tail) - 1e-9
        if method == "lotr":
            wide = torch.cat([pair.up.double() @ pair.down.double() for pair in noisy.values()], 1)
            both = (tail**2 + (torch.linalg.svdvals(wide)[rank:].norm() / wide.norm()) ** 2) ** 0.5
            assert report.error <= float(both) + 1e-9  # HOSVD's bound
    assert errors == sorted(errors, reverse=True)


def best_tucker(tensor, ranks, times=60):
    """The relative error of HOOI on the first and last axis of a dense (in, targets, out)."""
    last = np.linalg.svd(np.moveaxis(tensor, 2, 0).reshape(tensor.shape[2], -1))[0][:, :ranks]
    for _ in range(times):
        first = np.linalg.svd((tensor @ last).reshape(len(tensor), -1))[0][:, :ranks]
        seen = np.einsum("int,ir->rnt", tensor, first)
        last = np.linalg.svd(np.moveaxis(seen, 2, 0).reshape(tensor.shape[2], -1))[0][:, :ranks]
    kept = np.linalg.norm(seen @ last)
    return (1 - (kept / np.linalg.norm(tensor)) ** 2) ** 0.5


def tt_svd(tensor, rank):
    """The relative error of TT-SVD on a dense tensor."""
    rest, kept = tensor.reshape(1, -1), 1
    for n in tensor.shape[:-1]:
        _, s, v = np.linalg.svd(rest.reshape(kept * n, -1), full_matrices=False)
        kept = min(rank, len(s))
        rest = s[:kept, None] * v[:kept]
    return (1 - (np.linalg.norm(rest) / np.linalg.norm(tensor)) ** 2) ** 0.5


@pytest.mark.parametrize("noise", [0.1, 0.7, 3.0])
@pytest.mark.parametrize("rank", [2, 4])
def test_the_fit_is_as_good_as_that_of_the_dense_tensor(rank, noise):
    _, (noisy,) = shared_pairs(1, 4, 58, 62, noise=noise)
    whole = np.stack([(pair.up.double() @ pair.down.double()).mT.numpy() for pair in noisy.values()], 1)
    found = {}
    for method in ("lotr", "metatt-4d"):
        _, report = convert(Net(58, 62).double(), [noisy], AdapterConfig(method=method, rank=rank))
        found[method] = report.error
    # Mere noise has no leading directions: what the common bases leave out then costs up to one per cent.
    assert found["lotr"] == pytest.approx(best_tucker(whole, rank), rel=1e-2 if noise > 1 else 1e-3)
    assert found["metatt-4d"] <= tt_svd(whole.reshape(58, 3, 2, 62), rank) * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_unequal_widths_are_fitted_where_they_are_read(seed):
    class Unequal(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(
                nn.ModuleDict({"query": nn.Linear(9, 9), "fc": nn.Linear(9, 15)}) for _ in range(3)
            )

    drawn = torch.Generator().manual_seed(seed)
    first, core = torch.randn(3, 9, generator=drawn), torch.randn(3, 3, 3, generator=drawn)
    last = {"query": torch.randn(9, 3, generator=drawn), "fc": torch.randn(15, 3, generator=drawn)}
    pairs = {f"layers.{k}.{name}": LowRankUpdate(first, last[name] @ core[k]) for k in range(3) for name in last}
    model = Unequal().double()
    adapter, report = convert(model, [pairs], AdapterConfig(method="metatt-4d", rank=3))
    error, _ = dense_error(adapter, [pairs])
    assert report.error == pytest.approx(error, abs=1e-7)
    assert error < 1e-4


class Largest(TorchDispatchMode):
    """The numbers of the largest tensor formed, and every shape."""

    def __init__(self):
        super().__init__()
        self.numel, self.shapes = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(one, torch.Tensor):
                self.numel = max(self.numel, one.numel())
                self.shapes.add(tuple(one.shape))
        return out


def test_fifty_loras_make_one_small_adapter_and_no_dense_update(tmp_path):
    inputs, outputs, rank = 1009, 1013, 8
    clean, noisy = shared_pairs(50, rank, inputs, outputs, layers=2, noise=0.2)
    for k, pairs in enumerate(noisy):
        write_lora(tmp_path / f"lora{k}", pairs, rank)
    folders = [tmp_path / f"lora{k}" for k in range(50)]
    base = Net(inputs, outputs, layers=2)
    with Largest() as largest:
        _, report = convert(base, folders, AdapterConfig(method="metatt-4+1d", rank=rank))
    assert largest.numel < inputs * outputs / 4
    assert not any(inputs in shape and outputs in shape for shape in largest.shapes)
    save(base, tmp_path / "adapter")
    before = sum((folder / "adapter_model.safetensors").stat().st_size for folder in folders)
    assert (tmp_path / "adapter").stat().st_size <= before / 10
    noise = total = 0.0
    for good, bad in zip(clean, noisy, strict=True):
        for path, pair in bad.items():
            whole = pair.up @ pair.down
            noise += float((whole - good[path].up @ good[path].down).square().sum())
            total += float(whole.square().sum())
    assert 0.9 * (noise / total) ** 0.5 < report.error <= (noise / total) ** 0.5


# ---- refusals and the command line ----------------------------------------------------------------------------------
REFUSED = [
    ("metatt-4d", 2, {}, "2 LoRAs, and method 'metatt-4d' has no task mode"),
    ("tenslora-qkv-depth-ring", 1, {}, "is ring"),
    ("loha", 1, {}, "only a chain, a tree"),
    ("vera", 1, {}, "only a chain, a tree"),
    ("metalora-cp", 1, {}, "only a chain, a tree"),
    ("metatt-4+1d", 2, {"tasks": 3}, "tasks=3 for 2 LoRAs"),
    ("metatt-4d", 0, {}, "no LoRA is given"),
    ("metatt-4d", 1, {"alpha": 0.0}, "alpha is 0"),
]


@pytest.mark.parametrize("method, count, options, message", REFUSED)
def test_what_cannot_be_converted_is_refused_and_nothing_changes(method, count, options, message):
    base, (clean, _) = Net(), shared_pairs(2, 4, 18, 22)
    with pytest.raises(ValueError, match=message):
        convert(base, clean[:count], AdapterConfig(method=method, rank=2, head_dim=2, **options))
    assert adapter_of(base) is None and all(p.requires_grad for p in base.parameters())


def test_shapes_that_do_not_fit_are_named():
    base, (clean, _) = Net(18, 23), shared_pairs(1, 4, 18, 22)
    with pytest.raises(ValueError, match=r"'layers.0.query' has shapes \(4, 18\) and \(22, 4\), expected"):
        convert(base, clean, AdapterConfig(method="lotr", rank=2))
    clean[0]["layers.1.query"].up[0] = float("nan")
    with pytest.raises(ValueError, match="'layers.1.query' is not finite"):
        convert(Net(), clean, AdapterConfig(method="lotr", rank=2))
    assert adapter_of(base) is None


def test_the_command_converts_loras_of_a_bert(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20, vocab_size=30)
    bert = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes)).eval()
    bert.bert.save_pretrained(tmp_path / "base")
    body = transformers.AutoModel.from_pretrained(tmp_path / "base").eval()
    theirs = [peft_lora(bert, tmp_path / f"lora{k}", r=2) for k in range(2)]
    words = ["convert", tmp_path / "lora0", tmp_path / "lora1", "--model", f"hf:{tmp_path / 'base'}"]
    words += ["--class", "BertModel", "--method", "metatt-4+1d", "--rank", "16", "--clip-rank", "--json"]
    code, out, err = metalora_command(*words, "--out", tmp_path / "one")
    assert code == 0, err
    found = json.loads(out)
    assert found["error"] < 1e-5 and len(found["targets"]) == 4 and len(found["loras"]) == 2
    load(body, tmp_path / "one")
    ids = torch.tensor([[3, 4, 5], [6, 7, 8]])
    expected = torch.cat([one.base_model.model.bert(ids[k : k + 1])[0] for k, one in enumerate(theirs)])
    torch.testing.assert_close(body(ids, task_ids=[0, 1])[0], expected, rtol=1e-4, atol=1e-4)
    detach(body)
    code, _, err = metalora_command(*words[:2], tmp_path / "nowhere", *words[3:], "--out", tmp_path / "two")
    assert code == 2 and err.splitlines()[-1].startswith("metalora: ") and "nowhere: no such file or folder" in err
    assert not (tmp_path / "two").exists()
