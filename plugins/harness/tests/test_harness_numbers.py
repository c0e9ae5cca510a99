"""The numbers of lm-eval's own runner on the same files: a model of its own making against ours."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from lightning_ft.loading import load
from lightning_ft.testing.models import tiny_gpt2, tiny_llama, tiny_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lightning_ft.types import Benchmarked

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
from lightning_ft_harness.runner import run

CHOICES = {
    "output_type": "multiple_choice",
    "doc_to_text": "Once {{question}}.\nThen",
    "doc_to_choice": "choices",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")],
    "num_fewshot": 2,
    "fewshot_split": "test",
}
ANSWERS = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}} ",
    "doc_to_target": "{{target}}",
    "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 12},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
TEXTS = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
}
STORIES = ("a cat saw a dog", "Tim had a red ball", "the sun was hot", "Lily went to the park with her mom and a big bag")


def rows_of_choices() -> list[dict[str, Any]]:
    endings = ("it ran", "the end", "she was very happy to see the old tree", "he said no")
    return [
        {"question": f"{STORIES[i % 4]} and {STORIES[(i * 3 + 1) % 4]}", "choices": list(endings[: 2 + i % 3]), "answer": i % 2}
        for i in range(10)
    ]


def write_task(folder: Path, name: str, task: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source: dict[str, Any] = {"task": name, "dataset_path": "json", "test_split": "test"}
    source["dataset_kwargs"] = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(source | task), encoding="utf-8")
    return str(path)


def reference(tasks: list[str], model: dict[str, Any], **options: Any) -> dict[str, Any]:
    """lm-eval's runner, which loads the model itself and takes one row at a time."""
    from lightning_ft_harness.runner import quiet
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    with quiet():
        results: dict[str, Any] = simple_evaluate(
            model="hf", model_args=model | {"dtype": "float32"}, tasks=tasks, device="cpu", batch_size=1, bootstrap_iters=1000,
            task_manager=TaskManager(include_defaults=False), **options,
        )  # fmt: skip
    return results


def likelihoods(samples: Any) -> list[float]:
    return [float(answer[0][0]) for sample in samples for answer in sample["resps"]]


def assert_same(found: Benchmarked, expected: dict[str, Any]) -> None:
    """Every number and every answer."""
    numbers = {
        (task, key): value
        for task, values in expected["results"].items()
        for key, value in values.items()
        if "," in key and "_stderr" not in key
    }
    assert {(one.task, f"{one.metric},{one.filter or 'none'}") for one in found.measurements} == numbers.keys()
    for one in found.measurements:
        key = f"{one.metric},{one.filter or 'none'}"
        exact = one.metric in ("acc", "acc_norm", "exact_match")
        assert one.value == pytest.approx(numbers[one.task, key], rel=0 if exact else 1e-4, abs=0), one
        error = expected["results"][one.task][key.replace(",", "_stderr,")]
        assert one.error == (None if error == "N/A" else pytest.approx(error, abs=1e-9))
        assert one.rows == expected["n-samples"][one.task]["effective"]
    for task, samples in expected["samples"].items():
        ours = found.samples[task]
        assert [sample["arguments"] for sample in ours] == [sample["arguments"] for sample in samples]
        if samples[0]["metrics"] == ["exact_match"]:
            assert [sample["resps"] for sample in ours] == [sample["resps"] for sample in samples]
        elif "acc" in samples[0]["metrics"]:
            assert likelihoods(ours) == pytest.approx(likelihoods(samples), abs=1e-4)
            greedy = [[answer[0][1] for answer in sample["resps"]] for sample in ours]
            assert greedy == [[answer[0][1] for answer in sample["resps"]] for sample in samples]
        else:
            assert [s["resps"][0][0] for s in ours] == pytest.approx([s["resps"][0][0] for s in samples], abs=1e-4)


def three(folder: Path, loaded: Callable[[], Any], text: str) -> list[str]:
    """A task of choices, one of answers of which some are right, and one of texts longer than the context."""
    asked = [{"question": story, "target": "?"} for story in STORIES * 2]
    answers = write_task(folder, "answers", ANSWERS, asked)
    given = [sample["resps"][0][0] for sample in run(loaded, [answers]).samples["answers"]]
    for i, row in enumerate(asked):
        row["target"] = given[i] if i % 2 else "nothing of the kind"
    answers = write_task(folder, "answers2", ANSWERS, asked)
    texts = write_task(folder, "texts", TEXTS, [{"text": text * n} for n in (1, 7, 3)])
    return [write_task(folder, "choices", CHOICES, rows_of_choices()), answers, texts]


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_tiny_models(make: Callable[[], Any], tmp_path: Path) -> None:
    model = str(tmp_path / "model")
    make().save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    tasks = three(tmp_path, lambda: load(model), "A long day in the big town, and nobody came. ")
    found = run(lambda: load(model), tasks)
    assert_same(found, reference(tasks, {"pretrained": model}))
    shares = {one.metric: one.value for one in found.measurements}
    assert 0 < shares["acc"] < 1
    assert shares["exact_match"] == 0.5


