"""Attention by the Pallas kernel for TPUs (`splash_attention` of JAX): scores never leave the chip's fast memory.

For the passes over whole sequences: prefill, `forward`, and the shared pass over a prompt and its rollouts, backward
included. Prompt and rollouts lie on one axis, and which token sees which is one sparse mask: blocks of scores between
different rollouts, or beyond a sliding window, are skipped. Decoding a token at a time stays with XLA (`attention`).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec as P

from infalign_jax.models.sharding import BATCH

_LANES = 128  # slots are padded to a multiple of it
_BLOCK = 512  # a block of scores is at most that many squared


def check(platform):
    """Raises ValueError unless the kernel can run on `platform`."""
    if platform != "tpu":
        raise ValueError(
            f"config.model.attention is 'splash', a kernel for TPUs, and the devices here are {platform}; choose 'xla'"
        )


class Mask(splash.Mask):
    """Who sees whom on an axis of `prompt` slots and then `rollouts` times `length`: the `_visible` of `attention`.

    A token sees the prompt and its own rollout, up to itself and as far back as the window reaches.
    """

    def __init__(self, prompt, rollouts, length, window):
        self.prompt, self.length, self.window = prompt, length, window
        self.size = prompt + rollouts * length

    @property
    def shape(self):
        """(queries, keys), as the kernel asks for it."""
        return self.size, self.size

    def __getitem__(self, index):
        (query, query_rollout), (key, key_rollout) = (self._place(np.arange(self.size)[part]) for part in index)
        distance = query[:, None] - key
        seen = (distance >= 0) & ((key_rollout < 0) | (query_rollout[:, None] == key_rollout))
        return seen if self.window is None else seen & (distance < self.window)

    def _place(self, slots):
        """The slot as its rollout counts it, and the rollout, -1 in the prompt."""
        after = slots - self.prompt
        rollout = np.where(after < 0, -1, after // max(self.length, 1))
        return np.where(after < 0, slots, self.prompt + after % max(self.length, 1)), rollout


def attend(q_BXGMH, k_BXGH, v_BXGH, valid_BS, rollouts, window, soft_cap, mesh, interpret=False):
    """Attention of left-padded prompts and their rollouts to themselves -> `[B, X, G, M, H]` in the dtype of q.

    What `attention.attend_prompt` and `attend_completion` compute together, up to rounding, except in padded slots, whose
    outputs nobody reads. Differentiable in q, k and v. Any head width; the chip pads it to 128 as it does in matmuls.

    Args:
      q_BXGMH, k_BXGH, v_BXGH: queries (scaled), keys and values at X = S + R·C slots: a prompt's, then its rollouts'.
      valid_BS: which of the prompt's slots hold tokens.
      rollouts: R, static; 0 if there is only the prompt.
      window: how many slots a token sees, its own included, static; None for all.
      soft_cap: c of c·tanh(score / c), or None.
      mesh: the mesh the arrays lie on: each device runs the kernel on its own prompts and heads, in a `shard_map`.
      interpret: run on any platform, slowly; for tests.
    """
    (B, X, G, M, _), S = q_BXGMH.shape, valid_BS.shape[1]
    C = (X - S) // max(rollouts, 1)
    head, tail = -S % _LANES, -C % _LANES

    def pad(x_BX):
        rest = [(0, 0)] * (x_BX.ndim - 2)
        prompt = jnp.pad(x_BX[:, :S], [(0, 0), (head, 0), *rest])
        own = x_BX[:, S:].reshape(B, rollouts, C, *x_BX.shape[2:])
        own = jnp.pad(own, [(0, 0), (0, 0), (0, tail), *rest])
        return jnp.concatenate([prompt, own.reshape(B, rollouts * (C + tail), *x_BX.shape[2:])], axis=1)

    def unpad(x_BY):
        own = x_BY[:, head + S :].reshape(B, rollouts, C + tail, *x_BY.shape[2:])[:, :, :C]
        return jnp.concatenate([x_BY[:, head : head + S], own.reshape(B, rollouts * C, *x_BY.shape[2:])], axis=1)

    mask = Mask(S + head, rollouts, C + tail, window)
    # Padding in front is a segment of its own. That behind a completion comes too late for anyone to see it.
    valid_BX = jnp.concatenate([valid_BS, jnp.ones((B, rollouts * C), bool)], axis=1)
    arrays = [pad(x) for x in (q_BXGMH, k_BXGH, v_BXGH, valid_BX.astype(jnp.int32))]
    function = _on_one_device(mask, soft_cap, interpret)
    if not mesh.empty:
        function = _on_own_heads(function, mesh, B, G, M)
    return unpad(function(*arrays))


def _on_one_device(mask, soft_cap, interpret):
    """The kernel on `[b, Y, g, m, H]` and `[b, Y, g, H]`, all in one device's memory."""
    block = math.gcd(mask.prompt, mask.length, _BLOCK)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    sizes = splash.BlockSizes(**{f"block_{name}": block for name in names})

    def function(q_BYGMH, k_BYGH, v_BYGH, segments_BY):
        b, Y, G, M, H = q_BYGMH.shape
        kernel = splash.make_splash_mha(
            splash.MultiHeadMask([mask] * (G * M)), block_sizes=sizes, attn_logits_soft_cap=soft_cap, head_shards=1,
            q_seq_shards=1, interpret=interpret,
        )  # fmt: skip
        q_BNYH = jnp.moveaxis(q_BYGMH.reshape(b, Y, G * M, H), 1, 2)
        k_BGYH, v_BGYH = jnp.moveaxis(k_BYGH, 1, 2), jnp.moveaxis(v_BYGH, 1, 2)
        segments = splash.SegmentIds(segments_BY, segments_BY)
        out_BNYH = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, segment_ids=ids))(q_BNYH, k_BGYH, v_BGYH, segments)
        return jnp.moveaxis(out_BNYH, 2, 1).reshape(b, Y, G, M, H)

    return function


def _on_own_heads(function, mesh, num_prompts, kv_heads, heads_each):
    """`function` on each device's prompts and heads; what the mesh does not divide every device computes whole."""
    batch = BATCH if num_prompts % math.prod(mesh.shape[name] for name in BATCH) == 0 else None
    ways = mesh.shape["tensor"]
    kv = "tensor" if kv_heads % ways == 0 else None
    each = "tensor" if kv is None and heads_each % ways == 0 else None
    q, k, ids = P(batch, None, kv, each), P(batch, None, kv), P(batch)
    # The kernel does not say over which mesh axes its results differ, which the check would want to know.
    return jax.shard_map(function, mesh=mesh, in_specs=(q, k, k, ids), out_specs=q, check_vma=False)
