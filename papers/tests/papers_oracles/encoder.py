"""A random text encoder that is small enough for a run of a second, with the tokenizer of MiniLM."""

import torch

WIDTH, LAYERS = 32, 2


def write_encoder(folder):
    """A BertModel of two layers of width 32, saved for `from_pretrained`; its name as a model of a run."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    from metalora_papers.metatt.text import _encoder_folder

    tokenizer = AutoTokenizer.from_pretrained(_encoder_folder("minilm"))
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    return f"hf:{folder}"
