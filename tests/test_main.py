"""The command line: what it prints, what it refuses and how, and that one workdir has one run at a time."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import types

import pytest

from infalign_jax import __version__, doctor, errors, main, recipe, status
from infalign_jax.stages import order
from infalign_jax.training import workdir as workdirs
from tests import tiny
from tests.refusals import refused

ROOT = pathlib.Path(__file__).parent.parent
TINY = str(ROOT / "tests" / "tiny.py")
COMMAND_LINES = {  # arguments: words of the sentence
    "run": "--config is missing",
    "align --workdir x": "--config is missing",
    f"--config {TINY}": "--workdir is missing",
    f"run --config {TINY} --workdir=": "--workdir is missing",
    "trian": "command is 'trian'; legal are run, sft",
    f"sft align --config {TINY} --workdir x": "command is 'sft align'",
    f"--config {TINY} status": "must be the first word",
    "run --config": "--config has no value",
    "run --config --workdir x": "--config has no value",
    "run --config nowhere.py --workdir x": "--config is 'nowhere.py', and there is no such file",
    f"run --config {ROOT}": "there is no such file",
    "run --config=": "there is no such file; recipes that need no path are base, hh_harmless_gemma2_2b, ",
    "run --config quickstrat --workdir x": "--config is 'quickstrat', and there is no such file; recipes that need no path",
    "run --config quickstart": "--workdir is missing",
    "run --config study_small --workdir x": "--config names a study; run it with infalign study",
    f"run --config {TINY} --workdir x --config.calibrate.rollouts=1000000000": "config.calibrate.rollouts is 1000000000",
    f"run --config {TINY} --workdir x --config.align.target_kl=1e-300": "kl = 1.15e-300 is too small",
    "frontier --rollouts 1000000000": "--rollouts is 1000000000; it must be 1 to 4096",
    "frontier --kls 1e-300 --procedure best_of(0)": "n of best_of must be a whole number >= 1, got 0",
    f"run --config {TINY} --config {TINY}": "--config is given twice",
    f"run --config {TINY} --workdir x --workdirr y": "there is no flag '--workdirr'",
    "run -x": "there is no flag '-x'",
    "run --config.sft.steps=3": "none is named; give --config FILE too",
    f"run --config {TINY} --config.sft.stepz=3": "config.sft.stepz is not a key of the recipe; config.sft has batch_size",
    f"run --config {TINY} --config.sfd.steps=3": "config.sfd is not a key of the recipe",
    f"run --config {TINY} --config.=3": "config. is not a key",
    f"run --config {TINY} --config.sft=3": "config.sft is a section",
    f"run --config {TINY} --config.seed.a=3": "goes below config.seed",
    f"run --config {TINY} --config.sft.steps=many": "config.sft.steps is 'many'; it must be an integer",
    f"run --config {TINY} --config.sft.steps=1.5": "config.sft.steps is '1.5'; it must be an integer",
    f"run --config {TINY} --config.sft.steps=": "config.sft.steps is ''; it must be an integer",
    f"run --config {TINY} --config.sft.learning_rate=1e": "it must be a number",
    f"run --config {TINY} --config.log.tensorboard=perhaps": "it must be True or False",
    f"run --config {TINY} --workdir x --config.sft.learning_rate=nan": "config.sft.learning_rate is nan",
    f"run --config {TINY} --workdir x --config.sft.steps=-5": "config.sft.steps is -5",
    f"run --config {TINY} --workdir x --config.evaluate.best_of=(2,4": "config.evaluate.best_of is ('(2,4',)",
    f"run --config {TINY} --workdir x --config.align.methods=": "config.align.methods is ()",
    f"run --config {TINY} --workdir x --config.align.methods=raw,lg": "config.align.methods has 'lg': unknown transform",
    f"run --config {TINY} --workdir x --config.model.dtype=int8": "config.model.dtype is 'int8'",
    "status": "status needs one workdir",
    "status a b": "status needs one workdir",
    "status nowhere-at-all": "holds no config.json",
    "doctor now": "doctor takes --config",
    f"doctor --config {TINY} --config.model.head_dim=3": "config.model.head_dim is 3",
}
RECIPES = {  # content of a recipe: words of the sentence
    "def get_config(:": "line 1: ",
    "x = 1\n  y = 2\ndef get_config():\n    return x": "line 2: unexpected indent",
    "": "it has no function get_config()",
    "get_config = 3": "it has no function get_config()",
    "def get_config():\n    return {'seed': 0}": "returned dict; it must return a ConfigDict",
    "def get_config():\n    pass": "returned NoneType",
    "def get_config(size):\n    pass": "missing 1 required positional argument",
    "def get_config():\n    a = 1\n    return 1 / 0": "line 3: ZeroDivisionError: division by zero",
    "import no_such_library_here": "line 1: ModuleNotFoundError: No module named 'no_such_library_here'",
    "from configs import base\ndef get_config():\n    c = base.get_config()\n    c.seed = 3\n    c.sead = 1\n    return c": "line 5: ",
    "from configs import base\ndef get_config():\n    c = base.get_config()\n    c.sft.steps = 'a'\n    return c": "line 4: TypeError",
    "raise ValueError('two\\n\\nlines')": "ValueError: two lines",
    "import sys\nsys.exit(3)": "line 2: SystemExit: 3",
    "def get_config():\n    return get_config()": "line 2: RecursionError",
    "from configs import nothing": "line 1: ImportError: cannot import name 'nothing' from 'configs'",
    "\0": "source code",
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), COMMAND_LINES.items())
def test_command_lines(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused(lambda: main.main(arguments.split(" ")))
    assert not list(tmp_path.iterdir()), "a refused command leaves nothing behind"


@pytest.mark.parametrize(("content", "words"), RECIPES.items())
def test_recipes(content, words, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(content)
    line = refused(lambda: recipe.load(str(file)))
    assert line.startswith(f"config file {file}") and words in line


def test_a_recipe_that_is_not_text(tmp_path):
    (tmp_path / "mine.py").write_bytes(b"\xff\xfe\x00\x9d" * 40)
    assert "cannot be used" in refused(lambda: recipe.load(str(tmp_path / "mine.py")))


def test_flags_are_read_as_the_types_of_the_keys(tmp_path):
    words = [
        "--config.align.methods=raw, exponential(10) ,optimal(average_of(best_of(1),best_of(2)))",
        "--config.evaluate.best_of", "(2, 4)", "--config.evaluate.curve=0.5", "--config.sft.learning_rate=1",
        "--config.log.tensorboard=true", "--config.seed=-1", "--config.data.path=12", "align", "--workdir=~/x",
    ]  # fmt: skip
    config, workdir, rest = recipe.parse(["--config", TINY, *words])
    assert config.align.methods == ("raw", "exponential(10)", "optimal(average_of(best_of(1),best_of(2)))")
    assert config.evaluate.best_of == (2, 4) and config.evaluate.curve == (0.5,)
    assert config.sft.learning_rate == 1.0 and isinstance(config.sft.learning_rate, float)
    assert config.log.tensorboard is True and config.seed == -1 and config.data.path == "12"
    assert rest == ["align"] and workdir == os.path.expanduser("~/x") and config.is_locked
    quoted = recipe.parse(["--config", TINY, "--config.align.methods=('log',)"]).config
    assert quoted.align.methods == ("log",)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_page_of_help_names_every_command_and_fits_a_terminal(words, capsys):
    main.main(words)
    page = capsys.readouterr().out
    for command in main.COMMANDS:
        assert re.search(rf"^  {command} ", page, re.MULTILINE), command
    assert "--config RECIPE" in page and "--workdir DIR" in page and "COMMAND --help" in page
    assert max(map(len, page.splitlines())) <= 120 and len(page.splitlines()) < 40


@pytest.mark.parametrize("tool", main.TOOLS)
def test_tools_have_pages_of_their_own(tool, capsys):
    main.main([tool, "--help"])
    assert capsys.readouterr().out.startswith(f"infalign {tool}")


def test_version(capsys):
    main.main(["--version"])
    assert capsys.readouterr().out == f"infalign {__version__}\n"


def test_doctor_names_the_machine_and_what_a_config_would_run(capsys, tmp_path):
    doctor.main(
        [
            "--config",
            TINY,
            "--workdir",
            str(tmp_path),
            "--config.reward=learned",
            "--config.sft.steps=31",
            "--config.align.methods=raw,log",
        ]
    )
    said = capsys.readouterr().out
    for words in (
        "jax ",
        "devices ",
        "memory ",
        "GiB free",
        "31 steps of 64",
        "8 steps of 256 pairs",
        "2 methods (raw, log)",
    ):
        assert words in said
    assert not list(tmp_path.iterdir())


def record(folder, config=None):
    """A workdir as a run leaves it when it has only begun."""
    config = {**(config or tiny.get_config()).to_dict(), "workdir": str(folder)}
    with workdirs.claim(config):
        pass
    return config


def test_status_says_what_is_done_and_what_was_interrupted(tmp_path):
    config = tiny.get_config()
    with config.unlocked():
        config.align.methods, config.align.steps = ("raw", "exponential(10)"), 12
    record(tmp_path, config)
    workdirs.finish(tmp_path / "sft", {"loss": 1.25}, time.monotonic() - 75)
    (tmp_path / "calibrate" / "parts").mkdir(parents=True)
    (tmp_path / "calibrate" / "parts" / "00000000.npz").write_bytes(b"")
    folder = tmp_path / order.align_folder("raw", 0)
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 0, "kl": 0.1}\n{"step": 6, "kl": 0.25}\n{"st')
    lines = {line.strip().split("  ")[0]: line for line in status.lines(tmp_path)}
    assert "done         1:15 · loss 1.250" in lines["sft"]
    assert "not needed" in lines["reward-model"]
    assert "interrupted  1 calls of 136 prompts" in lines["calibrate"]
    assert "interrupted  step 7 of 12 · kl 0.250" in lines["align raw, seed 0"]
    assert "not begun" in lines["align exponential(10), seed 0"] and "not begun" in lines["evaluate"]
    assert "go on with" in lines
    with workdirs.claim(
        record(tmp_path, config)
    ):  # what had been begun is all at work again, and may be several at once
        words = [line.split("  ")[1:] for line in status.lines(tmp_path)]
        assert sum("running" in map(str.strip, parts) for parts in words) == 2
        (tmp_path / order.align_folder("exponential(10)", 0)).mkdir(parents=True)  # it compiles its first step
        words = [line.split("  ")[1:] for line in status.lines(tmp_path)]
        assert sum("running" in map(str.strip, parts) for parts in words) == 3


def test_status_tells_running_failed_and_killed_apart(tmp_path):
    config = record(tmp_path)
    with workdirs.claim(config):
        lines = status.lines(tmp_path)
        assert any(line.startswith(f"running: process {os.getpid()}") for line in lines)
        assert re.fullmatch(r"  sft +running", lines[1]) and "not begun" in lines[3]
    with pytest.raises(FloatingPointError), workdirs.claim(config):
        raise FloatingPointError("loss is nan")
    assert any("ended: loss is nan" in line for line in status.lines(tmp_path))
    file = tmp_path / workdirs.LOCK_FILE
    file.write_text(re.sub('"ended": "[^"]*"', '"ended": null', file.read_text()))
    assert any("was stopped: killed" in line for line in status.lines(tmp_path))
    file.write_text("garbage")
    assert status.lines(tmp_path)


def test_two_runs_in_one_workdir(tmp_path):
    config = record(tmp_path)
    with workdirs.claim(config):
        line = refused(lambda: main.run("run", tiny.get_config(), tmp_path))
        assert line.startswith(f"workdir {tmp_path} is in use by process {os.getpid()} on ")
    with workdirs.claim(config):
        pass  # free again


def test_the_lock_of_a_killed_process_does_not_block(tmp_path):
    config = record(tmp_path)
    holder = (
        "import sys, json, time\nfrom infalign_jax.training import workdir\n"
        "with workdir.claim(json.loads(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder, __import__("json").dumps(config)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout.readline() == "held\n"
        assert f"in use by process {process.pid}" in refused(lambda: record(tmp_path))
    finally:
        process.kill()
        process.wait()
    record(tmp_path)


def test_file_systems_without_locks_and_remote_folders_are_not_locked(tmp_path, monkeypatch):
    import fcntl

    def no_locks(file, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    config = record(tmp_path)
    with workdirs.claim(config), workdirs.claim(config):
        pass
    assert not workdirs.is_local("gs://bucket/run") and workdirs.last_run("gs://bucket/run") is None


def test_errors_of_users_are_sentences_and_bugs_are_not():
    from infalign_jax.core import transforms

    def trace(act):
        with pytest.raises(BaseException) as caught:
            act()
        return caught.value

    def raises(error):
        raise error

    assert errors.sentence(trace(lambda: transforms.exponential(0))).startswith("exponential(t) needs")
    assert errors.sentence(trace(lambda: int("a"))) is None, "a ValueError of a library is a bug of ours"
    assert errors.sentence(trace(lambda: {}["a"])) is None
    assert (
        errors.sentence(trace(lambda: pathlib.Path("/no/such/file").read_text()))
        == "No such file or directory: /no/such/file"
    )
    assert "free some space" in errors.sentence(OSError(28, "No space left on device", "/x/y"))
    assert "free some space" in errors.sentence(RuntimeError("UNKNOWN: Error writing: No space left on device"))
    assert "out of memory" in errors.sentence(RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying 5 bytes"))
    assert "out of memory" in errors.sentence(MemoryError())
    assert "goes on" in errors.sentence(KeyboardInterrupt())
    assert errors.sentence(RuntimeError("something else")) is None


def test_only_the_noise_of_failed_reads_is_dropped(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    errors.quiet_readers()
    for error in (RuntimeError("Event loop is closed"), RuntimeError("another"), ValueError("Event loop is closed")):
        sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    assert [str(raised.exc_value) for raised in shown] == ["another", "Event loop is closed"]


def shell(arguments, **options):
    """A real `infalign` process."""
    command = [sys.executable, "-m", "infalign_jax", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "nowhere.py", "--workdir", "x"], "there is no such file"),
        (
            ["run", "--config", TINY, "--workdir", "/dev/null/x"],
            "workdir /dev/null/x cannot be written: Not a directory",
        ),
        (
            ["run", "--config", TINY, "--workdir", "x", "--config.calibrate.rollouts=0"],
            "config.calibrate.rollouts is 0",
        ),
    ],
)
def test_a_process_ends_with_one_line_and_status_2(arguments, words):
    result = shell(arguments)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("infalign: ") and result.stderr.count("\n") == 1 and words in result.stderr
    assert not (ROOT / "x").exists()


def test_a_page_cut_off_by_its_reader_is_no_error():
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    result = subprocess.run(
        [sys.executable, "-m", "infalign_jax"], cwd=ROOT, stdout=reader.stdin, stderr=subprocess.PIPE
    )
    assert b"Traceback" not in result.stderr


def test_an_interrupt_ends_shortly_with_status_130(tmp_path):
    recipe_file = tmp_path / "slow.py"
    recipe_file.write_text("import time\nprint('in', flush=True)\ntime.sleep(60)\n")
    # A shell's background jobs, and what they start, ignore SIGINT from birth: this one must not.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from infalign_jax.main import cli; cli()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "--config", recipe_file], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "in\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said == f"infalign: {errors.INTERRUPTED}\n"
