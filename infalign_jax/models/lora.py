"""Low-rank adapters: the policy is W + (alpha / rank)·A·B over parameters it shares with its reference.

Hu et al. 2021, arXiv 2106.09685. Adapters are {'lora': {'layers': {target: {'a': [L, *inputs, rank], 'b': [L, rank,
*outputs]}}}} beside 'params'; `TransformerConfig.lora_scale` is alpha / rank. On disk they are PEFT's two files.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from infalign_jax.json_object import read_object
from infalign_jax.models import hf, transformer

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_INPUT_AXES = {"o": 2}  # of a kernel without its layer axis; the other targets have one
# Options of an adapter_config.json that change what the adapter computes, with the values that switch them off.
_OFF = {
    "use_dora": (False, None), "use_rslora": (False, None), "rank_pattern": ({}, None), "alpha_pattern": ({}, None),
    "modules_to_save": (None, []), "layers_to_transform": (None,), "bias": ("none", None), "fan_in_fan_out": (False, None),
    "lora_bias": (False, None), "target_parameters": (None, []), "trainable_token_indices": (None,),
}  # fmt: skip


def init(config, key, rank, targets):
    """{'lora': ...} in float32 with B = 0, so that the policy begins as its reference; can be traced by jit.

    A is normal with variance 1 / inputs.

    Raises:
      ValueError: rank below 1, or an unknown target.
    """
    if rank < 1:
        raise ValueError(f"lora rank is {rank}; it must be at least 1")
    kernels = jax.eval_shape(lambda key: transformer.init(config, key), key)["params"]["layers"]
    layers = {}
    for index, target in enumerate(_check_targets(targets)):
        L, *sizes = kernels[target]["kernel"].shape
        cut = _INPUT_AXES.get(target, 1)
        inputs, outputs = sizes[:cut], sizes[cut:]
        a = jax.random.normal(jax.random.fold_in(key, index), (L, *inputs, rank)) * float(np.prod(inputs)) ** -0.5
        layers[target] = {"a": a, "b": jnp.zeros((L, rank, *outputs))}
    return {"lora": {"layers": layers}}


def _check_targets(targets):
    for target in targets:
        if target not in TARGETS:
            raise ValueError(f"lora target is {target!r}; legal are {', '.join(map(repr, TARGETS))}")
    return [target for target in TARGETS if target in targets]


def scale(adapters, alpha):
    """The adapters of W + alpha·(alpha_lora / rank)·A·B: B times `alpha`, A as it is. 0 is the reference, 1 the policy."""
    layers = {
        target: {"a": pair["a"], "b": (alpha * pair["b"]).astype(pair["b"].dtype)}
        for target, pair in adapters["layers"].items()
    }
    return {"layers": layers}


def merge(config, variables):
    """{'params': W + lora_scale·A·B}, computed in float32, in the stored dtype; the same function as with adapters.

    Variables without adapters are returned as they are.
    """
    if "lora" not in variables:
        return variables
    layers = dict(variables["params"]["layers"])
    for target, pair in variables["lora"]["layers"].items():
        kernel = layers[target]["kernel"]
        delta = jnp.einsum("l...r,lrx->l...x", pair["a"], pair["b"].reshape(*pair["b"].shape[:2], -1))
        merged = kernel.astype(jnp.float32) + config.lora_scale * delta.reshape(kernel.shape)
        layers[target] = {**layers[target], "kernel": merged.astype(kernel.dtype)}
    return {"params": {**variables["params"], "layers": layers}}


def _name(target, layer, part):
    module = hf.module_name(f"layers/{target}/kernel")
    return f"base_model.model.model.layers.{layer}.{module}.lora_{part.upper()}.weight"


def save(folder, config, adapters, base):
    """Writes adapters as a PEFT folder: `PeftModel.from_pretrained(model, folder)` computes what we do.

    Args:
      folder: made if need be.
      config: `TransformerConfig` with the `lora_scale` they were trained with.
      adapters: the tree under 'lora', host or device arrays.
      base: the Hugging Face folder or hub name of the model they belong to, as PEFT is to find it.
    """
    from safetensors.numpy import save_file

    layers, tensors = adapters["layers"], {}
    for target, pair in layers.items():
        a, b = np.asarray(pair["a"], np.float32), np.asarray(pair["b"], np.float32)
        rank = a.shape[-1]
        for layer in range(len(a)):
            tensors[_name(target, layer, "a")] = np.ascontiguousarray(a[layer].reshape(-1, rank).T)
            tensors[_name(target, layer, "b")] = np.ascontiguousarray(b[layer].reshape(rank, -1).T)
    values = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": rank,
        "lora_alpha": config.lora_scale * rank, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False,
        "target_modules": [hf.module_name(f"layers/{target}/kernel").split(".")[-1] for target in layers],
        "inference_mode": True,
    }  # fmt: skip
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n")
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def load(folder, config):
    """(config with the adapter's `lora_scale`, {'lora': ...}) of a PEFT folder for a model of this config.

    Raises:
      ValueError: a file is missing, an option that we have no counterpart for, a tensor that is missing, superfluous or
        of another shape.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder / name} does not exist; an adapter folder has both {CONFIG_FILE} and {WEIGHTS_FILE}"
            )
    values, weights = read_object(folder / CONFIG_FILE), hf.open_weights(folder / WEIGHTS_FILE)
    tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118  (not a dict)
    if values.get("peft_type") != "LORA":
        raise ValueError(f"{folder / CONFIG_FILE} has peft_type {values.get('peft_type')!r}; supported is 'LORA'")
    for key, legal in _OFF.items():
        if values.get(key) not in legal:
            raise ValueError(f"{folder / CONFIG_FILE} has {key} = {values[key]!r}, which is not supported")
    for key, whole in (("r", True), ("lora_alpha", False)):
        value = values.get(key)
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not value > 0:
            words = "positive whole" if whole else "positive"
            raise ValueError(f"{folder / CONFIG_FILE} has {key} = {value!r}; it must be a {words} number")
    rank = values["r"]
    found = [target for target in TARGETS if _name(target, 0, "a") in tensors]
    shapes = jax.eval_shape(lambda key: init(config, key, rank, found), jax.random.key(0))["lora"]["layers"]

    def stack(target, part, leaf):
        parts = []
        for layer in range(config.num_layers):
            name, theirs = _name(target, layer, part), leaf.shape[1:]
            tensor = tensors.pop(name, None)
            want = (rank, int(np.prod(theirs[:-1]))) if part == "a" else (int(np.prod(theirs[1:])), rank)
            if tensor is None or tensor.shape != want:
                shape = "is missing" if tensor is None else f"has shape {tensor.shape}"
                raise ValueError(f"{folder / WEIGHTS_FILE}: {name} {shape}; this model calls for {want}")
            parts.append(tensor.astype(np.float32).T.reshape(theirs))
        return jnp.asarray(np.stack(parts))

    layers = {t: {part: stack(t, part, leaf) for part, leaf in pair.items()} for t, pair in shapes.items()}
    if tensors or not layers:
        what = f"has {next(iter(tensors))}, which this model has no place for" if tensors else "holds no adapters"
        raise ValueError(f"{folder / WEIGHTS_FILE} {what}")
    return config.replace(lora_scale=values["lora_alpha"] / rank), {"lora": {"layers": layers}}
