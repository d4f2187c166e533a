"""The cases that take the place of PEFT's lists, by the name that a list has in its module."""

from typing import Any

from metalora.peft import TensorNetworkConfig

MODELS = [  # of PEFT's test_custom_models; alpha where three of its steps move nothing, or move all to infinity
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


def lists(config: type) -> dict[str, list[Any]]:
    """List name -> rows for one configuration class."""
    rows = [(f"{k} {model}", model, config, kwargs) for k, (model, kwargs) in enumerate(MODELS)]

    def task(name: str | None) -> list[Any]:
        return [(config, {"target_modules": None, **({"task_type": name} if name else {})})]

    pairs = [(["lin0"], ["lin0"]), (["lin0"], ["lin1"])]
    several = [
        (
            f"{k}",
            "metalora",
            config,
            {"target_modules": a, "init_weights": False},
            {"target_modules": b, "init_weights": False},
        )
        for k, (a, b) in enumerate(pairs)
    ]
    mixed = [("ranks 4 and 2", *(config(target_modules=["lin0"], r=r, init_weights=False) for r in (4, 2)))]
    return {
        "TEST_CASES": rows,
        "ALL_PEFT_CONFIG_CLASSES": [config],
        "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES": several,
        "MIXED_ADAPTER_TEST_CASES": mixed,
        "ALL_CONFIG_CLASSES": [(TensorNetworkConfig, {})],  # as which every preset is loaded
        "LAYER_INDEXING_CONFIG_CLASSES": [(config, {})],
        "TOKEN_CLS_CONFIGS": task("TOKEN_CLS"),
        "QA_CONFIGS": task("QUESTION_ANS"),
        "test_decoder_models.ALL_CONFIGS": task("CAUSAL_LM"),
        "test_encoder_decoder_models.ALL_CONFIGS": task("SEQ_2_SEQ_LM"),
        "test_seq_classifier.ALL_CONFIGS": task("SEQ_CLS"),
        "test_feature_extraction_models.ALL_CONFIGS": task("FEATURE_EXTRACTION"),
    }


SIZES = dict(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=37)
BERT = {**SIZES, "max_position_embeddings": 64}
TINY: dict[str, tuple[str, dict[str, Any]]] = {  # name on the Hub -> class of transformers' configuration, its values
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
    "tiny-random-BloomForCausalLM": (  # with weights of 0.02, three layers lose small updates to rounding
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
