"""Small random models of every family, made by `transformers` and saved the way it saves them."""

import json

import torch
import transformers


def _rope(theta, **scaling):
    return {"rope_theta": theta, "rope_type": "default", **scaling}


SIZES = dict(
    vocab_size=99, hidden_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    intermediate_size=40, max_position_embeddings=512, pad_token_id=0, eos_token_id=1, bos_token_id=2,
)  # fmt: skip
_LLAMA3 = _rope(
    500.0,
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
# name -> (class prefix, config fields on top of the sizes)
FAMILIES = {
    "gemma2": ("Gemma2", dict(sliding_window=8, query_pre_attn_scalar=24)),
    "gemma2_odd": ("Gemma2", dict(num_key_value_heads=1, head_dim=10, num_hidden_layers=3, sliding_window=5,
                                  attn_logit_softcapping=3.0, final_logit_softcapping=2.0)),
    "gemma3": ("Gemma3Text", dict(num_hidden_layers=7, sliding_window=6, rope_parameters={
        "sliding_attention": _rope(100.0), "full_attention": _rope(10_000.0, rope_type="linear", factor=8.0)})),
    "llama": ("Llama", dict(rope_parameters=_LLAMA3, rms_norm_eps=1e-5)),
    "llama_tied": ("Llama", dict(tie_word_embeddings=True, num_key_value_heads=4, head_dim=6)),
    "qwen2": ("Qwen2", dict(rope_parameters=_rope(1000.0), head_dim=12)),
    "qwen2_window": ("Qwen2", dict(head_dim=12, use_sliding_window=True, sliding_window=7, max_window_layers=2)),
    "qwen3": ("Qwen3", dict(tie_word_embeddings=True, head_dim=20)),
}  # fmt: skip


def make(name, folder, *, kind="ForCausalLM", dtype=torch.float32, shard_size="5GB", **extra):
    """Save a random model of a family, every parameter off its initial constant, and return it (eval mode)."""
    prefix, changes = FAMILIES[name]
    config_class = getattr(transformers, prefix + "Config")
    config = config_class(**{**SIZES, **changes, **extra}, attn_implementation="eager")
    torch.manual_seed(0)
    model = getattr(transformers, prefix.removesuffix("Text") + kind)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    model = model.to(dtype).eval()
    model.save_pretrained(folder, max_shard_size=shard_size)
    assert json.loads((folder / "config.json").read_text())["model_type"]
    return model
