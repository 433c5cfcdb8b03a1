"""The `anthropic_hh` source: HH-RLHF pairs, prepared once by the TFDS builder and read back from its cache."""

from infalign_jax.data.dataset import Preference, require_count
from infalign_jax.data.prepared import prepare, read_split
from infalign_jax.data.split import assemble, require_fraction


def load(*, path, seed, subset, cache_dir, train_prompts, test_prompts, judge_fraction):
    """HH-RLHF as a `Dataset`.

    Args:
      path: folder in the official layout (`harmless-base/train.jsonl.gz`, ...), or '' to download the official files.
      seed: fixes which prompts go to the judge's share.
      subset: helpful_base | helpful_online | helpful_rejection_sampled | harmless_base.
      cache_dir: where the prepared data is kept, '' for ~/tensorflow_datasets. A changed local file is prepared anew.
      train_prompts, test_prompts: how many prompts to keep for aligning and evaluating, 0 for all; pairs are all kept.
      judge_fraction: share of the training prompts whose pairs are set aside for an independent judge, in [0, 1].

    Returns:
      `Dataset`: pairs of both splits, chosen training responses as demonstrations, distinct prompts. Pairs whose
      prompts differ, with an empty response (nothing to imitate or to compare), or with equal responses are dropped
      and counted aloud.

    Raises:
      ValueError: unknown config, missing or malformed file, failed download or checksum.
    """
    from infalign_jax.data import hh_builder  # TFDS takes a second to import

    if subset not in hh_builder.CONFIGS:
        raise ValueError(f"anthropic_hh subset is {subset!r}; it is one of {', '.join(hh_builder.CONFIGS)}")
    limits = {
        "train_prompts": require_count("train_prompts", train_prompts),
        "test_prompts": require_count("test_prompts", test_prompts),
    }
    judge_fraction = require_fraction("judge_fraction", judge_fraction)
    builder = prepare_hh(path, subset, cache_dir)
    train, test = _read(builder, "train"), _read(builder, "test")
    return assemble(train, test, judge_fraction=judge_fraction, seed=seed, **limits)


def prepare_hh(path, subset, cache_dir):
    """The prepared `AnthropicHh` builder of a subset; see `prepared.prepare`."""
    from infalign_jax.data import hh_builder

    files = [hh_builder.local_file(path, subset, split) for split in ("train", "test")] if path else []
    return prepare(hh_builder.AnthropicHh, path=path, config=subset, cache_dir=cache_dir, files=files)


def _read(builder, split):
    return [Preference(*row) for row in read_split(builder, split, ("prompt", "chosen", "rejected"))]
