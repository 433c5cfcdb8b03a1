"""The device mesh, and what lies where on it."""

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from infalign_jax.models.sharding import spec
from infalign_jax.training.distributed import many

AXES = ("data", "fsdp", "tensor")


def make_mesh(sizes, devices=None):
    """A mesh with the axes `data`, `fsdp`, `tensor`.

    TPU slices joined by the data centre network lie along `data`, outermost: what crosses that network is the gradient of
    each device's share of the parameters, once a microbatch.

    Args:
      sizes: mapping from axis name to its number of devices; one of them may be -1 and takes all that are left.
      devices: the devices to use, all by default.

    Returns:
      `jax.sharding.Mesh` with automatic (GSPMD) axes.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or `data` is no multiple of the number of slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [int(sizes[axis]) for axis in AXES]
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        raise ValueError(f"config.mesh is {dict(zip(AXES, shape, strict=True))}; sizes are >= 1, and -1 at most once")
    if -1 in shape:
        shape[shape.index(-1)] = max(len(devices) // -int(np.prod(shape)), 1)
    if int(np.prod(shape)) != len(devices):
        raise ValueError(f"config.mesh is {dict(zip(AXES, shape, strict=True))}, but there are {len(devices)} devices")
    kinds = (AxisType.Auto,) * len(AXES)
    slices = len({slice_of(device) for device in devices})
    if slices == 1 and devices[0].platform != "tpu":
        return jax.make_mesh(tuple(shape), AXES, axis_types=kinds, devices=devices)
    if slices == 1:  # an axis may take part of a side of the torus: 32 chips of 8 x 8
        return Mesh(
            mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True), AXES, axis_types=kinds
        )
    if shape[0] % slices:
        raise ValueError(
            f"config.mesh.data is {shape[0]}, but there are {slices} slices; it must be a multiple of that"
        )
    inside = (shape[0] // slices, *shape[1:])
    grid = mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1), devices=devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=kinds)


def slice_of(device):
    """The number of the TPU slice a device is in; 0 for other devices."""
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else 0


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
    if not many():
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    def whole(array):
        if getattr(array, "is_fully_replicated", True):  # every process has all of it: nothing to send
            return np.asarray(array.addressable_data(0) if isinstance(array, jax.Array) else array)
        return multihost_utils.process_allgather(array, tiled=True)

    return jax.tree.map(whole, tree)


def own_rows(mesh, tree):
    """The rows of the leading (batch) axis that this process answers for: each row is one process's, the first that holds it.

    Args:
      mesh: device mesh.
      tree: device arrays with equal leading axes.

    Returns:
      Row numbers, ascending, and a tree of host arrays with these rows.
    """
    size = jax.tree.leaves(tree)[0].shape[0]
    if not many():
        return np.arange(size), jax.device_get(tree)
    places = jax.tree.map(lambda x: NamedSharding(mesh, spec(("batch",) + (None,) * (x.ndim - 1), x.shape, mesh)), tree)
    tree = jax.jit(lambda x: x, out_shardings=places)(tree)
    first = jax.tree.leaves(tree)[0]
    owners = np.full(size, jax.process_count())
    for device, index in first.sharding.devices_indices_map(first.shape).items():
        owners[index[0]] = np.minimum(owners[index[0]], device.process_index)
    rows = np.flatnonzero(owners == jax.process_index())

    def read(array):
        found = np.zeros(array.shape, array.dtype)
        for shard in array.addressable_shards:
            found[shard.index] = shard.data
        return found[rows]

    return rows, jax.tree.map(read, tree)


def join_rows(rows, values, size):
    """Host rows that processes hold apart, put together on every process.

    Args:
      rows: this process's row numbers, as from `own_rows`.
      values: float array, one entry of the leading axis for each.
      size: number of rows in all.
    """
    if not many():
        return values
    from jax.experimental import multihost_utils

    mine = np.zeros((size, *values.shape[1:]), values.dtype)
    mine[rows] = values
    return np.asarray(multihost_utils.process_allgather(mine)).sum(0, dtype=values.dtype)
