"""The transformer as pure functions of (config, variables, tokens).

`variables` is {'params': ...} and optionally {'lora': ...}; layers are stacked on a leading axis and scanned. Prompts
are left-padded `[B, S]` with lengths of at least 1, positions count from a prompt's first real token, and a
completion's slot c has position length + c. Nothing that is padding can influence anything that is not. Hidden states
are those after the final norm; `unembed` turns them into logits. All of it is differentiable in `variables`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from infalign_jax.models import attention, rope, sharding
from infalign_jax.models import cache as caches
from infalign_jax.models.cache import Cache
from infalign_jax.models.layers import Layer, RMSNorm

_NO_WINDOW = 1 << 30
_UNROLLED_LAYERS = 2  # so many are not worth a loop, which stacks and copies what the backward pass needs
_CHECKPOINT_POLICIES = {
    "layer": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@functools.partial(jax.jit, static_argnums=0)
def init(config, key):
    """Fresh variables {'params': ...} in config.param_dtype; can be traced by jit and eval_shape.

    Matrices are normal with variance 1 / (inputs), those that write to the residual stream 1 / (2L · inputs), so that
    its scale does not grow with depth. One draw serves them all: XLA takes half a second to compile each.
    """
    dtype = jnp.dtype(config.param_dtype)
    x_BXD = jnp.zeros((1, 1, config.embed_dim), jnp.dtype(config.dtype))
    cos, sin = (table[0] for table in rope.rotations(config, jnp.zeros((1, 1), jnp.int32)))
    layer = Layer(config).init(key, x_BXD, cos, sin, lambda q, k, v: (q, None))["params"]
    params = {
        "embed": {"embedding": jnp.zeros((config.vocab_size, config.embed_dim), dtype)},
        "layers": jax.tree.map(lambda x: jnp.broadcast_to(x, (config.num_layers, *x.shape)), layer),
        "final_norm": RMSNorm(config).init(key, x_BXD)["params"],
    }
    if not config.tied_embeddings:
        params["unembed"] = {"kernel": jnp.zeros((config.embed_dim, config.vocab_size), dtype)}
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    names = [[key.key for key in path] for path, _ in leaves]
    sizes = [
        leaf.size if name[-1] in ("kernel", "embedding") else 0 for name, (_, leaf) in zip(names, leaves, strict=True)
    ]
    noise = jnp.split(jax.random.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1])
    inputs = {
        "o": 2 * config.num_layers * config.num_heads * config.head_dim,
        "down": 2 * config.num_layers * config.mlp_dim,
    }
    filled = [
        (inputs.get(name[-2], config.embed_dim) ** -0.5 * part).reshape(leaf.shape).astype(dtype) if size else leaf
        for name, (_, leaf), size, part in zip(names, leaves, sizes, noise, strict=True)
    ]
    return {"params": jax.tree.unflatten(tree, filled)}


def _embed(config, variables, tokens, decode_mesh=None):
    table, dtype = variables["params"]["embed"]["embedding"], jnp.dtype(config.dtype)
    if decode_mesh is None:
        x = sharding.keep_batch_split(sharding.look_up(table, tokens).astype(dtype), table)
    else:
        tokens = sharding.keep_rows_whole(tokens, decode_mesh)
        x = sharding.keep_rows_whole(table[tokens].astype(dtype), decode_mesh)
    return x * jnp.asarray(config.embed_dim**0.5, x.dtype) if config.scale_embeddings else x


def _final_norm(config, variables, x):
    return RMSNorm(config).apply({"params": variables["params"]["final_norm"]}, x)


def unembed(config, variables, hidden):
    """Logits, float32 `[..., V]`, of hidden states `[..., D]`, soft-capped if the model is."""
    params, rows = variables["params"], hidden.astype(jnp.dtype(config.dtype)).reshape(-1, hidden.shape[-1])
    if config.tied_embeddings:
        kernel, equation = params["embed"]["embedding"], "td,vd->tv"
    else:
        kernel, equation = params["unembed"]["kernel"], "td,dv->tv"
    # Rows of one matrix, as in `Layer`: with more axes, CPUs copy all logits into another order for the head's gradient.
    logits = jnp.einsum(equation, rows, kernel.astype(rows.dtype), preferred_element_type=jnp.float32)
    logits = logits.reshape(*hidden.shape[:-1], -1)
    cap = config.logit_soft_cap
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def by_layer(config, variables):
    """The variables with a tuple of the layers' own in place of their stacks, if the layers' caches are apart too.

    For a decode loop, which would else copy every layer's matrices out of the stacks for each token on CPUs.
    """
    if not caches.apart(config) or isinstance(variables["params"]["layers"], tuple):
        return variables

    def cut(tree):
        layers = [jax.tree.map(lambda x, layer=layer: x[layer], tree["layers"]) for layer in range(config.num_layers)]
        return {**tree, "layers": tuple(layers)}

    return {name: cut(tree) if "layers" in tree else tree for name, tree in variables.items()}


def _scan_layers(config, variables, x_BXD, positions_BX, attend, cache=None, **place):
    """All layers over tokens X of each prompt -> (x_BXD, cache).

    `attend(cache, layer, window, q, k, v) -> (out, cache)`; `cache` travels in the carry, so that a decode step writes
    one slot of it in place. `place` as in `Layer`.
    """
    cos, sin = rope.rotations(config, positions_BX)
    is_local = np.array(config.is_local)
    windows = np.where(is_local, config.window or 0, _NO_WINDOW).astype(np.int32) if is_local.any() else None

    def body(carry, inputs):
        x, cache = carry
        layer_variables, layer, window, kind = inputs
        cos_BXh, sin_BXh = (table[0] if kind is None else table[kind] for table in (cos, sin))
        carry = Layer(config).apply(
            layer_variables, x, cos_BXh, sin_BXh, lambda q, k, v: attend(cache, layer, window, q, k, v), **place
        )
        return carry, None

    unroll = config.num_layers if config.num_layers <= _UNROLLED_LAYERS and config.remat == "none" else 1
    if config.remat != "none" and cache is None:  # what fills a cache has no backward pass
        body = jax.checkpoint(body, policy=_CHECKPOINT_POLICIES[config.remat], prevent_cse=False)
    kinds = is_local.astype(np.int32) if cos.shape[0] == 2 else None
    of_layers = np.arange(config.num_layers, dtype=np.int32), windows, kinds
    if cache is not None and caches.apart(config):
        carry, variables = (x_BXD, cache), by_layer(config, variables)
        for layer in range(config.num_layers):
            own = {name: tree["layers"][layer] for name, tree in variables.items() if "layers" in tree}
            carry, _ = body(carry, (own, *(None if x is None else x[layer] for x in of_layers)))
        return carry
    stacked = {name: tree["layers"] for name, tree in variables.items() if "layers" in tree}
    return jax.lax.scan(body, (x_BXD, cache), (stacked, *of_layers), unroll=unroll)[0]


def _positions(lengths_B, num_slots):
    """Positions of a left-padded prompt's slots; padding is given position 0."""
    return jnp.maximum(jnp.arange(num_slots) - (num_slots - lengths_B[:, None]), 0)


