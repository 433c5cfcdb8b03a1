"""The `tldr` source: Reddit TL;DR, prepared once by the TFDS builder and read back from its cache."""

from typing import NamedTuple

from infalign_jax.data.dataset import Dataset, Demonstration, Preference, Prompt, require_count
from infalign_jax.data.prepared import prepare, read_split
from infalign_jax.data.split import keep_some, require_fraction, split_by_prompt, without_seen


class Post(NamedTuple):
    """A post, as a prompt, with a summary of it."""

    prompt: str
    summary: str
    subreddit: str


def load(*, path, seed, cache_dir, train_prompts, test_prompts, judge_fraction):
    """Reddit TL;DR as a `Dataset`.

    Args:
      path: folder in the official layout (`comparisons/batch*.json`, `tldr_3_filtered/*.jsonl`).
      seed: fixes which prompts are kept and which go to the judge's share.
      cache_dir: where the prepared data is kept, '' for ~/tensorflow_datasets. Changed files are prepared anew.
      train_prompts, test_prompts: how many prompts to keep for aligning and evaluating, 0 for all; pairs are all kept.
      judge_fraction: share of the compared posts whose pairs are set aside for an independent judge, in [0, 1].

    Returns:
      `Dataset`: demonstrations and prompts from the filtered training and test posts, preferences from the comparisons'
      `train`, held-out ones from `valid1` (posts not compared in training). A prompt's group is its subreddit.

    Raises:
      ValueError: missing or malformed file, no comparisons of the split `train`.
    """
    from infalign_jax.data.tldr_builder import CONFIGS, Tldr, source_files  # TFDS takes a second to import

    counts = require_count("train_prompts", train_prompts), require_count("test_prompts", test_prompts)
    judge_fraction = require_fraction("judge_fraction", judge_fraction)
    if not path:
        raise ValueError("data path is ''; TL;DR is not downloaded, give a folder in the official layout")
    comparisons, demonstrations = (
        prepare(Tldr, path=path, config=config, cache_dir=cache_dir, files=source_files(path, config))
        for config in CONFIGS
    )
    if "train" not in comparisons.info.splits:
        raise ValueError(f"data folder {str(path)!r} holds no comparison of the split 'train'")
    train, test = (_posts(demonstrations, split) for split in ("train", "test"))
    pairs = _pairs(comparisons, "train")
    held_out = _pairs(comparisons, "valid1") if "valid1" in comparisons.info.splits else []
    preferences, judge_preferences = split_by_prompt(pairs, judge_fraction, seed, purpose=1)
    return Dataset(
        demonstrations=[Demonstration(post.prompt, post.summary) for post in train],
        preferences=preferences,
        judge_preferences=judge_preferences,
        held_out_preferences=without_seen(held_out, pairs),
        train_prompts=keep_some(_prompts(train), counts[0], seed),
        test_prompts=keep_some(_prompts(without_seen(test, train)), counts[1], seed),
    )


def _pairs(builder, split):
    return [Preference(*row) for row in read_split(builder, split, ("prompt", "chosen", "rejected"))]


def _posts(builder, split):
    return [Post(*row) for row in read_split(builder, split, Post._fields)]


def _prompts(posts):
    return [Prompt(text, group) for text, group in {post.prompt: post.subreddit for post in posts}.items()]
