"""The table of docs/scale.md: what is compiled of it, and that the page has the committed numbers."""

import json

from infalign_jax.scale import table


def test_only_what_is_missing_of_a_row_is_compiled(monkeypatch, tmp_path):
    names, done = list(table.ROWS)[:2], []
    numbers = {"topology": "t", "mesh": {}, "prompts": 1, "rollouts": 1, "microbatches": 1}
    refused = {"hbm": 1e9, "peak": 2e9, "fits": False}
    (tmp_path / "scale.md").write_text(f"before\n{table.BEGIN}\n{table.END}\nafter")
    (tmp_path / "scale.json").write_text(json.dumps({names[0]: {**numbers, "steps": {"align": refused}}}))
    monkeypatch.setattr(table, "PAGE", tmp_path / "scale.md")
    monkeypatch.setattr(table, "NUMBERS", tmp_path / "scale.json")

    def compiled(arguments):
        step = arguments[-1].removeprefix("--steps=")
        done.append(step)
        return {"failed": "no reason"} if len(done) > 5 else {**numbers, "steps": {step: refused}}

    monkeypatch.setattr(table, "_compile", compiled)
    table.main([f"--rows={';'.join(names)}"])
    assert done == ["sample", "score", "sample", "score", "align"]
    table.main([f"--rows={';'.join(names)}"])
    assert len(done) == 5
    assert list(json.loads(table.NUMBERS.read_text())[names[0]]["steps"]) == ["sample", "score", "align"]
    table.main([f"--rows={names[0]}", "--steps=score", "--again"])  # fails: what was known stays
    page = (tmp_path / "scale.md").read_text()
    assert page.startswith("before") and page.endswith("after") and page.count("**no**") == 6
    assert page.count("**failed: no reason**") == 1


def test_the_committed_table_is_that_of_the_committed_numbers():
    numbers = json.loads(table.NUMBERS.read_text())
    assert "\n".join(table.lines(numbers)) in table.PAGE.read_text()
    assert set(numbers) <= set(table.ROWS)
