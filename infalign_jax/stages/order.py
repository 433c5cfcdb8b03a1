"""The stages in their order, what each leaves behind, and so which are done and which must come before which."""

from etils import epath

from infalign_jax.training import workdir

STAGES = ("sft", "reward-model", "calibrate", "amortize", "prefix-scorer", "align", "evaluate")


def outputs(config, stage):
    """What a stage makes for a config, as {title: folder below the workdir}; empty where the config asks for nothing.

    Args:
      config: a ConfigDict, or the nested dict of a workdir's `config.json`.
      stage: one of STAGES.
    """
    if stage == "reward-model":
        asked = {"reward model": ("reward_model", config["reward"]), "judge": ("judge", config["judge"])}
        return {title: folder for title, (folder, kind) in asked.items() if kind == "learned"}
    if stage == "amortize" and not config["amortize"]["enabled"]:
        return {}
    if stage == "prefix-scorer":  # the section is missing from a workdir made before there was one
        return {stage: "prefix_scorer"} if config.get("prefix_scorer", {}).get("enabled") else {}
    if stage == "align":
        section = config["align"]
        runs = [(method, seed) for method in section["methods"] for seed in section["seeds"]]
        return {f"align {method}, seed {seed}": align_folder(method, seed) for method, seed in runs}
    return {stage: stage}


def align_folder(method, seed):
    """Where, below the workdir, a method's run lies: its name with brackets and commas made safe for file systems."""
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in method).strip("_")
    return f"align/{name}/seed_{seed}"


def missing(config, stage):
    """The folders of a stage's outputs that are not finished."""
    root = epath.Path(config["workdir"])
    return [root / folder for folder in outputs(config, stage).values() if workdir.done(root / folder) is None]


def state(config, stage):
    """'done before' or 'nothing to do' where a stage has no work left, else ''."""
    if not outputs(config, stage):
        return "nothing to do"
    if missing(config, stage):
        return ""
    if stage != "evaluate":
        return "done before"
    result = workdir.done(epath.Path(config["workdir"]) / stage)
    return "done before" if result.get("asked") == evaluation_asked(config) else ""


def evaluation_asked(config):
    """A fingerprint of what an evaluation depends on and a finished workdir may still change."""
    runs = [list(config["align"]["methods"]), list(config["align"]["seeds"])]
    return workdir.fingerprint([config["evaluate"].to_dict(), config["judge"], runs])


def check_before(config, stage):
    """Raises ValueError, naming stage and folder, if a stage that must come before `stage` is not done."""
    for earlier in STAGES[: STAGES.index(stage)]:
        if folders := missing(config, earlier):
            raise ValueError(
                f"stage {stage} needs stage {earlier} first, and {folders[0]} is not finished; "
                f"run `infalign {earlier}` or `infalign run` with the same --config and --workdir"
            )


def whereabouts(config):
    """Where the finished results of a run are, a line each."""
    root = epath.Path(config["workdir"])
    found = {title: root / folder / "variables" for stage in STAGES for title, folder in outputs(config, stage).items()}
    found |= {"table": root / "calibrate" / "table.npz", "report": root / "evaluate" / "report.html"}
    found = {title: path for title, path in found.items() if path.exists()} | {
        "state of the run": f"infalign status {root}"
    }
    width = max(map(len, found))
    return "\n".join(["where everything is", *(f"  {title:<{width}}  {path}" for title, path in found.items())])
