"""Hugging Face folders read: one table of names and axes serves every family, here and in `hf_save`.

Tensors are read lazily and by slice, so a host touches only the bytes of its own shards. Needs the `safetensors` package
(extra `hf`).
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from infalign_jax.json_object import read_object
from infalign_jax.models import heads, hf_config, sharding, transformer

# Our path -> (their name, their axes). Axes carry our logical names; '*' joins two that are one axis there.
_TENSORS = {
    "embed/embedding": ("model.embed_tokens.weight", ("vocab", "embed")),
    "unembed/kernel": ("lm_head.weight", ("vocab", "embed")),
    "final_norm/scale": ("model.norm.weight", ("embed",)),
    "reward_head/kernel": ("score.weight", ("one", "embed")),
    "layers/q/kernel": ("self_attn.q_proj.weight", ("heads*head_dim", "embed")),
    "layers/k/kernel": ("self_attn.k_proj.weight", ("kv_heads*head_dim", "embed")),
    "layers/v/kernel": ("self_attn.v_proj.weight", ("kv_heads*head_dim", "embed")),
    "layers/o/kernel": ("self_attn.o_proj.weight", ("embed", "heads*head_dim")),
    "layers/q/bias": ("self_attn.q_proj.bias", ("heads*head_dim",)),
    "layers/k/bias": ("self_attn.k_proj.bias", ("kv_heads*head_dim",)),
    "layers/v/bias": ("self_attn.v_proj.bias", ("kv_heads*head_dim",)),
    "layers/q_norm/scale": ("self_attn.q_norm.weight", ("norm",)),
    "layers/k_norm/scale": ("self_attn.k_norm.weight", ("norm",)),
    "layers/gate/kernel": ("mlp.gate_proj.weight", ("mlp", "embed")),
    "layers/up/kernel": ("mlp.up_proj.weight", ("mlp", "embed")),
    "layers/down/kernel": ("mlp.down_proj.weight", ("embed", "mlp")),
    "layers/attention_norm/scale": ("input_layernorm.weight", ("embed",)),
    "layers/mlp_norm/scale": ("post_attention_layernorm.weight", ("embed",)),
}
# Where a norm follows each block too, the name that others give to the second norm belongs to the first of those.
_POST_NORMS = {
    "layers/post_attention_norm/scale": ("post_attention_layernorm.weight", ("embed",)),
    "layers/mlp_norm/scale": ("pre_feedforward_layernorm.weight", ("embed",)),
    "layers/post_mlp_norm/scale": ("post_feedforward_layernorm.weight", ("embed",)),
}
_IGNORED = ("rotary_emb.inv_freq", "vision_tower.", "multi_modal_projector.")
INDEX = "model.safetensors.index.json"
_PREFIXES = ("model.language_model.", "language_model.model.", "model.")  # in front of embed_tokens, layers and norm
_DTYPES = ("F32", "BF16", "F16")


def read_config(folder) -> dict:
    """The parsed config.json of a folder; ValueError if there is none, or no JSON object in it."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{path} does not exist; a Hugging Face model folder has a config.json")
    return read_object(path)


