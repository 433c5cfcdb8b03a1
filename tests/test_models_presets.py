"""Full-size presets by shape only: the published numbers of parameters."""

import functools
import math

import jax
import pytest

from infalign_jax.models import presets, sharding, transformer

_PUBLISHED = {
    "gemma2_2b": 2_614_341_888, "gemma2_9b": 9_241_705_984, "gemma2_27b": 27_227_128_320, "gemma3_1b": 999_885_952,
    "llama3_1b": 1_235_814_400, "llama3_3b": 3_212_749_824, "llama3_8b": 8_030_261_248, "llama3_70b": 70_553_706_496,
    "qwen25_0_5b": 494_032_768, "qwen25_1_5b": 1_543_714_304, "qwen25_3b": 3_085_938_688, "qwen25_7b": 7_615_616_512,
    "qwen25_14b": 14_770_033_664, "qwen25_32b": 32_763_876_352, "qwen25_72b": 72_706_203_648,
    "qwen3_0_6b": 596_049_920, "qwen3_1_7b": 1_720_574_976, "qwen3_4b": 4_022_468_096, "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200, "qwen3_32b": 32_762_123_264,
}  # fmt: skip
# Published together with a vision tower (SigLIP of 27 layers, 896 x 896 pixels) and its projection to width D.
_WITH_VISION = {"gemma3_4b": 4_300_079_472, "gemma3_12b": 12_187_325_040, "gemma3_27b": 27_432_406_640}
_VISION = 416_866_032


@pytest.mark.parametrize("name", presets.names())
def test_full_size_shapes_have_the_published_count(name):
    config = presets.from_name(name)
    shapes = jax.eval_shape(functools.partial(transformer.init, config), jax.random.key(0))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    if name in _WITH_VISION:
        count += _VISION + 1152 * config.embed_dim + 1152
    assert count == {**_PUBLISHED, **_WITH_VISION}[name]
    sharding.logical_axes(shapes)


def test_unknown_presets_are_refused_and_fields_can_change():
    assert presets.from_name("gemma2_2b", num_layers=2).num_layers == 2
    with pytest.raises(ValueError, match="model preset is 'gpt2'"):
        presets.from_name("gpt2")
