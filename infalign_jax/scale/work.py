"""What a step must compute, read and exchange, counted from sizes: the yardstick for what the compiler made of it."""

import math
from typing import NamedTuple

import jax

from infalign_jax.models import transformer
from infalign_jax.models.sharding import BATCH
from infalign_jax.sampling.sampler import block_ends


class Work(NamedTuple):
    """Of one call of a step, all chips together unless it says otherwise.

    flops: executed, recomputation included; useful: without it. Masked attention scores count, as they are computed.
    hbm: bytes each chip must read or write at least. exchange: bytes each chip must receive, as the parameters are laid out.
    """

    flops: float
    useful: float
    hbm: float
    exchange: float


class Sizes(NamedTuple):
    """Of a step: B prompts of S slots, R rollouts of C tokens each, in a number of microbatches; and of the mesh."""

    B: int
    R: int
    S: int
    C: int
    microbatches: int
    mesh: dict


def parameters(model):
    """(parameters of the layers, of the output head, of everything)."""
    shapes = jax.eval_shape(lambda key: transformer.init(model, key), jax.random.key(0))["params"]
    count = lambda tree: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))  # noqa: E731
    return count(shapes["layers"]), model.vocab_size * model.embed_dim, count(shapes)


def forward_flops(model, sizes):
    """FLOPs of one pass over all prompts and rollouts, the prompt shared; 2 a parameter and token, 4 a score and channel."""
    layers, head, _ = parameters(model)
    B, R, S, C = sizes[:4]
    scores = B * S * S + B * R * C * (S + C)
    attention = 4 * model.num_layers * model.num_heads * model.head_dim * scores
    return 2 * layers * B * (S + R * C) + 2 * head * B * R * C + attention


def align(model, sizes, adapters):
    """`Work` of a training step: the reference's pass, the policy's, and the way back, with or without recomputation.

    adapters: parameters that train, if they are not all: then no gradient of the others is formed.
    """
    _, _, total = parameters(model)
    forward, item, (B, R, S, C) = forward_flops(model, sizes), _item(model), sizes[:4]
    useful = forward * (3 if adapters else 4)
    again = {"none": 0.0, "dots": 0.0, "layer": 1.0}[model.remat]
    trained = adapters or total
    chips = math.prod(sizes.mesh.values())
    passes = 3 + again
    hbm = sizes.microbatches * passes * item * total / sizes.mesh["tensor"] + 7 * 4 * trained / chips
    # ZeRO-3: gather for the reference's pass, the policy's, and its way back; scatter the gradient.
    gathers, scattered = 3 * total + (2 * adapters if adapters else 0), trained
    exchange = sizes.microbatches * _gathered(gathers + scattered, item, sizes)
    exchange += sizes.microbatches * _averaged(trained, item, sizes)
    # Rows of two lookups, and the gradient of one if the table trains.
    exchange += _looked_up(model, sizes, B * (S + R * (C - 1)) * (2 if adapters else 3))
    return Work(forward * again + useful, useful, hbm, exchange)


def scoring(model, sizes, adapters):
    """`Work` of log-probabilities and exact KL of given rollouts: one pass of the policy and one of the reference."""
    _, _, total = parameters(model)
    forward, item, (B, R, S, C) = forward_flops(model, sizes), _item(model), sizes[:4]
    exchange = _gathered(2 * total + adapters, item, sizes) + _looked_up(model, sizes, 2 * B * (S + R * (C - 1)))
    return Work(2 * forward, 2 * forward, 2 * item * total / sizes.mesh["tensor"], exchange)


def sampling(model, sizes, adapters):
    """`Work` of rollouts of full length: one pass over the prompts, then C tokens a rollout, one at a time."""
    layers, head, total = parameters(model)
    B, R, S, C = sizes[:4]
    ends = block_ends(C)
    seen = sum(
        (end - start) * end for start, end in zip([0, *ends[:-1]], ends, strict=True)
    )  # Σ slots a token attends to
    scores = B * S * S + B * R * (C * S + seen)
    attention = 4 * model.num_layers * model.num_heads * model.head_dim * scores
    flops = 2 * layers * B * (S + R * C) + 2 * head * B * R * C + attention
    item, ways = _item(model), math.prod(sizes.mesh[axis] for axis in BATCH)
    shares = sizes.mesh["tensor"] * (1 if B % ways else sizes.mesh["fsdp"])  # of the parameters, while tokens are drawn
    cached = 2 * model.num_layers * model.num_kv_heads * model.head_dim * item * B / ways / sizes.mesh["tensor"]
    hbm = item * total / sizes.mesh["tensor"] + C * item * total / shares + cached * (C * S + R * seen)
    if B % ways:
        return Work(flops, flops, hbm, _gathered(C * (layers + adapters + head), item, sizes))
    once = _gathered(layers + adapters + (total + adapters) / sizes.mesh["fsdp"], item, sizes)
    once += _looked_up(model, sizes, B * S)
    return Work(flops, flops, hbm, once + C * _moved_per_token(model, sizes))


def _moved_per_token(model, sizes):
    """Bytes a chip receives to draw and read one token of each rollout while the parameters stay, split over fsdp.

    On the chips that share parameters every layer sums its two outputs `[rows, D]`, and the lookup its rows; queries, keys,
    values, what attention puts out and float32 logits go from one split to another.
    """
    fsdp, item = sizes.mesh["fsdp"], _item(model)
    rows = sizes.B / sizes.mesh["data"] * sizes.R
    summed = 2 * (2 * model.num_layers + 1) * model.embed_dim * item
    widths = 2 * (model.num_heads + model.num_kv_heads) * model.head_dim
    split_anew = (model.num_layers * widths * item + 4 * model.vocab_size) / fsdp
    return rows * (summed + split_anew) * (fsdp - 1) / fsdp


def _item(model):
    return 4 if model.dtype == "float32" else 2


def _gathered(parameters, item, sizes):
    """Bytes a chip receives to gather (or scatter) so many parameters over the mesh axis fsdp."""
    fsdp = sizes.mesh["fsdp"]
    return parameters * item / sizes.mesh["tensor"] * (fsdp - 1) / fsdp


def _looked_up(model, sizes, rows):
    """Bytes a chip receives to move so many rows of embeddings from where their channels lie to where their prompts lie."""
    ways, fsdp = sizes.mesh["data"] * sizes.mesh["fsdp"], sizes.mesh["fsdp"]
    return rows / ways * model.embed_dim * _item(model) * (fsdp - 1) / fsdp


def _averaged(parameters, item, sizes):
    """Bytes a chip receives to average the gradient of so many parameters, split over fsdp, over the mesh axis data."""
    data = sizes.mesh["data"]
    return 2 * parameters * item / sizes.mesh["tensor"] / sizes.mesh["fsdp"] * (data - 1) / data
