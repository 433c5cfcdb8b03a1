"""Several processes of this machine as one run, for tests; and, run as a program, what one of them computes.

As a program (`multi_process.py`, placed by the environment like `infalign` itself): the align step and the sampler of
tests/multi_device.py on meshes over all processes; the first process prints one JSON object with the largest relative
differences from what one device computed, and saves or reads those in the file REFERENCE.
"""

import os
import pathlib
import pickle
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
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
    """`count` processes of a command, joined into one run; each writes to a pipe of its own."""
    port = free_port()
    shared = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    shared |= {"INFALIGN_HEARTBEAT_SECONDS": "20", "PYTHONPATH": str(ROOT), **variables}
    return [
        subprocess.Popen(
            [*map(str, command)],
            env={**os.environ, **shared, "INFALIGN_DISTRIBUTED": f"127.0.0.1:{port},{count},{number}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(count)
    ]


def finish(processes, timeout=300):
    """Exit statuses and outputs of all; whoever is still there after `timeout` seconds is killed, with status -9."""
    deadline = time.monotonic() + timeout
    outputs = []
    for process in processes:
        try:
            output, _ = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        outputs.append(output)
    return [process.returncode for process in processes], outputs


def main():
    """Compares this run's meshes with one device, and prints the differences."""
    import json

    import jax

    from infalign_jax.training import distributed
    from tests.multi_device import relative, run

    distributed.start()
    file = pathlib.Path(os.environ["REFERENCE"])
    if jax.device_count() == 1:
        file.write_bytes(pickle.dumps(run(ONE["one"], jax.devices())))
    loss, gradients, variables, tokens = pickle.loads(file.read_bytes())
    report = {"processes": jax.process_count(), "devices": jax.device_count(), "meshes": {}}
    for name, sizes in (ONE if jax.device_count() == 1 else EIGHT).items():
        other = run(sizes, jax.devices())
        report["meshes"][name] = {
            "loss": abs(float(other[0] - loss)) / abs(float(loss)),
            "gradients": relative(other[1], gradients),
            "variables": relative(other[2], variables),
            "same_tokens": bool((other[3] == tokens).all()),
        }
    if distributed.is_first():
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
