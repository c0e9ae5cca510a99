"""A run whose tokenizer got words of its own: what trains, what is saved, and everything that loads it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

import lightning_ft
from lightning_ft.cli import main
from lightning_ft.errors import UsageError
from lightning_ft.loading import load
from lightning_ft.registry import registry
from lightning_ft.testing.models import VOCABULARY, Family, tiny_backbone_folder
from lightning_ft.testing.runs import stopped_at

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("lightning_ft_methods")
pytestmark = pytest.mark.usefixtures("module_cache")
WORDS = [" myocarditis", " chronic", " heart", "Acute"]
TEXT = "Acute myocarditis of the heart is not chronic myocarditis."
OPTIONS: dict[str, Any] = {
    "precision": "fp32", "batch_size": 4, "max_steps": 6, "learning_rate": 1e-2, "preflight": False, "retention": "none",
    "save_every": 2, "eval_every": 2, "keep_best": 3, "verdict_rows": 4, "task": {"name": "domain", "add_tokens": "auto:4"},
}  # fmt: skip
MODELS: list[tuple[Family, Any]] = [
    ("llama", {"name": "lora", "dropout": 0.1}), ("gpt2", {"name": "lora"}), ("llama", "full"), ("gpt2", "full"),
]  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words of the held-out rows alone are no tokens, however frequent they are."""
    folder = tmp_path_factory.mktemp("rows")
    kept = [{"text": f"{TEXT} No {n}.", "split": "train"} for n in range(24)]
    kept += [{"text": f"{TEXT} Number {n}:{' thrombosis' * 12}.", "split": "test"} for n in range(12)]
    kept += [{"text": f"{TEXT} Validation {n}.", "split": "validation"} for n in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return folder / "rows.jsonl"


def fit(model: Path | str, rows: Path, output: Path, **options: Any) -> Any:
    return lightning_ft.fit(model=str(model), data=str(rows), output=str(output), **OPTIONS | options)


@pytest.fixture(scope="module", params=MODELS, ids=[f"{family}-{number}" for number, (family, _) in enumerate(MODELS)])
def run(request: pytest.FixtureRequest, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, method = request.param
    folder = tmp_path_factory.mktemp("run")
    model = tiny_backbone_folder(folder / "model", family)
    fit(model, rows, folder / "run", method=method)
    return folder / "run"


def adapted(run: Path) -> bool:
    return (run / "final_model" / "adapter_config.json").is_file()


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    ids = tokenizer(TEXT, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids).logits
    return found


def logits_of(run: Path) -> torch.Tensor:
    found = load(str(run))
    return logits(found.model, found.tokenizer)


def test_the_words_are_those_of_the_training_rows_and_their_rows_train(run: Path) -> None:
    found, base = load(str(run)), load(str(run.parent / "model"))
    assert json.loads((run / "run.json").read_text())["new_tokens"] == WORDS
    ids = found.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert [ids.count(VOCABULARY + n) for n in range(4)] == [2, 1, 1, 1]
    assert found.tokenizer.decode(ids) == TEXT
    model = registry().methods["lora"].cls().merge(found.model) if adapted(run) else found.model
    for name in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(base.model, name)().weight, getattr(model, name)().weight
        starts = [old[base.tokenizer(word, add_special_tokens=False)["input_ids"]].mean(0) for word in WORDS]
        assert new.shape[0] == VOCABULARY + len(WORDS)
        assert ((new[VOCABULARY:] - torch.stack(starts)).abs().amax(1) > 1e-3).all(), "each of them has been trained"
        assert torch.equal(new[:VOCABULARY], old) is adapted(run)


def test_peft_and_transformers_load_it_without_our_code(run: Path) -> None:
    final = run / "final_model"
    auto: Any = AutoPeftModelForCausalLM if adapted(run) else AutoModelForCausalLM
    assert torch.equal(logits(auto.from_pretrained(final), AutoTokenizer.from_pretrained(final)), logits_of(run))


def test_merged_and_asked(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("lightning_ft_export")
    assert main(["generate", "--model", str(run), "--prompt", TEXT, "--max_new_tokens", "2"]) == 0
    target = tmp_path / "merged"
    if not adapted(run):
        return
    assert main(["merge", "--model", str(run), "--output", str(target)]) == 0
    plain: Any = AutoModelForCausalLM.from_pretrained(target)
    assert plain.config.vocab_size == VOCABULARY + len(WORDS)
    torch.testing.assert_close(logits(plain, AutoTokenizer.from_pretrained(target)), logits_of(run), atol=1e-5, rtol=0)


def test_evaluated_again_it_is_what_the_run_said(run: Path, rows: Path, tmp_path: Path) -> None:
    said = {one["metric"]: one for one in json.loads((run / "verdict.json").read_text())["comparisons"]}
    assert {"bits_per_byte", "vocabulary_coverage", "loss"} <= said.keys()
    again = lightning_ft.evaluate(str(run), data=str(rows), task="domain", output=str(tmp_path / "again"), precision="fp32")
    before = lightning_ft.evaluate(
        str(run.parent / "model"), data=str(rows), task="domain", output=str(tmp_path / "before"), precision="fp32"
    )
    assert again.metrics["vocabulary_coverage"] > before.metrics["vocabulary_coverage"]
    assert again.metrics["bits_per_byte"] < before.metrics["bits_per_byte"]
    assert said["bits_per_byte"]["tuned"] < said["bits_per_byte"]["base"]
    assert said["vocabulary_coverage"]["tuned"] == said["vocabulary_coverage"]["base"]


def test_a_resumed_run_is_the_run_that_was_not_stopped(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    checkpoint = stopped_at(run, copy, 2)
    assert main(["fit", "--resume", str(checkpoint)]) == 0
    from safetensors.torch import load_file

    name = next(path.name for path in (run / "final_model").glob("*.safetensors"))
    whole, resumed = load_file(run / "final_model" / name), load_file(copy / "final_model" / name)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    tokenizers = [(folder / "final_model" / "tokenizer.json").read_bytes() for folder in (run, copy)]
    assert tokenizers[0] == tokenizers[1]


def test_a_run_goes_on_from_it_with_the_same_words(run: Path, rows: Path, tmp_path: Path) -> None:
    method = "lora" if adapted(run) else "full"
    fit(run, rows, tmp_path / "further", task="domain", method=method, learning_rate=1e-12, max_steps=2)
    torch.testing.assert_close(logits_of(tmp_path / "further"), logits_of(run), atol=1e-5, rtol=0)


def test_an_adapter_gets_no_further_words(rows: Path, tmp_path: Path) -> None:
    model = tiny_backbone_folder(tmp_path / "model")
    fit(model, rows, tmp_path / "run", method="lora", task="domain", max_steps=1, verdict_rows=0)
    words = tmp_path / "words.txt"
    words.write_text("myocarditis\n", encoding="utf-8")
    for option in ("auto", str(words)):
        named = {"name": "domain", "add_tokens": option}
        with pytest.raises(
            UsageError, match="Expected --model to be a plain model where the task adds tokens, got the adapter"
        ):
            fit(tmp_path / "run", rows, tmp_path / "more", method="lora", task=named)


def test_a_method_that_cannot_train_them_is_refused_before_anything_is_encoded(rows: Path, tmp_path: Path) -> None:
    model = tiny_backbone_folder(tmp_path / "model")
    with pytest.raises(
        UsageError, match=r"Expected a method that trains the rows of new tokens.*got ia3.*--method .*full.*lora"
    ):
        fit(model, rows, tmp_path / "run", method="ia3")
    assert not (tmp_path / "run").exists()


def test_rows_beside_a_matrix_in_parts_are_refused(rows: Path, tmp_path: Path) -> None:
    model = tiny_backbone_folder(tmp_path / "model")
    with pytest.raises(
        UsageError, match=r"Expected --strategy auto or ddp for --method lora, as the task adds tokens.*got fsdp2"
    ):
        fit(model, rows, tmp_path / "run", method="lora", strategy="fsdp2", devices=1)


def test_a_stream_has_no_words_of_all_its_rows(rows: Path, tmp_path: Path) -> None:
    model = tiny_backbone_folder(tmp_path / "model")
    with pytest.raises(UsageError, match="Expected no --stream where the tokenizer gets words of the training rows"):
        fit(model, rows, tmp_path / "run", method="lora", stream=10)
    words = tmp_path / "words.txt"
    words.write_text("myocarditis\nheart\n", encoding="utf-8")
    named = {"name": "domain", "add_tokens": str(words)}
    fit(model, rows, tmp_path / "named", method="lora", stream=10, max_steps=2, task=named, verdict_rows=0)
    assert json.loads((tmp_path / "named" / "run.json").read_text())["new_tokens"] == [" myocarditis", " heart"]
