"""How many floating-point operations a phase needs, counted by hand: multiply and add are two, matmuls only.

`shared=True` counts each prompt once for all its rollouts, which is enough; `shared=False` counts it for every rollout.
"""

from benchmarks.shapes import MODEL, prompts


def _per_token(model=MODEL):
    """Matmul weights of the layers that a token meets, embeddings left out."""
    inner = model["heads"] * model["head_dim"]
    attention = 2 * model["embed"] * inner + 2 * model["embed"] * model["kv_heads"] * model["head_dim"]
    return model["layers"] * (attention + 3 * model["embed"] * model["mlp"])


def _attention(pairs, model=MODEL):
    """Scores and weighted values of (query, key) pairs, in all layers."""
    return 4 * pairs * model["layers"] * model["heads"] * model["head_dim"]


def forward(shape, shared, heads):
    """One pass over all prompts and completions, with `heads` positions of each sequence through the output head."""
    layers = attention = 0
    for prompt in prompts(shape):
        copies = 1 if shared else shape.rollouts
        length, new = len(prompt), shape.tokens
        layers += copies * length + shape.rollouts * new
        attention += copies * length * (length + 1) // 2
        attention += shape.rollouts * (new * length + new * (new + 1) // 2)
    head = 2 * MODEL["embed"] * MODEL["vocab"] * heads * shape.sequences
    return 2 * _per_token() * layers + _attention(attention) + head


def count(benchmark, shape, shared=True):
    """FLOPs of one turn: the backward pass is twice the forward pass, and the reference has no backward pass."""
    once = forward(shape, shared, heads=shape.tokens)
    return {"rollout": once, "update": 4 * once, "rl_step": 5 * once}[benchmark]
