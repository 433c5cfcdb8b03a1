"""Several processes of this machine as one run, for tests; and, run as a program, what one of them computes.

As a program (`multi_process.py`, placed by the environment like `infalign` itself): the align step and the sampler of
tests/multi_device.py on meshes over all processes; the first process prints one JSON object with the largest relative
differences from what one device computed, and saves or reads those in the file REFERENCE.
"""

import json
import os
import pathlib
import pickle
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
# On a machine whose cores are busy a healthy process may be silent, or its devices wait for each other, longer than the
# defaults allow. Who is gone must be noticed otherwise: by connections that break.
PATIENT = {
    "INFALIGN_HEARTBEAT_SECONDS": "600",
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_collective_call_terminate_timeout_seconds=600",
}
CLI = (sys.executable, "-m", "infalign_jax")
ONE = {"one": dict(data=1, fsdp=1, tensor=1)}
EIGHT = {
    "data": dict(data=8, fsdp=1, tensor=1),
    "fsdp": dict(data=1, fsdp=8, tensor=1),
    "tensor": dict(data=4, fsdp=1, tensor=2),
}


def free_port():
    """A port of this machine where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(count, devices, command, **variables):
    """`count` processes of a command, joined into one run (alone with JOIN="no"); each with a log of its own.

    Logs are pipes, which a full disk does not touch, or with LOG="file" files on it.
    """
    port, join, piped = free_port(), variables.pop("JOIN", "yes") == "yes", variables.pop("LOG", "pipe") == "pipe"
    shared = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    shared |= {**PATIENT, "PYTHONPATH": str(ROOT), **variables}
    logs = [tempfile.TemporaryFile("w+") for _ in range(count)]  # noqa: SIM115 (`finish` closes them)
    copiers = [subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=log) for log in logs] if piped else []
    processes = [
        subprocess.Popen(
            [*map(str, command)],
            env={**os.environ, **shared, "INFALIGN_DISTRIBUTED": f"127.0.0.1:{port},{count},{number}" if join else ""},
            stdout=copiers[number].stdin if piped else log,
            stderr=subprocess.STDOUT,
        )
        for number, log in enumerate(logs)
    ]
    for copier in copiers:
        copier.stdin.close()  # the process alone holds it now
    return list(zip(processes, logs, copiers or [None] * count, strict=True))


def finish(started, timeout=900):
    """(statuses, outputs, seconds from the first end to the last); who is still there after `timeout` seconds is killed.

    That is many times what any of these runs takes on idle cores: it is there to end a hang, not to judge a busy machine.
    """
    deadline, first = time.monotonic() + timeout, None
    while any(process.poll() is None for process, *_ in started):
        if first is None and any(process.poll() is not None for process, *_ in started):
            first = time.monotonic()
        if time.monotonic() > deadline:
            for process, *_ in started:
                process.kill()
        time.sleep(0.1)
    seconds, outputs = time.monotonic() - (first or time.monotonic()), []
    for _, log, copier in started:
        if copier:
            copier.wait(timeout=60)
        log.seek(0)
        outputs.append(log.read())
        log.close()
    return [process.returncode for process, *_ in started], outputs, seconds


def length_of_own(prompts, completions):
    """A reward, longer is better; counts what each process was asked, by the number of texts, in the file $SCORED.NUMBER."""
    import jax

    file = pathlib.Path(f"{os.environ['SCORED']}.{jax.process_index()}")
    counts = json.loads(file.read_text()) if file.exists() else {}
    counts[str(len(prompts))] = counts.get(str(len(prompts)), 0) + 1
    file.write_text(json.dumps(counts))
    return [float(len(text)) + 0.01 * (sum(map(ord, text)) % 97) for text in completions]


def broken_on_1(prompts, completions):
    """A reward that works on process 0 alone."""
    import jax

    if jax.process_index() == 1:
        raise RuntimeError("no rewards today")
    return [float(len(text)) for text in completions]


def main():
    """Compares this run's meshes with one device, and prints the differences."""
    import jax
    from jax.experimental import multihost_utils

    from infalign_jax.training import distributed
    from tests.multi_device import differences, run

    distributed.start()
    file = pathlib.Path(os.environ["REFERENCE"])
    if jax.device_count() == 1:
        file.write_bytes(pickle.dumps(run(ONE["one"], jax.devices())))
    expected = pickle.loads(file.read_bytes())
    report = {"processes": jax.process_count(), "devices": jax.device_count(), "meshes": {}}
    for name, sizes in (ONE if jax.device_count() == 1 else EIGHT).items():
        other = run(sizes, jax.devices())
        asked = multihost_utils.process_allgather(np.int32(other[-1])).reshape(-1).tolist()
        report["meshes"][name] = {**differences(other, expected), "asked": asked}
    if distributed.is_first():
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
