"""A small random model as a Hugging Face folder, made on the spot: Gemma 2's or Qwen 3's layout, its own tokeniser."""

import json

import jax

from infalign_jax.data.tokenizer import train_sentencepiece
from infalign_jax.models import heads, hf, hf_config, hf_save, transformer

GEMMA2 = {
    "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 32, "sliding_window": 6,
    "query_pre_attn_scalar": 8, "max_position_embeddings": 64, "hidden_activation": "gelu_pytorch_tanh",
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 32, "hidden_act": "silu",
    "tie_word_embeddings": True, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip


def write(folder, values, texts, *, kind="word", reward_head=False, seed=0):
    """Writes config.json, tokenizer.model and random weights; the tokeniser is trained on the texts."""
    blank = folder.parent / f"{folder.name}_without_weights"
    tokenizer = train_sentencepiece(texts, model_type=kind, vocab_size=400)
    tokenizer.save(blank)
    if reward_head:
        name = values["architectures"][0].replace("ForCausalLM", "ForSequenceClassification")
        values = {**values, "architectures": [name], "id2label": {"0": "LABEL_0"}}
    (blank / "config.json").write_text(json.dumps({**values, "vocab_size": tokenizer.vocab_size}))
    config = hf_config.from_hf(hf.read_config(blank))
    variables = (heads if reward_head else transformer).init(config, jax.random.key(seed))
    hf_save.save(folder, config, variables, blank)
    return folder
