"""What cannot be run is refused in one sentence, before a model is loaded; and the command from its line to its files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import yaml

from lightning_ft.errors import UsageError

if TYPE_CHECKING:
    from lightning_ft.testing.fixtures import Scratch

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
from lightning_ft_harness.files import find
from lightning_ft_harness.runner import quiet, run

TASK: dict[str, Any] = {
    "task": "colours",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "colours.jsonl"}, "cache_dir": "cache"},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "choices",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}],
}


def never() -> NoReturn:
    raise AssertionError("tasks are checked before the model is loaded")


@pytest.fixture
def task(scratch: Scratch) -> Any:
    """Writes a task with changes; its data lie beside it."""
    scratch.write(
        "colours.jsonl", [{"question": f"the {n} is", "choices": ["red", "blue"], "answer": 0} for n in ("ball", "sky")]
    )

    def write(name: str = "colours.yaml", **changes: Any) -> str:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(
            yaml.safe_dump({key: v for key, v in (TASK | changes).items() if v is not None}), encoding="utf-8"
        )
        return name

    return write


def names(*given: str) -> set[str]:
    with quiet():
        return set(find(given)["tasks"])


def test_files_folders_and_groups(task: Any) -> None:
    task("set/one.yaml", task="one")
    task("set/two.yaml", task="two", num_fewshot=0)
    Path("set/_shared.yaml").write_text("output_type: multiple_choice\n", encoding="utf-8")
    assert names("set/one.yaml") == {"one"}
    assert names("set") == {"one", "two"}
    Path("set/both.yaml").write_text("group: both\ntask: [one]\naggregate_metric_list: [{metric: acc}]\n", encoding="utf-8")
    with quiet():
        found = find(["set"])
    assert (set(found["tasks"]), set(found["groups"])) == ({"one", "two"}, {"both"})


def test_wrong_tasks(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path("broken.yaml").write_text("task: [one\n  dataset_path: json", encoding="utf-8")
    Path("list.yaml").write_text("- task", encoding="utf-8")
    Path("empty").mkdir()
    Path("kindless.yaml").write_text("dataset_path: json\n", encoding="utf-8")
    Path("circle.yaml").write_text("include: circle.yaml\n", encoding="utf-8")
    files = {"data_files": {"test": "nowhere.jsonl"}, "cache_dir": "cache"}
    cases = {
        "nowhere.yaml": "there is no 'nowhere.yaml'",
        "arc_eazy": "Did you mean 'arc_easy'",
        "broken.yaml": "'broken.yaml' to be a task in YAML, got ParserError",
        "list.yaml": "got list",
        "kindless.yaml": "from 'kindless.yaml', got ValueError",
        "empty": "in 'empty', got none",
        "circle.yaml": "'circle.yaml' by way of itself",
        task("data.yaml", dataset_kwargs=files): "from 'data.yaml', got FileNotFoundError: .*nowhere.jsonl",
        task("split.yaml", test_split="dev"): "from 'split.yaml', got KeyError",
        task("hub.yaml", dataset_path="nobody/nothing", dataset_kwargs=None): "from 'hub.yaml', got .*nobody/nothing",
        task("kind.yaml", output_type="guess"): "from 'kind.yaml', got ",
        task("metric.yaml", metric_list=[{"metric": "bleurt"}]): "'bleurt', which is none of them",
        task("included.yaml", metric_list=None, include="metric.yaml"): "'bleurt', which is none of them",
    }
    for name, message in cases.items():
        with pytest.raises(UsageError, match=message) as caught:
            run(never, [name])
        assert len(str(caught.value)) < 500
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"'colours' again from 'twin\.yaml'"):
        run(never, [task(), task("twin.yaml")])


def test_without_lm_eval(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find_spec(name))
    with pytest.raises(UsageError, match="pip install 'lm-eval"):
        run(never, [task()])


def test_what_only_running_shows(task: Any) -> None:
    from lightning_ft.loading import load

    second = "{{ 1 // (question|length - 10) }}"
    with pytest.raises(UsageError, match=r"on this model \(colours\), got ZeroDivisionError"):
        run(lambda: load("embedded"), [task(doc_to_text=second)])
    answers = {"output_type": "generate_until", "doc_to_choice": None, "generation_kwargs": {"max_gen_toks": 1 << 20}}
    with pytest.raises(UsageError, match=r"\(colours\), got AssertionError: Invalid configuration"):
        run(lambda: load("embedded"), [task(**answers, metric_list=[{"metric": "exact_match"}])])


def test_the_command(task: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from lightning_ft.cli import main
    from lightning_ft.registry import registry

    if not registry().manager.hook.run_harness.get_hookimpls():
        pytest.skip("lightning-ft-harness is not installed")
    command = ["evaluate", "embedded", "--harness", task(), "--limit", "1"]
    assert main([*command, "--output", "out"]) == 0
    out = capsys.readouterr()
    assert out.out.splitlines()[0].split() == ["task", "metric", "value", "std", "error", "better", "rows"]
    assert "colours" in out.out
    assert out.err == ""
    written = json.loads(Path("out/harness.json").read_text(encoding="utf-8"))
    (acc,) = written["measurements"]
    assert (acc["task"], acc["metric"], acc["rows"], acc["error"]) == ("colours", "acc", 1, None)
    assert written["details"]["documents"]["colours"] == {"original": 2, "effective": 1}
    assert written["details"]["limit"] == 1
    (sample,) = [json.loads(line) for line in Path("out/samples_colours.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sample["doc"]["question"] == "the ball is"
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["measurements"] == written["measurements"]
    assert main([*command, "--output", "out"]) == 2
    assert "holds an evaluation" in capsys.readouterr().err
