"""Groups of prompts drawn at the same time, each by a thread: what keeps the cores of a CPU busy.

One token of a few hundred rollouts is too little work for several cores to share, operation by operation; halves of the
rollouts are not. An accelerator has nothing to gain.
"""

import jax
import numpy as np

from infalign_jax.training.side_by_side import side_by_side


def in_groups(sample, count: int, *arrays):
    """`sample(*arrays)` of `count` groups of consecutive prompts at the same time -> its arrays, joined, on the host.

    sample  function of host arrays with prompts along their first axis that returns a tree of such arrays, as
            `sampler.sample` and `retire.sample` do. What a prompt is given must not depend on its group: there it depends
            on the key, the row id and the rollout alone, so that the result is that of one call, up to rounding
    count   groups, whose sizes differ by at most one; one call if it is 1, and no more than there are prompts

    Raises what `sample` raises.
    """
    count = min(count, len(arrays[0]))
    if count == 1:
        return sample(*arrays)
    groups = list(zip(*(np.array_split(array, count) for array in arrays), strict=True))
    drawn = side_by_side(lambda group: jax.device_get(sample(*group)), groups, count)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *drawn)