def test_a_real_model(shared_data: Path, tmp_path: Path) -> None:
    model = str(shared_data / "lm_stories260k" / "hf")
    tasks = three(
        tmp_path, lambda: load(model), "Once upon a time, there was a little girl named Lily. She loved to play. " * 9
    )
    options: dict[str, Any] = {"num_fewshot": 1, "limit": 6}
    found = run(lambda: load(model), tasks, **options)
    assert_same(found, reference(tasks, {"pretrained": model}, **options))
    assert {one.rows for one in found.measurements} == {6, 3}


def test_an_adapter_in_turns_of_a_chat(tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    model, adapter = str(tmp_path / "model"), str(tmp_path / "adapter")
    base = tiny_llama()
    base.save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    base.name_or_path = model
    adapted: Any = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = model
    adapted.save_pretrained(adapter)
    torch.manual_seed(0)
    tasks = three(tmp_path, lambda: load(adapter), "A day in town. ")
    found = run(lambda: load(adapter), tasks, apply_chat_template=True)
    chat: dict[str, Any] = {"apply_chat_template": True, "fewshot_as_multiturn": True}
    assert_same(found, reference(tasks, {"pretrained": model, "peft": adapter}, **chat))
    assert "<|start|>assistant" in found.samples["choices"][0]["arguments"][0][0]
    plain = run(lambda: load(model), tasks[:1], apply_chat_template=True)
    assert likelihoods(plain.samples["choices"]) != pytest.approx(likelihoods(found.samples["choices"]), abs=1e-3)


def test_a_soft_prompt_counts_its_positions(tmp_path: Path) -> None:
    """GPT-2 has 256 learned positions, of which 8 are virtual tokens: windows have to be shorter."""
    from peft import PromptTuningConfig, get_peft_model

    model, adapter = str(tmp_path / "model"), str(tmp_path / "adapter")
    base = tiny_gpt2()
    base.save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    base.name_or_path = model
    soft: Any = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8))
    soft.peft_config["default"].base_model_name_or_path = model
    soft.save_pretrained(adapter)
    tasks = three(tmp_path, lambda: load(adapter), "A day in town. " * 20)
    found = run(lambda: load(adapter), tasks)
    assert_same(found, reference(tasks, {"pretrained": model, "peft": adapter, "max_length": 248}))


def test_likelihoods_in_bf16_are_summed_in_float32(shared_data: Path, tmp_path: Path) -> None:
    import torch

    model = str(shared_data / "lm_stories260k" / "hf")
    task = write_task(tmp_path, "choices", CHOICES, rows_of_choices())
    whole = likelihoods(run(lambda: load(model), [task]).samples["choices"])
    half = likelihoods(run(lambda: load(model, dtype=torch.bfloat16), [task]).samples["choices"])
    assert half != whole
    assert any(value != float(torch.tensor(value).bfloat16()) for value in half)
    assert half == pytest.approx(whole, rel=0.05)


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning")  # peft, of merging
def test_a_head_that_an_adapter_brought_stays(tmp_path: Path) -> None:
    """GPT-2 shares one matrix between embedding and head; `HFLM` by itself ties them again and fails."""
    import torch
    from lightning_ft_harness.language_model import LanguageModel
    from peft import LoraConfig, get_peft_model

    model, adapter = str(tmp_path / "model"), str(tmp_path / "adapter")
    base = tiny_gpt2()
    base.save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    base.name_or_path = model
    adapted: Any = get_peft_model(
        base, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, modules_to_save=["lm_head"])
    )
    adapted.peft_config["default"].base_model_name_or_path = model
    with torch.no_grad():
        adapted.base_model.model.lm_head.modules_to_save["default"].weight += 1
    adapted.save_pretrained(adapter)
    loaded, ids = load(adapter), torch.arange(20)[None]
    with torch.no_grad():
        before = loaded.model(ids).logits
        after = LanguageModel(loaded).model(ids).logits
    assert torch.equal(before, after)
    assert "tie_weights" not in vars(loaded.model)