def _slots_last(x):
    """`[..., X, G, H] -> [..., G, H, X]`"""
    return jnp.moveaxis(x, -3, -1)


def _splash(config, variables, layer, q, k, v, valid_BS, rollouts=0):
    """Attention of one layer by the kernel, whose windows are static: a branch for each kind of layer."""
    from infalign_jax.models import splash  # Pallas takes half a second to import

    mesh = jax.typeof(variables["params"]["embed"]["embedding"]).sharding.mesh
    interpret = config.attention == "splash_interpreted"
    if mesh.empty and not interpret:
        splash.check(jax.default_backend())

    def branch(window):
        return splash.attend(q, k, v, valid_BS, rollouts, window, config.attention_soft_cap, mesh, interpret)

    windows = {local: config.window if local else None for local in config.is_local}
    if len(windows) == 1:
        return branch(*windows.values())
    return jax.lax.cond(
        jnp.asarray(config.is_local)[layer], *(functools.partial(branch, windows[kind]) for kind in (True, False))
    )


def _prompt_pass(config, variables, tokens_BS, lengths_B, cache=None):
    num_slots = tokens_BS.shape[1]
    valid_BS = attention.valid_slots(lengths_B, num_slots)

    def attend(cache, layer, window, q, k, v):
        kv = _slots_last(k), _slots_last(v)
        if config.attention == "xla":
            out = attention.attend_prompt(q, *kv, valid_BS, window, config.attention_soft_cap)
        else:
            out = _splash(config, variables, layer, q, k, v, valid_BS)
        if cache is not None:
            cache = Cache(*(caches.write(config, x, layer, y, -1) for x, y in zip(cache, kv, strict=True)))
        return out, cache

    x = _embed(config, variables, tokens_BS)
    return _scan_layers(config, variables, x, _positions(lengths_B, num_slots), attend, cache)


