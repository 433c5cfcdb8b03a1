"""The output head on a mesh: each device has the logits of its own prompts, with the head gathered once.

GSPMD alone would gather the head, or sum its gradient over the devices, in every pass of a loop over token slots.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from infalign_jax.models.sharding import BATCH


def _mesh(variables):
    return jax.typeof(variables["params"]["embed"]["embedding"]).sharding.mesh


def ways(variables, num_prompts):
    """Over how many devices `num_prompts` are split on the mesh of `variables`: 1 where they are not."""
    mesh = _mesh(variables)
    count = math.prod(mesh.shape.get(name, 1) for name in BATCH)
    return 1 if num_prompts % count else count


def on_own_prompts(config, function, variables, arrays):
    """`function(heads, *arrays)` with every device's own prompts, one `shard_map` over the mesh axes of the batch.

    Args:
      config: `TransformerConfig`.
      function: of the list `heads`, variables that `unembed` takes, and of arrays `[b, ...]`; returns arrays `[b, ...]`.
      variables: list of the models' variables; their heads are gathered in config.dtype, and the gradient of each is
        summed over its devices once, after the loop in `function`.
      arrays: list of `[B, ...]`.

    Returns:
      What `function` returns for all B prompts; the same numbers as `function(variables, *arrays)`.
    """
    if ways(variables[0], arrays[0].shape[0]) == 1:
        return function(variables, *arrays)
    mesh = _mesh(variables[0])
    shards = mesh.shape["fsdp"]
    split = shards > 1 and config.embed_dim % shards == 0
    name, part, axis = ("embed", "embedding", 1) if config.tied_embeddings else ("unembed", "kernel", 0)
    kernels = [each["params"][name][part].astype(jnp.dtype(config.dtype)) for each in variables]

    def own(kernels, *arrays):
        # Told that its gradients differ between devices, jax sums them after the loop in `function` and not in it.
        kernels = [jax.lax.pcast(kernel, ("data",) if split else BATCH, to="varying") for kernel in kernels]
        if split:
            kernels = [jax.lax.all_gather(kernel, "fsdp", axis=axis, tiled=True) for kernel in kernels]
        return function([{"params": {name: {part: kernel}}} for kernel in kernels], *arrays)

    spec = P(*[None] * axis, "fsdp") if split else P()
    batch = P(BATCH)
    return jax.shard_map(
        own, mesh=mesh, in_specs=([spec] * len(kernels), *[batch] * len(arrays)), out_specs=batch, axis_names=set(BATCH)
    )(kernels, *arrays)
