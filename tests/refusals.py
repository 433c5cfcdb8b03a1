"""What the tests of bad input share: the sentence of a refusal, and the tiny recipe with keys changed."""

import pytest

from infalign_jax import errors
from infalign_jax.stages import settings
from tests import tiny


def refused(act):
    """The one line with which a call is refused."""
    with pytest.raises(Exception) as caught:
        act()
    line = errors.sentence(caught.value)
    assert line is not None, f"a bug, not a sentence: {caught.value!r}"
    assert line and "\n" not in line and len(line) < 700
    return line


def resolved(folder, **changes):
    """The tiny recipe with some keys (sections joined by '__') changed, resolved."""
    config = tiny.get_config()
    with config.unlocked():
        config.align.methods = ("raw", "identity")
        for name, value in changes.items():
            section, _, key = name.rpartition("__")
            (config[section] if section else config)[key] = value
    return settings.resolve(config, folder)
