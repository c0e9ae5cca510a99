from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_ft.atomic import whole_folder
from lightning_ft.errors import UsageError
from lightning_ft.loading import Location, embedded_folder, load, locate
from lightning_ft.testing.models import tiny_backbone_folder, tiny_llama, tiny_tokenizer

IDS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_backbone_folder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """The folder of a LoRA adapter that changes the model, and the logits that it should give."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapter")
    model = get_peft_model(tiny_llama(), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).eval()
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(str(folder))
    with torch.no_grad():
        return folder, model(IDS).logits


def run_folder(path: Path) -> Path:
    path.mkdir()
    (path / "run.json").write_text("{}")
    return path


def put(source: Path, target: Path) -> Path:
    """A whole copy of a model folder, with a manifest."""
    with whole_folder(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
    return target


def logits(name: str) -> torch.Tensor:
    loaded = load(name, device="cpu")
    assert not loaded.model.training
    with torch.no_grad():
        found: torch.Tensor = loaded.model(IDS).logits
    return found


def test_the_embedded_model() -> None:
    assert locate("embedded") == Location("plain", str(embedded_folder()))
    assert (embedded_folder() / "model.safetensors").is_file()


def test_a_plain_folder(base: Path) -> None:
    assert locate(str(base)) == Location("plain", str(base))
    assert locate(str(base)).tokenizer == str(base)
    with torch.no_grad():
        torch.testing.assert_close(logits(str(base)), tiny_llama()(IDS).logits)


def test_an_adapter(base: Path, adapter: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    folder, expected = adapter
    assert locate(str(folder)) == Location("adapter", str(base), folder)
    assert locate(str(folder)).tokenizer == str(base), "it has none of its own"
    torch.testing.assert_close(logits(str(folder)), expected)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(expected, logits(str(base)))
    own = put(folder, tmp_path / "own")
    tiny_tokenizer().save_pretrained(own)
    assert locate(str(own)).tokenizer == str(own)


def test_a_run_offers_its_final_model_then_its_newest_whole_checkpoint(
    base: Path, adapter: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    run = run_folder(tmp_path / "run")
    with pytest.raises(UsageError, match="to hold final_model/ or a whole checkpoint; it holds neither"):
        locate(str(run))
    checkpoints = [put(base, run / "checkpoints" / f"checkpoint-step-{step}") for step in (9, 10, 11)]
    (checkpoints[2] / "model.safetensors").write_bytes(b"half")
    assert locate(str(run)) == Location("plain", str(checkpoints[1])), "the newest is broken, 10 is newer than 9"
    assert locate(str(checkpoints[0])) == Location("plain", str(checkpoints[0]))
    final = put(adapter[0], run / "final_model")
    assert locate(str(run)) == Location("adapter", str(base), final)


def test_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("owner/name.v1", revision="abc") == Location("hub", "owner/name.v1", revision="abc")
    Path("owner").mkdir()
    with pytest.raises(UsageError, match="'owner/name' is none"):
        locate("owner/name")  # a folder of that owner's name is there: a misspelt path, not the hub


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nothing", "to be a model folder, a run folder, a hub id (owner/name) or 'embedded'; 'nothing' is none."),
        ("a.txt", "to be a folder, got the file 'a.txt'; type the folder that holds it."),
        ("empty", "to hold config.json, adapter_config.json or run.json; it holds none, so it is no model folder."),
    ],
)
def test_what_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("x")
    Path("empty").mkdir()
    with pytest.raises(UsageError) as caught:
        locate(name)
    assert str(caught.value).endswith(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "to name its base model in 'base_model_name_or_path'; it does not."),
        (["x"], "to name its base model in 'base_model_name_or_path'; it does not."),
        ("gone", "to be a plain model, but it is not there; put it back"),
        ("", "to name its base model in 'base_model_name_or_path'; it does not."),
    ],
)
def test_adapters_without_a_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any, expected: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": value}))
    with pytest.raises(UsageError) as caught:
        locate("adapter")
    assert expected in str(caught.value)


def test_an_adapter_on_an_adapter_is_refused(tmp_path: Path, adapter: tuple[Path, torch.Tensor]) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(adapter[0])}))
    with pytest.raises(UsageError, match="to be a plain model, but it is an adapter itself"):
        locate(str(tmp_path))


@pytest.mark.parametrize(("asked", "found"), [(None, "abc"), ("def", "def")])
def test_an_adapter_stands_on_the_revision_that_it_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str | None, found: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"base_model_name_or_path": "owner/name", "revision": "abc"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert locate("adapter", revision=asked) == Location("adapter", "owner/name", Path("adapter"), None, found)
    run = run_folder(tmp_path / "run")
    shutil.copytree(folder, run / "final_model")
    assert locate("run", revision=asked).revision == found
