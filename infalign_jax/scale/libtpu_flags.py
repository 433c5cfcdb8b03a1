"""Recommended LIBTPU_INIT_ARGS of each TPU generation, with the reason of each flag, as data.

`export LIBTPU_INIT_ARGS="$(python -m infalign_jax.scale.libtpu_flags v5e)"` before a run; `infalign aot` sets them
itself where the variable is not set. libtpu stops at a flag that it does not know.
"""

import sys

# Every generation: parameters are split over fsdp, so what matters is that gathers hide behind matmuls.
_COMMON = {
    "--xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000": (
        "gathers stay gathers: cut into a ring of permutes and small matmuls, as smaller thresholds do, a step of ours "
        "takes half as long again to compile and its gathers can no longer be merged or moved before the layer"
    ),
    "--xla_tpu_enable_async_collective_fusion=true": "collectives run beside the matmul they are fused with",
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true": "the same for the gathers of the next parameters",
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true": "a gather may hide behind several matmuls in turn",
    "--xla_tpu_overlap_compute_collective_tc=true": "lets the scheduler overlap collectives with compute on the core",
    "--xla_enable_async_all_gather=true": "gathers may start early",
}
FLAGS = {generation: dict(_COMMON) for generation in ("v4", "v5e", "v5p", "v6e")}
FLAGS["v6e"]["--xla_tpu_scoped_vmem_limit_kib=98304"] = (
    "fusions may use more of this generation's larger on-chip memory"
)


def arguments(generation):
    """The flags of a generation in one line.

    Raises:
      ValueError: no such generation.
    """
    if generation not in FLAGS:
        raise ValueError(f"generation is {generation!r}; legal are {', '.join(FLAGS)}")
    return " ".join(FLAGS[generation])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--reasons"] and len(sys.argv) == 3:
        print(*(f"{flag}\n    {why}" for flag, why in FLAGS[sys.argv[2]].items()), sep="\n")
    elif len(sys.argv) == 2 and sys.argv[1] in FLAGS:
        print(arguments(sys.argv[1]))
    else:
        sys.exit(f"usage: python -m infalign_jax.scale.libtpu_flags [--reasons] GENERATION, one of {', '.join(FLAGS)}")
