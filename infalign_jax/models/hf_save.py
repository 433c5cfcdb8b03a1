"""Our parameters written as a Hugging Face folder, bit for bit, in files that no host has to hold all of.

Needs the `safetensors` package (extra `hf`).
"""

import functools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from infalign_jax.models import hf, hf_config, sharding
from infalign_jax.models.config import HOW

SHARD_BYTES = 5_000_000_000  # of one file
_SMALL_FILES = (".json", ".model", ".jinja", ".txt")


def save(folder, config, variables, source, *, shard_bytes=SHARD_BYTES):
    """Write `variables` as a Hugging Face folder that `transformers` loads: weights, config.json, tokeniser files.

    Above `shard_bytes` the weights are cut into files of at most that size (one tensor may be larger) with an index. All
    processes of a pod call it together and share the folder: each writes its own of the files, one at a time, and holds
    no more than one of them; parameters cut over hosts are gathered tensor by tensor.

    source: the folder the architecture came from; its config.json (with the dtype updated) and small files are copied.
    Raises ValueError if its config.json describes another architecture, for adapters that are not merged, and for what the
    format has no place for.
    """
    from safetensors.numpy import save_file

    folder, values = Path(folder), _config_of(config, variables, source)
    plan = plan_files(config, variables, shard_bytes)
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("model*.safetensors*"):
            path.unlink()  # another number of files would leave some of them behind
        for path in sorted(Path(source).iterdir()):
            if path.is_file() and path.suffix in _SMALL_FILES and "safetensors" not in path.name:
                shutil.copyfile(path, folder / path.name)
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
        if len(plan) > 1:
            index = {name: file for file, tensors in plan.items() for name in tensors}
            total = sum(tensor.nbytes for tensors in plan.values() for tensor in tensors.values())
            text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
            (folder / hf.INDEX).write_text(text + "\n")
    _meet("begin")
    for number, (file, tensors) in enumerate(plan.items()):
        mine = number % jax.process_count() == jax.process_index()
        arrays = {name: tensor.read(mine) for name, tensor in tensors.items()}  # a gather, hence by all processes
        if mine:
            save_file(arrays, folder / file, metadata={"format": "pt"})
    _meet("end")


class Tensor(NamedTuple):
    """A tensor to be written: its size in bytes, and `read(here)`, the array in their layout, or None if not wanted here."""

    nbytes: int
    read: Callable


def plan_files(config, variables, shard_bytes):
    """{file name: {their name: `Tensor`}}: which tensors go into which file, in the order of the layers."""
    params, tensors = variables["params"], {}
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    for keys, leaf in flat:
        path = sharding.path_name(keys)
        if path == "reward_head/bias":
            if float(leaf) != 0.0:
                raise ValueError(f"reward_head has bias {float(leaf)}; the format has no place for one, subtract it")
            continue
        names = hf.names(config, path)
        for layer, name in enumerate(names):
            read = functools.partial(_their_array, config, path, leaf, layer if path.startswith("layers/") else None)
            tensors[name] = Tensor(leaf.nbytes // len(names), read)
    files, room = [{}], shard_bytes
    for name in sorted(tensors, key=_natural):
        if files[-1] and tensors[name].nbytes > room:
            files.append({})
            room = shard_bytes
        files[-1][name] = tensors[name]
        room -= tensors[name].nbytes
    if len(files) == 1:
        return {"model.safetensors": files[0]}
    return {f"model-{i:05d}-of-{len(files):05d}.safetensors": file for i, file in enumerate(files, 1)}


def _natural(name):
    """Layer 10 after layer 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _their_array(config, path, leaf, layer, here):
    """One tensor of our parameter at `path` (of its `layer`, where stacked), whole, in their layout and its own dtype."""
    array = _fetch(leaf, layer, here)
    if array is None:
        return None
    axes, groups = sharding.axes_of(path, leaf.ndim), hf.their_axes(config, path)
    axes = axes if layer is None else axes[1:]
    size = dict(zip(axes, array.shape, strict=True), one=1)
    order = [axes.index(name) for group in groups for name in group if name != "one"]
    shape = [int(np.prod([size[name] for name in group])) for group in groups]
    return np.ascontiguousarray(array.transpose(order).reshape(shape))


def _fetch(leaf, layer, here):
    """`leaf`, or one layer of it, as a host array, or None where it is not wanted `here`."""
    if not getattr(leaf, "is_fully_addressable", True):  # cut over hosts: all of them take part
        whole = jax.NamedSharding(leaf.sharding.mesh, jax.P())
        leaf = _whole(whole)(leaf, layer).addressable_data(0)
    elif here and layer is not None:
        leaf = leaf[layer]
    return np.asarray(leaf) if here else None


@functools.cache
def _whole(place):
    return jax.jit(lambda x, layer: x if layer is None else x[layer], out_shardings=place)


def _meet(when):
    """Processes wait for each other: none writes before the folder is there, none goes on before all have written."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"infalign hf.save {when}")


def _config_of(config, variables, source):
    """The config.json to write: that of `source`, with the dtype of the parameters. ValueError if it is of another model."""
    values = hf.read_config(source)
    same = {name: getattr(config, name) for name in (*HOW, "lora_scale")}
    theirs = hf_config.from_hf(values, **same, tied_embeddings=config.tied_embeddings)
    if theirs != config:
        raise ValueError(f"{source} describes another architecture than the model to be saved")
    if "lora" in variables:
        raise ValueError("variables has adapters; merge them into the parameters before saving")
    text = hf_config.text_config(values)
    if text is not values:  # of a model that also sees images the text model alone is saved
        kept = {key: values[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in values}
        values = {"architectures": ["Gemma3ForCausalLM"], **kept, **text}
    values.pop("torch_dtype", None)
    values["dtype"] = str(variables["params"]["embed"]["embedding"].dtype)
    return values