def open_weights(path):
    """A safetensors file, opened; nothing but its header is read. Raises ValueError where it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def end_ids(folder, eos_id: int) -> tuple[int, ...]:
    """Tokens that end a response: `eos_id`, and those that a folder's generation_config.json names, if it has one.

    Chat models end a turn with another token than a text.
    """
    path = Path(folder) / "generation_config.json"
    more = read_object(path).get("eos_token_id") if path.is_file() else None
    ids = [] if more is None else more if isinstance(more, list) else [more]
    for i in ids:
        if isinstance(i, bool) or not isinstance(i, int) or i < 0:
            raise ValueError(f"{path} has eos_token_id = {more!r}; it must be a token's number, or a list of them")
    return tuple(sorted({eos_id, *ids}))


class _Folder:
    """The safetensors files of a folder as one lazy mapping from tensor name (common prefix removed) to slices."""

    def __init__(self, folder):
        folder = self.path = Path(folder)
        files = self._files(folder)
        missing = [name for name in files if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"{folder / missing[0]} does not exist; weights are read from safetensors files")
        self.tensors = {}
        for name in files:
            handle = open_weights(folder / name)
            for key in handle.keys():  # noqa: SIM118  (not a dict)
                self.tensors[self._plain(key)] = (handle, key)

    @staticmethod
    def _files(folder):
        if not (folder / INDEX).is_file():
            return ["model.safetensors"]
        names = read_object(folder / INDEX).get("weight_map")
        if not isinstance(names, dict) or not names or not all(Path(str(n)).name == n for n in names.values()):
            raise ValueError(f"{folder / INDEX} has no weight_map from tensors to names of files in the folder")
        return sorted(set(names.values()))

    @staticmethod
    def _plain(key):
        for prefix in _PREFIXES:
            if key.startswith(prefix):
                return "model." + key.removeprefix(prefix)
        return key.removeprefix("language_model.")

    def slice(self, name):
        handle, key = self.tensors[name]
        return handle.get_slice(key)


def module_name(path) -> str:
    """Their name, within a layer, of the module that holds our parameter at `path`: 'self_attn.q_proj'."""
    return _TENSORS[path][0].removesuffix(".weight")


def _table(config):
    return _TENSORS | _POST_NORMS if config.post_norms else _TENSORS


def names(config, path):
    """Their names of the parameter at our `path`: one, or one for each layer."""
    name = _table(config)[path][0]
    if path.startswith("layers/"):
        return [f"model.layers.{i}.{name}" for i in range(config.num_layers)]
    return [name]


def their_axes(config, path):
    """The axes of their matrix for our parameter at `path`: for each the names of our axes that it joins."""
    return [axis.split("*") for axis in _table(config)[path][1]]


def _read(source, config, path, axes, shape, index):
    """The block `index` (slices of our array) of the parameter at `path`, reading only the bytes it needs."""
    stacked = axes[0] == "layers"
    layers = range(*index[0].indices(shape[0])) if stacked else [0]
    axes, shape, index = (x[1:] if stacked else x for x in (axes, shape, index))
    size = dict(zip(axes, shape, strict=True), one=1)
    want = dict(zip(axes, [i.indices(n)[:2] for i, n in zip(index, shape, strict=True)], strict=True), one=(0, 1))
    groups = their_axes(config, path)
    bounds, block = [], []
    for group in groups:
        # Of two joined axes the first may be cut; the second is read whole and cut below.
        inner = size[group[1]] if len(group) == 2 else 1
        start, stop = want[group[0]]
        bounds.append(slice(start * inner, stop * inner))
        block += [] if group == ["one"] else [stop - start, inner][: len(group)]
    order = [name for group in groups for name in group if name != "one"]
    parts = []
    for layer in layers:
        part = source.slice(names(config, path)[layer])[tuple(bounds)].reshape(block)
        part = part.transpose([order.index(name) for name in axes])
        joined = {group[1] for group in groups if len(group) == 2}
        parts.append(part[tuple(slice(*want[name]) if name in joined else slice(None) for name in axes)])
    return np.stack(parts) if stacked else parts[0]


def _check(source, config, shapes):
    """Every tensor needed is there with the right shape, and every tensor there is needed."""
    needed = {}
    for path, leaf in shapes.items():
        axes = sharding.axes_of(path, len(leaf.shape))
        size = dict(zip(axes, leaf.shape, strict=True), one=1)
        theirs = tuple(int(np.prod([size[name] for name in group])) for group in their_axes(config, path))
        needed |= dict.fromkeys(names(config, path), theirs)
    for name, shape in needed.items():
        if name not in source.tensors:
            raise ValueError(f"{source.path}: the folder has no tensor {name}, which its config.json calls for")
        found = source.slice(name)
        if tuple(found.get_shape()) != shape:
            both = f"{tuple(found.get_shape())}; config.json calls for {shape}"
            raise ValueError(f"{source.path}: tensor {name} has shape {both}")
        if found.get_dtype() not in _DTYPES:
            legal = ", ".join(_DTYPES)
            raise ValueError(f"{source.path}: tensor {name} has dtype {found.get_dtype()}; supported are {legal}")
    for name in source.tensors:
        tied = name == "lm_head.weight" and config.tied_embeddings  # a copy of the embedding table
        if name not in needed and not tied and not any(part in name for part in _IGNORED):
            raise ValueError(f"{source.path}: the folder has tensor {name}, which this architecture has no place for")


def _open(folder, reward_head, changes):
    """(config, the open folder, shapes of the variables, [(path, shape)] of them): all that can be wrong has been looked at."""
    values = read_config(folder)
    try:
        config = hf_config.from_hf(values, **changes)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    source = _Folder(folder)
    if reward_head and config.tied_embeddings is False and "lm_head.weight" not in source.tensors:
        config = config.replace(tied_embeddings=True)  # a classifier has no output head to be untied
    if reward_head:
        labels = source.slice("score.weight").get_shape()[0] if "score.weight" in source.tensors else 0
        if labels != 1:
            raise ValueError(f"{folder} is a classifier of {labels} labels; a reward model is one of a single label")
    make = heads.init if reward_head else transformer.init
    shapes = jax.eval_shape(lambda key: make(config, key), jax.random.key(0))
    flat, _ = jax.tree_util.tree_flatten_with_path(shapes)
    leaves = [(sharding.path_name(path).removeprefix("params/"), leaf) for path, leaf in flat]
    _check(source, config, {path: leaf for path, leaf in leaves if path != "reward_head/bias"})
    return config, source, shapes, leaves


def load_shapes(folder, *, reward_head: bool = False, **changes):
    """(config, variables) as `load` gives them, but shapes only: the headers of the files are read and checked, no weight is.

    Raises ValueError as `load` does.
    """
    config, _, variables, _ = _open(folder, reward_head, changes)
    return config, variables


def load(folder, *, reward_head: bool = False, shardings=None, **changes):
    """(config, variables) of a Hugging Face folder.

    reward_head  read a `*ForSequenceClassification` folder with one label: its score becomes `reward_head`, so that
                 `heads.reward` gives its scores
    shardings    None for host arrays moved to the default device, or a tree of Shardings like the variables; each
                 process then reads only the slices its own devices hold
    changes      fields of the config to replace, e.g. dtype='float32', param_dtype='bfloat16', remat='layer'

    Raises ValueError naming the file, tensor or option when something is missing, superfluous or unsupported.
    """
    config, source, tree, leaves = _open(folder, reward_head, changes)
    places = [None] * len(leaves) if shardings is None else jax.tree.leaves(shardings)
    dtype = jnp.dtype(config.param_dtype)

    def array(path, leaf, place):
        if path == "reward_head/bias":
            return jnp.zeros((), dtype)
        axes = sharding.axes_of(path, len(leaf.shape))
        read = lambda index: _read(source, config, path, axes, leaf.shape, index).astype(dtype)  # noqa: E731
        if place is None:
            return jnp.asarray(read((slice(None),) * len(leaf.shape)))
        return jax.make_array_from_callback(leaf.shape, place, read)

    arrays = [array(*leaf, place) for leaf, place in zip(leaves, places, strict=True)]
    return config, jax.tree.unflatten(jax.tree.structure(tree), arrays)