def forward(config, variables, tokens_BT, lengths_B):
    """Hidden states `[B, T, D]` of left-padded sequences; the state of slot t depends on slots 0..t only."""
    x, _ = _prompt_pass(config, variables, tokens_BT, lengths_B)
    return _final_norm(config, variables, x)


def prefill(config, variables, prompt_tokens_BS, prompt_lengths_B):
    """One pass over the prompts -> (hidden `[B, D]` of each prompt's last token, the prompts' `Cache`)."""
    empty = caches.empty_prompt_cache(config, *prompt_tokens_BS.shape)
    x, cache = _prompt_pass(config, variables, prompt_tokens_BS, prompt_lengths_B, empty)
    return _final_norm(config, variables, x[:, -1]), cache


def decode(config, variables, tokens_BR, step, prompt_lengths_B, prompt_cache, completion_cache, *, slots=None):
    """Read token number `step` of each rollout -> (hidden `[B, R, D]` that predicts the next, the cache with it added).

    completion_cache: of the tokens before it, at first `cache.empty_completion_cache`.
    slots: how many completion slots to attend to, static; it must exceed `step`. By default all there are.
    """
    num_prompts, rollouts = tokens_BR.shape
    slots = max(x.shape[-1] for x in completion_cache.keys) if slots is None else slots
    dtype, is_local = jnp.dtype(config.dtype), jnp.asarray(config.is_local)
    mesh = sharding.decode_mesh(variables, num_prompts)

    def attend(cache, layer, window, q, k, v):
        keys = caches.write(config, cache.keys, layer, k[..., None], -1, step)
        values = caches.write(config, cache.values, layer, v[..., None, :], -2, step)

        def attend_as(kind):
            prompt_kv = [caches.read(config, x, layer, kind, -1, _NO_WINDOW, dtype) for x in prompt_cache]
            own_kv = [caches.read(config, x, layer, kind, axis, slots, dtype) for x, axis in ((keys, -1), (values, -2))]
            valid_BS = attention.valid_slots(prompt_lengths_B, prompt_kv[0].shape[-1])
            held_K = caches.tokens_held(config, keys, layer, kind, -1, step, slots)
            cap = config.attention_soft_cap
            return attention.attend_completion(q[:, :, None], prompt_kv, own_kv, valid_BS, step, window, cap, held_K)

        branches = [functools.partial(attend_as, kind) for kind in caches.kinds(config, prompt_cache, cache)]
        out = branches[0]() if len(branches) == 1 else jax.lax.cond(is_local[layer], *branches[::-1])
        return sharding.from_rows_to_columns(out[:, :, 0].astype(dtype), mesh, "head_dim"), Cache(keys, values)

    positions_BR = jnp.broadcast_to((prompt_lengths_B + step)[:, None], (num_prompts, rollouts))
    x_BRD = _embed(config, variables, tokens_BR, mesh)
    x_BRD, completion_cache = _scan_layers(
        config, variables, x_BRD, positions_BR, attend, completion_cache,
        place=lambda x: sharding.from_columns_to_rows(x, mesh, "head_dim"),
    )  # fmt: skip
    return sharding.keep_rows_whole(_final_norm(config, variables, x_BRD), mesh), completion_cache


