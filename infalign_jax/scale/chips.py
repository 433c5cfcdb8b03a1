"""TPU chips and slices as data: what the vendor publishes of each generation, and descriptions of slices without hardware."""

import os
from typing import NamedTuple

from infalign_jax.scale import libtpu_flags

GIB = 2**30


class Chip(NamedTuple):
    """Published numbers of one chip (cloud.google.com/tpu/docs, a page for each generation).

    flops: peak bfloat16 FLOP/s; hbm: bytes of memory; hbm_rate: bytes/s.
    ici: bytes/s that a chip can receive from its slice, half the published two-way bandwidth.
    dcn: bytes/s a chip's share of the data centre network, or None where it is not published.
    accelerator: what libtpu is to believe it runs on. sides: of a slice of it, a rectangle or a cuboid of chips.
    """

    flops: float
    hbm: float
    hbm_rate: float
    ici: float
    dcn: float | None
    accelerator: str
    sides: int


CHIPS = {
    "v4": Chip(275e12, 32 * GIB, 1228e9, 300e9, None, "v4-8", 3),
    "v5e": Chip(197e12, 16e9, 819e9, 200e9, 25e9 / 8, "v5litepod-16", 2),
    "v5p": Chip(459e12, 95e9, 2765e9, 600e9, 50e9 / 8, "v5p-8", 3),
    "v6e": Chip(918e12, 32e9, 1640e9, 400e9, 100e9 / 8, "v6e-16", 2),
}


def chip_of(topology):
    """The `Chip` of a topology name such as 'v5e:8x8'.

    Raises:
      ValueError: no such generation, or a name of another form.
    """
    generation, _, shape = topology.partition(":")
    if generation not in CHIPS:
        raise ValueError(f"--topology is {topology!r}; its generation must be one of {', '.join(CHIPS)}, as in v5e:8x8")
    chip, sizes = CHIPS[generation], shape.split("x")
    if not all(size.isdigit() and int(size) > 0 for size in sizes) or len(sizes) != chip.sides:  # libtpu would abort
        example = "x".join("8" * chip.sides)
        raise ValueError(
            f"--topology is {topology!r}; after the colon come {chip.sides} sizes, as in {generation}:{example}"
        )
    return chip


def pretend(generation):
    """Lets libtpu describe slices on a host without one. Call it before jax makes its backends; not for real pods.

    libtpu locks the chips of a host against other processes, even where there are none: a process that only compiles must
    be told to do without, or it would fail whenever another one compiles.
    """
    os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    os.environ.setdefault("LIBTPU_INIT_ARGS", libtpu_flags.arguments(generation))
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", CHIPS["v5e"].accelerator)
    import jax

    jax.config.update("jax_platforms", "cpu")


def devices(topology, slices=1):
    """The devices of `slices` slices of a topology, for compiling only.

    Raises:
      ValueError: libtpu is missing, or knows no such topology.
    """
    from jax.experimental import topologies

    chip_of(topology)
    if slices < 1:
        raise ValueError(f"--slices is {slices}; it must be at least 1")
    more = {"num_slices": slices} if slices > 1 else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **more).devices
    except Exception as error:
        why = str(error).splitlines()[0] + ("" if "INVALID_ARGUMENT" in str(error) else "; it takes infalign-jax[tpu]")
        raise ValueError(f"topology {topology!r} cannot be described here: {why}") from error
