"""How W + Delta W stands in the place of a parameter: PEFT's values, torch's fast paths, errors, threads, precision."""

import copy
import threading

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import GptOssConfig, GptOssForCausalLM, MixtralConfig, MixtralForCausalLM

from metalora import AdapterConfig, attach, find_targets, merge
from support.adapters import assert_close, attach_random
from support.holders import EXPERTS, HOLDERS, IN, Mixture, Router, with_weights

SIZES = dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=8,
    vocab_size=32, num_local_experts=4, num_experts_per_tok=2, head_dim=8,
)  # fmt: skip
MODELS = {
    "mixtral": (lambda: MixtralForCausalLM(MixtralConfig(**SIZES)), "gate"),
    "gpt-oss": (lambda: GptOssForCausalLM(GptOssConfig(**SIZES)), "router"),
}
EXPERT_PARAMETERS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def language_model(name):
    torch.manual_seed(0)
    make, router = MODELS[name]
    model = make().double().eval()
    model.set_experts_implementation("eager")  # the others have no float64
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model, (*EXPERT_PARAMETERS, f"mlp.{router}.weight")


@pytest.mark.parametrize("name", MODELS)
def test_lora_of_experts_and_routers_is_pefts(name):
    """PEFT's ParamWrapper: lora_A (r E, in) by expert then rank, lora_B (out, r E) by rank then expert."""
    model, targets = language_model(name)
    x = torch.randint(32, (2, 5))
    config = LoraConfig(r=2, lora_alpha=3, target_modules=[], target_parameters=list(targets), init_lora_weights=False)
    peft = get_peft_model(copy.deepcopy(model), config).double()
    adapter = attach_random(model, AdapterConfig("lora", 2, alpha=3.0, targets=targets), 0.3)
    wrappers = {}
    for path, module in peft.base_model.model.named_modules():
        if type(module).__name__ == "ParamWrapper":
            wrappers[f"{path.replace('.base_layer', '')}.{module.parameter_name}"] = module
    assert len(wrappers) == 2 * len(targets)
    with torch.no_grad():
        for path, wrapper in wrappers.items():
            prefixes = [path] if "experts" not in path else [f"{path}.{expert}" for expert in range(4)]
            a = torch.stack([adapter.factors[f"{prefix}.A"] for prefix in prefixes])  # (experts, in, r)
            b = torch.stack([adapter.factors[f"{prefix}.B"] for prefix in prefixes])  # (experts, r, out)
            wrapper.lora_A["default"].weight.copy_(a.mT.flatten(0, 1))
            wrapper.lora_B["default"].weight.copy_(b.permute(2, 1, 0).flatten(1))
    with peft.disable_adapter():
        before = peft(x).logits
    assert (peft(x).logits - before).abs().max() > 1e-2
    assert_close(model(x).logits, peft(x).logits)


def test_an_expert_is_a_layer_of_a_method_that_numbers_layers():
    targets = find_targets(HOLDERS["experts"].base(), "experts.down_proj")
    assert [target.layer for target in targets] == [(block, expert) for block in range(2) for expert in range(EXPERTS)]
    assert {(target.role, target.kind) for target in targets} == {("*.experts.down_proj.*", "matrix")}
    assert targets[0].sizes == {"out": IN, "in": 4}


