"""Logical names of every parameter's axes, which `training` maps to the axes of a device mesh, and where activations lie."""

import math
import re

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

BATCH = ("data", "fsdp")  # mesh axes along which activations are split by prompt

# Logical axis of a parameter or activation -> mesh axes. `fsdp` shards parameters and, like `data`, the batch: a pass over
# whole sequences gathers the parameters of one layer after the other.
RULES = {
    "batch": BATCH,
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "head_dim": (),
    "layers": (),
    "norm": (),
    "lora": (),
    "levels": (),
    None: (),
}
# The same while tokens are drawn. A pass over one token of each rollout would gather all parameters for next to no work:
# here they stay, split along what does not touch the residual stream, and the few activations move.
DECODE_RULES = RULES | {"embed": (), "head_dim": ("fsdp",), "vocab": ("fsdp", "tensor"), "mlp": ("fsdp", "tensor")}

# Path of a parameter within its layer (or the tree, for what is not stacked) -> names of its axes.
_AXES = (
    (r"embed/embedding", ("vocab", "embed")),
    (r"unembed/kernel", ("embed", "vocab")),
    (r"q/kernel", ("embed", "heads", "head_dim")),
    (r"[kv]/kernel", ("embed", "kv_heads", "head_dim")),
    (r"o/kernel", ("heads", "head_dim", "embed")),
    (r"q/bias", ("heads", "head_dim")),
    (r"[kv]/bias", ("kv_heads", "head_dim")),
    (r"(gate|up)/kernel", ("embed", "mlp")),
    (r"down/kernel", ("mlp", "embed")),
    (r"[qk]_norm/scale", ("norm",)),
    (r"\w*norm/scale", ("embed",)),
    (r"reward_head/kernel", ("embed",)),
    (r"reward_head/bias", ()),
    (r"quantile_head/kernel", ("embed", "levels")),
    (r"quantile_head/bias", ("levels",)),
    (r"quantile_head/(location|scale)", ()),
    (r"(q|k|v|gate|up)/a", ("embed", "lora")),
    (r"o/a", ("heads", "head_dim", "lora")),
    (r"down/a", ("mlp", "lora")),
    (r"q/b", ("lora", "heads", "head_dim")),
    (r"[kv]/b", ("lora", "kv_heads", "head_dim")),
    (r"(gate|up)/b", ("lora", "mlp")),
    (r"(o|down)/b", ("lora", "embed")),
)


def path_name(path) -> str:
    """'layers/q/kernel' from the key path that jax.tree_util gives."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def axes_of(path: str, ndim: int) -> tuple[str, ...]:
    """Axis names of the parameter at `path`, such as 'layers/q/kernel'; ValueError if there is no such parameter."""
    prefix = ("layers",) if path.startswith("layers/") else ()
    for pattern, axes in _AXES:
        if re.fullmatch(pattern, path.removeprefix("layers/")) and len(prefix + axes) == ndim:
            return prefix + axes
    raise ValueError(f"there are no axis names for parameter {path} with {ndim} axes")


def logical_axes(variables):
    """A tree like `variables` (arrays or ShapeDtypeStructs) with a tuple of axis names in place of each leaf.

    Names: vocab, embed, heads, kv_heads, head_dim, norm, mlp, lora, levels, and layers for the axis on which layers are stacked.
    Raises ValueError for a parameter of unknown path or with another number of axes.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: axes_of(path_name(path).partition("/")[2], len(leaf.shape)), variables
    )


def spec(logical_axes, shape, mesh, rules=None):
    """The `PartitionSpec` of an array with these logical axes; a dimension its mesh axes do not divide is replicated."""
    entries = []
    for name, size in zip(logical_axes, shape, strict=True):
        axes = (rules or RULES)[name]
        ways = math.prod(mesh.shape[axis] for axis in axes)
        entries.append((axes if len(axes) > 1 else axes[0]) if axes and size % ways == 0 else None)
    return P(*entries)