def _shared_pass(config, variables, prompt_tokens_BS, prompt_lengths_B, completion_tokens_BRC):
    """(hidden_BSD of the prompts, hidden_BRCD at the completion tokens), the prompt computed once for its R rollouts.

    The tokens of a prompt and of its rollouts lie on one axis of S + R·C slots for norms and matmuls, and are told
    apart in attention only. The batch stays the leading axis, so data-parallel devices never exchange tokens.
    """
    (num_prompts, num_slots), (_, rollouts, length) = prompt_tokens_BS.shape, completion_tokens_BRC.shape
    valid_BS = attention.valid_slots(prompt_lengths_B, num_slots)

    def split(x_BX):
        head, tail = x_BX[:, :num_slots], x_BX[:, num_slots:]
        return head, tail.reshape(num_prompts, rollouts, length, *x_BX.shape[2:])

    def attend(cache, layer, window, q, k, v):
        if config.attention != "xla":
            return _splash(config, variables, layer, q, k, v, valid_BS, rollouts), cache
        (q_prompt, q_own), (k_prompt, k_own), (v_prompt, v_own) = split(q), split(k), split(v)
        cap = config.attention_soft_cap
        prompt_kv = (_slots_last(k_prompt), _slots_last(v_prompt))
        out_prompt = attention.attend_prompt(q_prompt, *prompt_kv, valid_BS, window, cap)
        if length == 0:  # completions of one token are predicted from the prompt alone
            return out_prompt, cache
        own_kv = (_slots_last(k_own), jnp.swapaxes(v_own, -3, -2))
        out_own = attention.attend_completion(q_own, prompt_kv, own_kv, valid_BS, 0, window, cap)
        out = jnp.concatenate([out_prompt, out_own.reshape(num_prompts, rollouts * length, *q.shape[2:])], axis=1)
        return out, cache

    flat = (num_prompts, rollouts * length)
    tokens_BX = jnp.concatenate([prompt_tokens_BS, completion_tokens_BRC.reshape(flat)], axis=1)
    own = jnp.broadcast_to(prompt_lengths_B[:, None, None] + jnp.arange(length), completion_tokens_BRC.shape)
    positions_BX = jnp.concatenate([_positions(prompt_lengths_B, num_slots), own.reshape(flat)], axis=1)
    x, _ = _scan_layers(config, variables, _embed(config, variables, tokens_BX), positions_BX, attend)
    return split(x)


def forward_shared(config, variables, prompt_tokens_BS, prompt_lengths_B, completion_tokens_BRC):
    """Hidden states `[B, R, C, D]`; the one at slot c PREDICTS completion token c.

    Slot 0 comes from the prompt's last token and is common to the rollouts; the last completion token is never read.
    Values and gradients are those of R separate passes over prompt + completion, at (S + R·C) / (R·(S + C)) the work.
    """
    num_prompts, rollouts, _ = completion_tokens_BRC.shape
    read_BRc = completion_tokens_BRC[:, :, :-1]
    prompt_BSD, own_BRcD = _shared_pass(config, variables, prompt_tokens_BS, prompt_lengths_B, read_BRc)
    first_BRD = jnp.broadcast_to(prompt_BSD[:, None, -1], (num_prompts, rollouts, config.embed_dim))
    return _final_norm(config, variables, jnp.concatenate([first_BRD[:, :, None], own_BRcD], axis=2))


def completion_states(config, variables, prompt_tokens_BS, prompt_lengths_B, completion_tokens_BRC):
    """Hidden states `[B, R, C, D]` AT the completion tokens (slot c has read token c), computed as `forward_shared`."""
    _, own_BRCD = _shared_pass(config, variables, prompt_tokens_BS, prompt_lengths_B, completion_tokens_BRC)
    return _final_norm(config, variables, own_BRCD)
