"""Small models of many families of transformers, built from their configurations alone."""

from collections.abc import Callable

from torch import nn
from transformers import AutoConfig, AutoModel

TEXT = dict(vocab_size=60, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
GROUPED = TEXT | dict(num_key_value_heads=1, head_dim=8)
IMAGE = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32)
STAGES = dict(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)
SEQUENCE = dict(vocab_size=60, d_model=16, num_heads=2, num_layers=2, d_ff=32, d_kv=8)
BART = dict(vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32)  # fmt: skip

FAMILIES: dict[str, dict] = {
    "albert": TEXT | dict(embedding_size=16),
    "bert": TEXT,
    "deberta-v2": TEXT,
    "distilbert": dict(vocab_size=60, dim=16, hidden_dim=32, n_layers=2, n_heads=2),
    "electra": TEXT | dict(embedding_size=16),
    "falcon": dict(vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2),
    "gemma": GROUPED,
    "gemma4_text": GROUPED,
    "gpt2": dict(vocab_size=60, n_embd=16, n_layer=2, n_head=2),
    "gpt_neox": TEXT,
    "llama": GROUPED,
    "mistral": GROUPED,
    "modernbert": TEXT | dict(pad_token_id=0),
    "mpnet": TEXT,
    "opt": dict(vocab_size=60, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
                word_embed_proj_dim=16),
    "phi": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "roberta": TEXT,
    "bart": BART,
    "mbart": BART,
    "t5": SEQUENCE,
    "whisper": BART | dict(num_mel_bins=8, max_source_positions=10, pad_token_id=0, decoder_start_token_id=1),
    "beit": IMAGE,
    "deit": IMAGE,
    "dinov2": IMAGE,
    "segformer": dict(num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16],
                      num_attention_heads=[1, 2], mlp_ratios=[2, 2], patch_sizes=[3, 3], strides=[2, 2],
                      decoder_hidden_size=16),
    "swin": STAGES,
    "swinv2": STAGES,
    "vit": IMAGE,
    "wav2vec2": TEXT | dict(conv_dim=[8, 8], conv_stride=[2, 2], conv_kernel=[3, 3], num_conv_pos_embeddings=4,
                            num_conv_pos_embedding_groups=2),
}  # fmt: skip
"""Type of a model -> its sizes."""


def small_model(family: str, make: Callable = AutoModel, **changes) -> nn.Module:
    """A small model of a family.

    Args:
        family: One of `FAMILIES`.
        make: What builds it, such as AutoModelForCausalLM.
        changes: Settings of the configuration that differ.
    """
    return make.from_config(AutoConfig.for_model(family, **FAMILIES[family] | changes)).eval()
