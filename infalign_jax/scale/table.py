"""The table of docs/scale.md: `python -m infalign_jax.scale.table` compiles what is missing of it and writes it.

`--rows "NAME;NAME"` does some rows only, `--steps align` some steps of them, `--again` also what is there already. Each row
is one `infalign aot`; its numbers are kept in docs/scale.json, from which the table is written.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

from infalign_jax import aot, flags

ROOT = pathlib.Path(__file__).parents[2]
PAGE, NUMBERS = ROOT / "docs" / "scale.md", ROOT / "docs" / "scale.json"
BEGIN, END = "<!-- the table begins -->", "<!-- the table ends -->"
GB = 1e9

_RECIPE = [
    "--config",
    str(ROOT / "configs" / "hh_helpful_gemma2_2b.py"),
    "--config.data.response_tokens=512",
    "--effort=-1",
]


def _row(preset, topology, prompts, rollouts, microbatches, data, *more, lora=0, slices=1):
    return [
        *_RECIPE, f"--preset={preset}", f"--topology={topology}", f"--slices={slices}", f"--config.mesh.data={data}",
        f"--config.align.prompts_per_step={prompts}", f"--config.align.rollouts={rollouts}",
        f"--config.align.microbatches={microbatches}", f"--config.lora.rank={lora}", *more,
    ]  # fmt: skip


# Gathers over all of a large slice (fsdp 64 of v6e, 128 of v5p) come out of libtpu as sums of zeros and shares, at twice
# the bytes; over 16 or 32 chips they do not: hence data > 1 on the larger slices.
ROWS = {
    "Gemma 2 2B, v5e:4x4": _row("gemma2_2b", "v5e:4x4", 64, 8, 4, 1),
    "Gemma 2 2B, v5e:8x8": _row("gemma2_2b", "v5e:8x8", 64, 8, 1, 4),
    "Gemma 2 9B, v5e:8x8": _row("gemma2_9b", "v5e:8x8", 64, 8, 1, 2),
    "Gemma 2 9B, v6e:8x8": _row("gemma2_9b", "v6e:8x8", 64, 8, 1, 2),
    "Gemma 2 27B, v5p:4x4x8": _row("gemma2_27b", "v5p:4x4x8", 128, 4, 1, 4),
    "Llama 3 70B, v5p:4x4x8": _row("llama3_70b", "v5p:4x4x8", 128, 4, 1, 4),
    "Llama 3 70B, LoRA 32, v5p:4x4x8": _row(
        "llama3_70b", "v5p:4x4x8", 128, 4, 1, 4, "--config.model.param_dtype=bfloat16", lora=32
    ),
    "Gemma 2 9B, 2 slices of v5e:8x8": _row("gemma2_9b", "v5e:8x8", 128, 8, 1, 4, slices=2),
}


def main(words):
    """Compiles what is missing of the rows (all, or those named in --rows, separated by semicolons) and writes the table."""
    known_flags = {"rows": (";".join(ROWS), str), "steps": ("sample,score,align", str), "again": (False, bool)}
    given = flags.parse("python -m infalign_jax.scale.table", words, known_flags)
    names, steps = [name for name in given["rows"].split(";") if name], aot.step_names(given["steps"])
    for name in names:
        if name not in ROWS:
            raise ValueError(f"--rows has {name!r}; rows are {'; '.join(ROWS)}")
    for name in names:
        for step in steps:
            known = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
            row = known.get(name, {})
            if given["again"] or step not in row.get("steps", {}):
                print(f"== {name}: {step}", flush=True)
                known[name] = _with(row, _compile([*ROWS[name], f"--steps={step}"]))
                ordered = {row: known[row] for row in ROWS if row in known}
                NUMBERS.write_text(json.dumps(ordered, indent=1) + "\n")
                write()
    write()


def _with(row, numbers):
    """A row's numbers with those of one more step, or with the reason why it failed; the other steps stay."""
    if "failed" in numbers:
        return row | numbers
    steps = row.get("steps", {}) | numbers["steps"]
    return numbers | {"steps": {step: steps[step] for step in aot.STEPS if step in steps}}


def _compile(arguments):
    """The report of one `infalign aot`, in a process of its own: one that libtpu aborts is not to end all."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "report.json"
        command = [sys.executable, "-m", "infalign_jax", "aot", *arguments, f"--json={file}"]
        done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
        return json.loads(file.read_text())


def write():
    """Puts the table of docs/scale.json between its marks in docs/scale.md."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    table = lines(json.loads(NUMBERS.read_text()))
    PAGE.write_text("\n".join([before + BEGIN, "", *table, "", END + after]))


def lines(rows):
    """Markdown lines of the table, a line for each row and step."""
    yield (
        "| run | mesh data x fsdp x tensor | prompts x rollouts, microbatches | step | peak GB of | fits | received GB | of "
        "theory | largest gather GB | gathers all parameters or logits | least seconds | MFU at most |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for name, row in rows.items():
        if "failed" in row:
            yield f"| {name} | - | - | - | - | **failed: {row['failed']}** | - | - | - | - | - | - |"
        if "steps" not in row:
            continue
        mesh = " x ".join(str(size) for size in row["mesh"].values())
        batch = f"{row['prompts']} x {row['rollouts']}, {row['microbatches']}"
        for step, each in row["steps"].items():
            yield f"| {name} | {mesh} | {batch} | {step} | " + " | ".join(_cells(each)) + " |"


def _cells(each):
    room = f"{each['hbm'] / GB:.0f}"
    if "arguments" not in each:
        peak = f"{each['peak'] / GB:.1f}" if each["peak"] else "?"
        return [f"{peak} of {room}", "**no**", *["-"] * 6]
    seconds = max(each["seconds"].values())
    gathers = each["gathers_whole_tree"] or each["gathers_logits"]
    return [
        f"{each['peak'] / GB:.1f} of {room}",
        "yes" if each["fits"] else "**no**",
        f"{each['received_total'] / GB:.1f}",
        f"{each['ratio']:.2f}" if each["ratio"] else "-",
        f"{each['largest_gather'] / GB:.2f}",
        "**yes**" if gathers else "no",
        f"{seconds:.2f} ({each['bound_by']})",
        f"{100 * each['mfu_bound']:.0f} %",
    ]


if __name__ == "__main__":
    from infalign_jax.main import cli

    cli(main)
