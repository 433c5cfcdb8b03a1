"""Workdirs in a bucket (gs://...): everything but the arrays of checkpoints, which TensorStore writes by itself."""

import gzip
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from infalign_jax import main, status
from infalign_jax.data import tokenizer as tokenizers
from infalign_jax.reporting import metrics
from infalign_jax.stages import calibrate
from infalign_jax.training import checkpoints, profile, workdir
from tests import bucket, tiny


@pytest.fixture
def gs(monkeypatch):
    return bucket.install(monkeypatch)


def test_records_and_tables(gs):
    folder = epath.Path("gs://b/run/calibrate")
    workdir.write_json(folder / "done.json", {"loss": 1.5})
    assert workdir.done(folder) == {"loss": 1.5} and workdir.has(folder / "done.json")
    calibrate.write_arrays(folder / "table.npz", rewards=np.eye(2))
    np.testing.assert_array_equal(calibrate.read_arrays(folder / "table.npz", ("rewards",))["rewards"], np.eye(2))
    assert sorted(gs.store) == ["/b/run/calibrate/done.json", "/b/run/calibrate/table.npz"]


def test_a_claim_is_checked_there_too(gs):
    config = {"workdir": "gs://b/run", "seed": 0, "align": {"keep": 2}}
    with workdir.claim(config):
        pass
    with workdir.claim({**config, "align": {"keep": 3}}):
        pass
    with (
        pytest.raises(ValueError, match=r"workdir gs://b/run was made by another config \(seed: 0 -> 1\)"),
        workdir.claim({**config, "seed": 1}),
    ):
        pass
    assert workdir.last_run("gs://b/run") is None


def test_metrics_are_in_the_bucket_at_every_sync_and_are_gone_on_with(gs):
    with metrics.MetricsWriter("gs://b/sft") as writer:
        writer.write(0, {"loss": 3.0})
        assert metrics.read("gs://b/sft") == []
        writer.sync()
        assert metrics.read("gs://b/sft") == [{"step": 0, "loss": 3.0}]
        writer.write(1, {"loss": 2.0})
    with metrics.MetricsWriter("gs://b/sft", start=1) as writer:
        writer.write(1, {"loss": 1.0})
    assert [row["loss"] for row in metrics.read("gs://b/sft")] == [3.0, 1.0]


def test_a_tokenizer(gs):
    made = tokenizers.train_sentencepiece(["a b c", "c d"], model_type="word", vocab_size=64)
    made.save("gs://b/tokenizer")
    assert tokenizers.load("gs://b/tokenizer").encode("a d") == made.encode("a d")


def test_files_of_libraries_that_know_no_buckets(gs, tmp_path):
    with workdir.on_disk(epath.Path("gs://b/hf")) as place:
        (place / "sub").mkdir()
        (place / "sub" / "x.json").write_text("{}")
        assert not gs.store
    assert epath.Path("gs://b/hf/sub/x.json").read_text() == "{}"
    with workdir.on_disk(tmp_path) as place:
        assert place == tmp_path


def test_a_trace_is_there_and_can_be_read(gs):
    tracer = profile.Tracer("gs://b/sft", (1, 2))
    for step in range(4):
        with tracer.step(step, "align raw"):
            values = jnp.sin(jnp.ones(3) + step)
        tracer.after(step, values)
    tracer.close()
    files = {name: bytes(gs.cat_file(name)) for name in gs.store if name.startswith("/b/sft/profile/")}
    (perfetto,) = (file for name, file in files.items() if name.endswith("perfetto_trace.json.gz"))
    events = json.loads(gzip.decompress(perfetto))["traceEvents"]
    assert [event["args"]["step_num"] for event in events if event.get("name") == "align raw"] == ["1", "2"]
    (xplane,) = (file for name, file in files.items() if name.endswith(".xplane.pb"))
    assert any(
        plane.name.startswith("/host") for plane in jax.profiler.ProfileData.from_serialized_xspace(xplane).planes
    )


@pytest.mark.slow
def test_a_whole_run(gs, tmp_path, monkeypatch):
    """As elsewhere, except that checkpoints, which TensorStore sends to Google itself, are kept on disk."""
    moved = type("Moved", (), {"Path": lambda path: epath.Path(str(path).replace("gs://", f"{tmp_path}/"))})
    monkeypatch.setattr(checkpoints, "epath", moved)
    config = tiny.get_config()
    with config.unlocked():
        config.align.methods = ("exponential(10)",)
    main.run("run", config, "gs://b/run")
    rows = json.loads(epath.Path("gs://b/run/evaluate/results.json").read_text())
    assert rows and "/b/run/evaluate/report.html" in gs.store and "/b/run/evaluate/figures/headline.png" in gs.store
    assert len(metrics.read("gs://b/run/align/exponential_10/seed_0")) == 12
    before = dict(gs.store)
    main.run("run", config, "gs://b/run")
    assert {name for name, file in gs.store.items() if before.get(name) is not file} == {"/b/run/config.json"}
    assert "everything is done" in status.lines("gs://b/run")[-1]
    assert not [path for path in os.listdir() if path.startswith("gs:")]