def test_patterns_of_matrices():
    model = HOLDERS["experts"].base()
    assert [target.path for target in find_targets(model, "down_proj.1,gate.weight")] == [
        "0.gate.weight", "0.experts.down_proj.1", "1.gate.weight", "1.experts.down_proj.1",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="name the parameter, such as '0.experts.gate_up_proj'"):
        find_targets(model, "experts")
    with pytest.raises(ValueError, match="matches no module"):
        find_targets(model, f"down_proj.{EXPERTS}")
    with pytest.raises(ValueError, match="LSTM is not a layer"):
        find_targets(nn.Sequential(nn.LSTM(4, 4)), "0")
    with pytest.raises(ValueError, match="matches no module"):  # it reads its weights from a list of its own
        find_targets(nn.Sequential(nn.LSTM(4, 4)), "weight_ih_l0")
    with pytest.raises(ValueError, match="no module that runs holds this parameter"):
        find_targets(nn.ParameterDict({"weight": torch.zeros(2, 2)}), "weight")
    quantised = Router()
    quantised.weight = nn.Parameter(torch.zeros(3, IN, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="quantised weights are not adapted"):
        find_targets(nn.Sequential(quantised), "0.weight")


def test_some_experts_alone():
    model = HOLDERS["experts"].base()
    dense = copy.deepcopy(model)
    adapter = attach_random(model, AdapterConfig("lora", 2, targets=("0.experts.gate_up_proj.1",)))
    x = HOLDERS["experts"].inputs()
    delta = {"0.experts.gate_up_proj.1": adapter.delta("0.experts.gate_up_proj.1")}
    assert_close(model(x), with_weights(dense, delta)(x))


def test_a_fused_in_proj_is_three_projections():
    [target] = find_targets(nn.Sequential(nn.MultiheadAttention(6, 2)), "in_proj_weight")
    assert (target.parts, target.heads, target.head_dim) == (3, "out", 3)
    assert {t.heads for t in find_targets(nn.Sequential(nn.MultiheadAttention(6, 2, kdim=4)), "*_proj_weight")} == {
        "out"
    }


# ---- the fast paths of torch ----------------------------------------------------------------------------------------
def encoder():
    layer = nn.TransformerEncoderLayer(IN, 2, 8, batch_first=True)
    return nn.TransformerEncoder(layer, 2).double().eval()


def padded():
    x, padding = torch.randn(2, 5, IN, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    return x, padding


@pytest.mark.parametrize("grad", (True, False))
def test_an_encoder_with_padding_runs_with_w_plus_delta(grad, monkeypatch):
    model = encoder()
    dense = copy.deepcopy(model)
    adapter = attach_random(model, AdapterConfig("lora", 2, targets=HOLDERS["encoder"].targets))
    dense = with_weights(dense, {path: adapter.delta(path) for path in adapter.targets}).requires_grad_(False)
    x, padding = padded()
    ran, fast = [], torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *args: ran.append(1) or fast(*args))
    with torch.set_grad_enabled(grad):
        got, want = model(x, src_key_padding_mask=padding), dense(x, src_key_padding_mask=padding)
    assert len(ran) == (2 if grad else 4)  # the adapted encoder takes the fast path if it needs no gradient
    assert_close(got[~padding], want[~padding])


def test_attention_called_from_outside_of_its_encoder_layer_is_adapted():
    model = HOLDERS["encoder"].base()
    dense = copy.deepcopy(model)
    adapter = attach_random(model, AdapterConfig("lora", 2, targets=HOLDERS["encoder"].targets))
    dense = with_weights(dense, {path: adapter.delta(path) for path in adapter.targets})
    x = HOLDERS["encoder"].inputs()
    assert_close(model[0].self_attn(x, x, x)[0], dense[0].self_attn(x, x, x)[0])
    assert_close(model[0].self_attn.out_proj(x), dense[0].self_attn.out_proj(x))
    assert_close(model[0].linear1(x), dense[0].linear1(x))


# ---- while a module runs --------------------------------------------------------------------------------------------
class Failing(Router):
    def forward(self, x):
        raise KeyboardInterrupt


def test_an_error_in_the_module_leaves_the_parameter():
    model = nn.Sequential(Failing())
    parameter = model[0].weight
    attach_random(model, AdapterConfig("lora", 2, targets="weight"))
    with pytest.raises(KeyboardInterrupt):
        model(torch.zeros(1, IN))
    assert model[0].weight is parameter and model[0].adapted_weight.replaced is None


def test_threads_share_a_module():
    kind = HOLDERS["experts"]
    model = kind.base()
    adapter = attach_random(model, AdapterConfig("lora", 2, targets=kind.targets))
    x = kind.inputs()
    with torch.no_grad(), adapter.disabled():
        base = model(x)
    with torch.no_grad():
        want = model(x)
    wrong = []

    def run(disabled):
        for _ in range(20):
            with torch.no_grad():
                if disabled:
                    with adapter.disabled():
                        wrong.append(not torch.equal(model(x), base))
                else:
                    wrong.append(not torch.equal(model(x), want))

    threads = [threading.Thread(target=run, args=(number % 2 == 0,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 80 and not any(wrong)


def test_a_part_of_a_forward_may_be_disabled():
    model = HOLDERS["encoder"].base()
    plain = copy.deepcopy(model)
    adapter = attach_random(model, AdapterConfig("lora", 2, targets=HOLDERS["encoder"].targets))
    x, seen = HOLDERS["encoder"].inputs(), []

    def run_disabled(module, args):
        if adapter.current().enabled:
            with adapter.disabled():
                seen.append(model[0].self_attn(x, x, x)[0])

    want = model(x)
    model[0].norm1.register_forward_pre_hook(run_disabled)
    assert_close(model(x), want)
    assert_close(seen[0], plain[0].self_attn(x, x, x)[0])


def test_delta_inside_of_a_forward_is_that_of_the_base():
    model = HOLDERS["experts"].base()
    adapter = attach_random(model, AdapterConfig("ia3", 1, targets="experts.down_proj"))
    want, seen = adapter.delta("0.experts.down_proj.1"), []
    model[0].experts.register_forward_hook(lambda *_: seen.append(adapter.delta("0.experts.down_proj.1")))
    forward = model[0].experts.forward
    model[0].experts.forward = lambda *args: seen.append(adapter.delta("0.experts.down_proj.1")) or forward(*args)
    model(HOLDERS["experts"].inputs())
    assert len(seen) == 2 and all(torch.equal(delta, want) for delta in seen)


@pytest.mark.parametrize("reentrant", (True, False))
def test_a_checkpointed_module_has_the_same_gradients(reentrant):
    kind = HOLDERS["experts"]
    model = kind.base()
    adapter = attach_random(model, AdapterConfig("metatt-4d", 2, targets=kind.targets), 0.3)
    x = kind.inputs().requires_grad_()
    model(x).square().sum().backward()
    want = [parameter.grad.clone() for parameter in adapter.parameters()]
    adapter.zero_grad()
    checkpoint(
        model[1], checkpoint(model[0], x, use_reentrant=reentrant), use_reentrant=reentrant
    ).square().sum().backward()
    for parameter, gradient in zip(adapter.parameters(), want, strict=True):
        assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32))
def test_the_sum_is_rounded_once_as_a_merge_rounds_it(dtype):
    model = nn.Sequential(Mixture()).to(dtype)
    adapter = attach_random(model, AdapterConfig("lora", 2, targets=("experts.down_proj", "gate.weight")), 0.1)
    assert next(iter(adapter.factors.values())).dtype == torch.float32
    x = torch.randn(2, 5, IN).to(dtype)
    with torch.no_grad():
        live = model(x)
        model[0].experts.adapted_down_proj.enter()
        running = model[0].experts.down_proj.clone()
        model[0].experts.adapted_down_proj.leave()
        merge(model)
        assert running.dtype == dtype
        assert_close(running, model[0].experts.down_proj, 1e-6 if dtype == torch.float32 else 0)
        assert_close(model(x), live, 1e-5 if dtype == torch.float32 else 0)


def test_autocast_rounds_the_sum_and_not_the_factors():
    model = nn.Sequential(Router())
    adapter = attach_random(model, AdapterConfig("lora", 2, targets="weight"))
    x = torch.randn(4, IN)
    exact = model[0].weight + adapter.delta("0.weight")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x)[0], nn.functional.linear(x, exact))


@pytest.mark.parametrize("name", ("attention", "encoder", "experts", "listed"))
def test_torch_compile_sees_w_plus_delta(name):
    kind = HOLDERS[name]
    model = kind.base()
    attach_random(model, AdapterConfig("lora", 2, targets=kind.targets))
    x = kind.inputs()
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_close(compiled(x), model(x))
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == parameters
    program = torch.export.export(model, (x,))
    assert_close(program.module()(x), model(x))


def test_a_tied_parameter_is_not_merged():
    model = nn.Sequential(Router(), Router())
    model[1].weight = model[0].weight
    attach_random(model, AdapterConfig("lora", 2, targets="0.weight"))
    with pytest.raises(ValueError, match="the weight of target '0.weight' is tied"):
        merge(model)


def test_a_state_of_a_merged_model_is_not_loaded_for_another():
    model = HOLDERS["experts"].base()
    attach(model, AdapterConfig("lora", 2, targets="experts.down_proj"))
    plain = copy.deepcopy(model.state_dict())
    merge(model)
    with pytest.raises(ValueError, match="the adapter is merged"):
        model.load_state_dict(plain)
