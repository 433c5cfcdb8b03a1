"""The transformer of a config: a fresh one of its sizes, or the one in a Hugging Face folder."""

import importlib.util

from infalign_jax.models import config as model_config
from infalign_jax.models import hf, hf_config

# Keys of config.model that a folder's own config.json takes the place of.
SIZES = ("num_layers", "embed_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "tied_embeddings")


def architecture(config, vocab_size):
    """The `TransformerConfig` of the policy.

    Args:
      config: ConfigDict with the sections `model` and `lora`.
      vocab_size: of a fresh model; a folder's config.json has its own.

    Raises:
      ValueError: sizes that do not fit each other, no model in the folder, or one that is not supported; names the key.
    """
    section = config.model
    how = {name: section[name] for name in model_config.HOW}
    if config.lora.rank:
        how["lora_scale"] = config.lora.alpha / config.lora.rank
    if not section.path:
        try:
            sizes = {name: section[name] for name in SIZES}
            return model_config.from_dict({**sizes, **how, "vocab_size": vocab_size})
        except ValueError as error:
            raise ValueError(f"config.{error}") from error
    return from_folder(section.path, "config.model.path", **how)


def from_folder(folder, key, **how):
    """The `TransformerConfig` of a Hugging Face folder. Raises ValueError naming `key` and the folder."""
    try:
        sizes = hf.read_config(folder)
        if importlib.util.find_spec("safetensors") is None:
            raise ValueError("it needs the safetensors package; install infalign-jax[hf]")
        return hf_config.from_hf(sizes, **how)
    except ValueError as error:
        raise ValueError(f"{key} is {str(folder)!r}: {error}") from error


def check_weights(folder, key, *, reward_head=False):
    """Looks at the headers of a folder's weights, so that what is missing is said before anything is trained.

    Raises ValueError naming `key`, the folder and the file or tensor.
    """
    try:
        hf.load_shapes(folder, reward_head=reward_head)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