def keep_batch_split(x, like, axis=0):
    """`x` with its axis of prompts split over the mesh axes BATCH, as a constraint on GSPMD.

    Without it GSPMD is free to follow the parameters instead: with those split over `fsdp` it gathers the whole batch on
    every device rather than one layer's parameters. The identity, and so is its gradient.

    Args:
      x: array, or a tree of arrays, with prompts along `axis`.
      like: a traced array whose type knows the mesh, such as an argument of the jitted function.
      axis: of the prompts.

    Returns:
      x; unconstrained where there is no mesh, or where it does not divide the prompts.
    """
    mesh = jax.typeof(like).sharding.mesh
    axes = tuple(name for name in BATCH if name in mesh.shape)
    ways = math.prod(mesh.shape[name] for name in axes)

    def constrain(x):
        if ways == 1 or x.shape[axis] % ways:
            return x
        spec = [P.UNCONSTRAINED] * x.ndim
        spec[axis] = axes
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))

    return jax.tree.map(constrain, x)


def look_up(table_VD, tokens_BX):
    """Rows `[B, X, D]` of an embedding table, split as the table is, by channels over `fsdp`, and by prompt over `data`.

    So that the lookup and its gradient stay within a device's share of the table. Tokens are few bytes: their split over
    `fsdp` is given up for it. Left to choose, GSPMD keeps that and gathers the table, and adds up gradients of all of it.
    The caller moves the result to the split of `keep_batch_split`.
    """
    mesh = jax.typeof(table_VD).sharding.mesh
    if (
        not set(BATCH) <= set(mesh.shape)
        or len(tokens_BX) % mesh.shape["data"]
        or table_VD.shape[1] % mesh.shape["fsdp"]
    ):
        return table_VD[tokens_BX]

    def place(x, *last):
        spec = P("data", *[None] * (x.ndim - 1 - len(last)), *last)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    return place(table_VD[place(tokens_BX)], "fsdp")


def decode_mesh(variables, num_prompts):
    """The mesh if tokens of so many prompts are drawn under DECODE_RULES; None where `fsdp` is 1 or prompts do not divide."""
    mesh = jax.typeof(variables["params"]["embed"]["embedding"]).sharding.mesh
    ways = math.prod(mesh.shape.get(name, 1) for name in BATCH)
    return None if mesh.shape.get("fsdp", 1) == 1 or num_prompts % ways else mesh


def decode_variables(variables, dtype, mesh):
    """Variables laid out by DECODE_RULES, matrices in `dtype`, in which they are used; as they are if `mesh` is None."""
    if mesh is None:
        return variables

    def lay(path, leaf, names):
        leaf = leaf if path[-1].key == "scale" else leaf.astype(dtype)  # norms are computed in float32
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec(names, leaf.shape, mesh, DECODE_RULES)))

    return jax.tree_util.tree_map_with_path(lay, variables, logical_axes(variables))


def keep_rows_whole(x, mesh):
    """Activations of all prompts of a `data` group on each of its devices; as they are if `mesh` is None."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P("data", *[None] * (x.ndim - 1))))


def keep_columns_split(x, mesh, name):
    """The same, but each device has its share of the last axis, which DECODE_RULES know by `name`."""
    last = spec((name,), x.shape[-1:], mesh, DECODE_RULES)
    place = P("data", *[P.UNCONSTRAINED] * (x.ndim - 2), *last)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, place))


def from_columns_to_rows(x, mesh, name):
    """From the split of `keep_columns_split` to that by prompts: what a matmul with a split kernel puts out, moved on.

    Told only where the result is to lie, GSPMD would gather the kernel.
    """
    return x if mesh is None else keep_batch_split(keep_columns_split(x, mesh, name), x)


def from_rows_to_columns(x, mesh, name):
    """The way back, for what the next matmul contracts with its split kernel."""
    return x if mesh is None else keep_columns_split(keep_batch_split(x, x), mesh, name)
