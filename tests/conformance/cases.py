"""The cases that replace PEFT's lists of configurations, by the name that a list has in its module."""

from typing import Any

from metalora.peft import TensorNetworkConfig

# Models of PEFT's test_custom_models. They have an alpha if three steps at PEFT's rate move nothing, or diverge.
MODELS = [
    ("MLP", {"target_modules": "lin0"}),
    ("MLP", {"target_modules": ["lin0"]}),
    ("MLP", {"target_modules": ["lin0", "lin1"], "alpha": 0.2}),
    ("MLP", {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    ("EmbConv1D", {"target_modules": ["conv1d"]}),
    ("EmbConv1D", {"target_modules": ["emb"], "alpha": 16.0}),
    ("EmbConv1D", {"target_modules": ["emb", "conv1d"], "alpha": 4.0}),
    ("Conv1d", {"target_modules": ["conv1d"]}),
    ("Conv2d", {"target_modules": ["conv2d"]}),
    ("Conv2d", {"target_modules": ["conv2d", "lin0"], "alpha": 0.1}),
]


def lists(config_class: type) -> dict[str, list[Any]]:
    """Return the rows for one configuration class.

    Args:
        config_class: A class of `FAMILIES`.

    Returns:
        Name of a list in PEFT's test modules, or "module.name" -> the rows that replace it.
    """
    rows = [(f"{number} {model}", model, config_class, arguments) for number, (model, arguments) in enumerate(MODELS)]
    return {
        "TEST_CASES": rows,
        "ALL_PEFT_CONFIG_CLASSES": [config_class],
        "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES": _pairs_of_active_adapters(config_class),
        "MIXED_ADAPTER_TEST_CASES": [_pair_of_mixed_adapters(config_class)],
        "ALL_CONFIG_CLASSES": [(TensorNetworkConfig, {})],  # PEFT loads every preset as this class
        "LAYER_INDEXING_CONFIG_CLASSES": [(config_class, {})],
        "TOKEN_CLS_CONFIGS": _row_of_task(config_class, "TOKEN_CLS"),
        "QA_CONFIGS": _row_of_task(config_class, "QUESTION_ANS"),
        "test_decoder_models.ALL_CONFIGS": _row_of_task(config_class, "CAUSAL_LM"),
        "test_encoder_decoder_models.ALL_CONFIGS": _row_of_task(config_class, "SEQ_2_SEQ_LM"),
        "test_seq_classifier.ALL_CONFIGS": _row_of_task(config_class, "SEQ_CLS"),
        "test_feature_extraction_models.ALL_CONFIGS": _row_of_task(config_class, "FEATURE_EXTRACTION"),
    }


def _row_of_task(config_class: type, task_type: str) -> list[Any]:
    return [(config_class, {"target_modules": None, "task_type": task_type})]


def _pairs_of_active_adapters(config_class: type) -> list[Any]:
    """Two adapters on the same layer, and on different layers."""
    rows = []
    for number, (first, second) in enumerate([(["lin0"], ["lin0"]), (["lin0"], ["lin1"])]):
        first_arguments = {"target_modules": first, "init_weights": False}
        second_arguments = {"target_modules": second, "init_weights": False}
        rows.append((str(number), "metalora", config_class, first_arguments, second_arguments))
    return rows


def _pair_of_mixed_adapters(config_class: type) -> tuple[Any, ...]:
    """Two adapters of different rank for one batch."""
    configs = [config_class(target_modules=["lin0"], r=rank, init_weights=False) for rank in (4, 2)]
    return ("ranks 4 and 2", *configs)


SIZES = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=37)
BERT = {**SIZES, "max_position_embeddings": 64}
# Name on the Hub -> (class of transformers' configuration, its values).
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny-random-OPTForCausalLM": (
        "OPTConfig",
        dict(
            vocab_size=64,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=4,
            ffn_dim=32,
            word_embed_proj_dim=16,
            max_position_embeddings=64,
        ),
    ),
    "tiny-random-GPT2LMHeadModel": (
        "GPT2Config",
        dict(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2),
    ),
    "tiny-random-GPTJForCausalLM": (
        "GPTJConfig",
        dict(
            vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4, bos_token_id=1, eos_token_id=2
        ),
    ),
    "tiny-random-GPTBigCodeForCausalLM": (
        "GPTBigCodeConfig",
        dict(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2),
    ),
    "tiny-random-gpt_neo": (
        "GPTNeoConfig",
        dict(
            vocab_size=64,
            hidden_size=32,
            num_layers=3,
            num_heads=4,
            attention_types=[[["global"], 3]],
            max_position_embeddings=64,
            bos_token_id=1,
            eos_token_id=2,
        ),
    ),
    "tiny-random-BloomForCausalLM": (  # default weights of 0.02 lose small updates of three layers to rounding
        "BloomConfig",
        dict(vocab_size=64, hidden_size=32, n_layer=3, n_head=4, initializer_range=0.2),
    ),
    **{
        f"tiny-{name}": ("LlamaConfig", {**SIZES, "num_key_value_heads": 2})
        for name in ("random-LlamaForCausalLM", "LlamaForSequenceClassification-3.2")
    },
    "tiny-dummy-qwen2": ("Qwen2Config", {**SIZES, "num_key_value_heads": 2}),
    "tiny-random-Gemma3ForCausalLM": ("Gemma3TextConfig", {**SIZES, "num_key_value_heads": 2, "head_dim": 8}),
    "tiny-random-T5ForConditionalGeneration-calibrated": (
        "T5Config",
        dict(vocab_size=64, d_model=32, d_kv=8, d_ff=37, num_layers=3, num_heads=4, decoder_start_token_id=0),
    ),
    "tiny-random-BartForConditionalGeneration": (
        "BartConfig",
        dict(
            vocab_size=64,
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=4,
            decoder_ffn_dim=4,
            max_position_embeddings=64,
            decoder_start_token_id=2,
        ),
    ),
    **{f"tiny-random-Bert{name}": ("BertConfig", BERT) for name in ("Model", "ForSequenceClassification")},
    **{f"tiny-random-Roberta{name}": ("RobertaConfig", BERT) for name in ("Model", "ForSequenceClassification")},
    "tiny-random-DebertaModel": ("DebertaConfig", {**BERT, "pos_att_type": ["p2c", "c2p"], "relative_attention": True}),
    "tiny-random-DebertaV2Model": ("DebertaV2Config", {**BERT, "pos_att_type": ["p2c"], "relative_attention": True}),
}
FILES = [
    f"tests/test_{name}.py"
    for name in (
        "custom_models",
        "decoder_models",
        "encoder_decoder_models",
        "seq_classifier",
        "feature_extraction_models",
        "token_classification_qa",
        "config",
    )
]
