"""The device mesh, and the one table from logical axes to mesh axes."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from infalign_jax.models.sharding import BATCH

AXES = ("data", "fsdp", "tensor")

# Logical axis of a parameter or activation -> mesh axes. `fsdp` shards parameters and, like `data`, the batch.
RULES = {
    "batch": BATCH,
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "head_dim": None,
    "layers": None,
    "lora": None,
    "levels": None,
    None: None,
}


def make_mesh(sizes, devices=None):
    """A mesh with the axes `data`, `fsdp`, `tensor`.

    Args:
      sizes: mapping from axis name to its number of devices; one of them may be -1 and takes all that are left.
      devices: the devices to use, all by default.

    Returns:
      `jax.sharding.Mesh` with automatic (GSPMD) axes.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [int(sizes[axis]) for axis in AXES]
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        raise ValueError(f"config.mesh is {dict(zip(AXES, shape, strict=True))}; sizes are >= 1, and -1 at most once")
    if -1 in shape:
        shape[shape.index(-1)] = max(len(devices) // -int(np.prod(shape)), 1)
    if int(np.prod(shape)) != len(devices):
        raise ValueError(f"config.mesh is {dict(zip(AXES, shape, strict=True))}, but there are {len(devices)} devices")
    return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def spec(logical_axes, shape, mesh):
    """The `PartitionSpec` of an array with these logical axes; a dimension its mesh axes do not divide is replicated."""
    entries = []
    for name, size in zip(logical_axes, shape, strict=True):
        axes = RULES[name]
        ways = int(np.prod([mesh.shape[axis] for axis in (axes if isinstance(axes, tuple) else (axes,)) if axis]))
        entries.append(axes if size % ways == 0 else None)
    return P(*entries)


def param_shardings(mesh, abstract, axes):
    """A `NamedSharding` for each leaf of a tree of shapes, given the tree of their logical axes (tuples of names)."""
    return jax.tree.map(lambda leaf, names: NamedSharding(mesh, spec(names, leaf.shape, mesh)), abstract, axes)


def replicated(mesh):
    """The sharding of a value every device holds whole."""
    return NamedSharding(mesh, P())


def put_batch(mesh, batch):
    """Host arrays, equal on every process, to global arrays sharded along their first axis (the batch).

    Each process copies only the rows its own devices hold. A first axis that the batch devices do not divide is
    replicated.
    """

    def put(array):
        array = np.asarray(array)
        names = ("batch",) + (None,) * (array.ndim - 1) if array.ndim else ()
        sharding = NamedSharding(mesh, spec(names, array.shape, mesh))
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, batch)


def fetch(tree):
    """Global arrays to host numpy arrays, whole on every process."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)
