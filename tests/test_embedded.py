"""What is shipped in `lightning_ft/assets`, and the recipe in `benchmarks/embedded_base` that made the base model."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "lightning_ft" / "assets"
RECIPE = ROOT / "benchmarks" / "embedded_base"
SPLITS = {"train": 7, "validation": 1, "test": 2}


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"embedded_base_{name}", RECIPE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def prepare() -> ModuleType:
    return script("prepare")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ASSETS / "base")


def asked(row: dict[str, Any]) -> str:
    return str(row["messages"][0]["content"])


@pytest.fixture(scope="module")
def support() -> list[dict[str, Any]]:
    return rows_of(ASSETS / "data" / "support.jsonl")


# --- sample data ---------------------------------------------------------------------------------------------------------


def test_every_intent_of_the_support_data_has_ten_phrasings_over_all_splits(support: list[dict[str, Any]]) -> None:
    splits: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in support:
        assert list(row) == ["messages", "intent", "split"]
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
        splits[row["intent"]][row["split"]] += 1
    assert len(support) == 400
    assert len(splits) == 40
    assert all(counts == SPLITS for counts in splits.values())


def test_each_intent_has_one_answer_and_answers_differ_from_their_first_words_on(support: list[dict[str, Any]]) -> None:
    answers = defaultdict(set)
    for row in support:
        answers[row["intent"]].add(row["messages"][1]["content"])
    assert all(len(texts) == 1 for texts in answers.values())
    texts = [next(iter(texts)) for texts in answers.values()]
    assert len({text.split()[0] for text in texts}) == len(texts)
    assert all(12 <= len(text.split()) <= 30 for text in texts)


def test_no_phrasing_is_in_two_rows_whatever_its_case_and_punctuation(support: list[dict[str, Any]]) -> None:
    phrasings = Counter(re.sub(r"\W+", " ", asked(row).lower()).strip() for row in support)
    assert [text for text, count in phrasings.items() if count > 1] == []


def test_held_out_phrasings_share_a_word_with_training_that_few_other_intents_use(support: list[dict[str, Any]]) -> None:
    words: defaultdict[str, set[str]] = defaultdict(set)
    for row in support:
        if row["split"] == "train":
            words[row["intent"]] |= set(re.findall(r"\w+", asked(row).lower()))
    spread = Counter(word for known in words.values() for word in known)
    for row in (row for row in support if row["split"] != "train"):
        shared = set(re.findall(r"\w+", asked(row).lower())) & words[row["intent"]]
        assert min(spread[word] for word in shared) <= 4, asked(row)


def test_chat_sample_has_conversations_of_several_turns_that_the_core_reads() -> None:
    from lightning_ft.builtin import Messages
    from lightning_ft.types import Conversation

    rows = rows_of(ASSETS / "data" / "chat.jsonl")
    assert len(rows) == 12
    for row in rows:
        example = Messages().format(row)
        assert isinstance(example, Conversation)
        roles = [message.role for message in example.messages if message.role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert len(roles) >= 4


def test_code_sample_is_python_that_parses() -> None:
    rows = rows_of(ASSETS / "data" / "code.jsonl")
    assert len(rows) == 12
    assert all(list(row) == ["code"] and ast.parse(row["code"]).body for row in rows)


def test_preference_sample_has_two_different_answers() -> None:
    rows = rows_of(ASSETS / "data" / "preference.jsonl")
    assert len(rows) == 12
    assert all(list(row) == ["prompt", "chosen", "rejected"] and row["chosen"] != row["rejected"] for row in rows)


# --- base model ----------------------------------------------------------------------------------------------------------


def test_assets_are_small() -> None:
    assert (ASSETS / "base" / "model.safetensors").stat().st_size < 14e6
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 15e6


def test_base_model_is_the_documented_llama_in_bf16() -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    model = AutoModelForCausalLM.from_pretrained(ASSETS / "base")
    assert isinstance(model, LlamaForCausalLM)
    assert model.dtype == torch.bfloat16
    assert model.num_parameters() == 6144 * 256 + 4 * (4 * 256 * 256 + 3 * 256 * 704 + 2 * 256) + 256
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.max_position_embeddings == 512


def test_special_tokens_are_distinct_and_generation_stops_at_turn_and_document(tokenizer: Any) -> None:
    from transformers import GenerationConfig

    end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, end_of_turn}) == 4
    assert GenerationConfig.from_pretrained(ASSETS / "base").eos_token_id == [end_of_turn, tokenizer.eos_token_id]
    assert len(tokenizer) == 6144
    assert tokenizer.model_max_length == 512


@pytest.mark.parametrize(
    "text", ["h\u00e9llo  \u4e16\u754c \U0001f600\n\n\tx ", "def f(x):\n    return 10 ** x\r\n", " it's 50% off!"]
)
def test_tokenizer_gives_every_text_back(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_digits_are_single_tokens(tokenizer: Any) -> None:
    assert [tokenizer.decode([i]) for i in tokenizer("48213")["input_ids"]] == list("48213")


def test_template_marks_what_the_assistant_says_with_its_stop_token(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "More?"},
        {"role": "assistant", "content": "No."},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == (
        "<|bos|><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n"
        "<|im_start|>user\nMore?<|im_end|>\n<|im_start|>assistant\nNo.<|im_end|>\n"
    )
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(marked) == "Hello!<|im_end|>No.<|im_end|>"
    prompt = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert text.startswith(prompt)
    assert prompt.endswith("<|im_start|>assistant\n")


# --- recipe --------------------------------------------------------------------------------------------------------------


def test_training_part_has_no_held_out_row(prepare: ModuleType, shared_data: Path, tmp_path: Path) -> None:
    assert prepare.main(["--data", str(shared_data), "--output", str(tmp_path)]) == 0
    held_out = set(prepare.HASHES.read_text(encoding="ascii").splitlines())
    for kind in ("text", "chat"):
        files = {name: prepare.json_lines(tmp_path / kind / f"{name}.jsonl") for name in ("train", "heldout")}
        seen = {name: {f"{row['source']} {row['row']}" for row in rows} for name, rows in files.items()}
        assert not seen["train"] & held_out
        assert seen["heldout"] <= held_out
        assert kind == "chat" or len(seen["heldout"]) > 0.95 * len(held_out)
        # Different rows may share a piece (the same advice under many diseases), so the text is compared as well.
        pieces = {name: {prepare.content(row) for row in rows} for name, rows in files.items()}
        assert not pieces["train"] & pieces["heldout"]
        assert len(pieces["heldout"]) > 4000


def test_a_fifth_of_each_large_source_is_held_out(prepare: ModuleType, shared_data: Path) -> None:
    units = defaultdict(list)
    for unit in prepare.units(shared_data):
        units[unit.source].append(unit.held_out)
    assert set(units) == set(json.loads((RECIPE / "sources.json").read_text(encoding="ascii")))
    for source, flags in units.items():
        if len(flags) >= 300:
            assert 0.14 < sum(flags) / len(flags) < 0.26, source


def test_prepare_stops_when_the_sources_are_others(
    prepare: ModuleType, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare, "SOURCES", prepare.SOURCES[2:4])
    assert prepare.main(["--data", str(shared_data), "--output", str(tmp_path)]) == 3
    assert "holdout.sha256" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_cut_loses_no_word_and_keeps_the_limit(prepare: ModuleType) -> None:
    text = " ".join(f"word{i}." if i % 9 == 0 else f"word{i}" for i in range(900))
    pieces = prepare.cut(text, 100)
    assert " ".join(pieces).split() == text.split()
    assert max(map(len, pieces)) <= 100
    assert prepare.cut("x" * 250, 100) == ["x" * 100, "x" * 100, "x" * 50]


def test_recipes_are_valid_options_in_the_order_of_the_two_phases() -> None:
    import yaml

    from lightning_ft.config import TrainingConfig

    recipes = [yaml.safe_load((RECIPE / name).read_text(encoding="ascii")) for name in ("base.yaml", "chat.yaml")]
    base, chat = map(TrainingConfig.from_dict, recipes)
    assert base.from_scratch
    assert not chat.from_scratch
    assert (ROOT / base.model / "config.json").is_file()
    assert chat.model == f"{base.output}/final_model"
    assert "heldout" not in str([base.data, base.val_data, chat.data, chat.val_data])


def test_five_gram_probabilities_add_up_to_one() -> None:
    import numpy as np

    ngram = script("ngram")
    random = np.random.default_rng(0)
    levels = ngram.train([random.integers(0, 9, 60) for _ in range(40)], vocabulary=10, start=9)
    for context in random.integers(0, 10, (50, 4)):
        first = sum(int(symbol) * 10 ** (4 - i) for i, symbol in enumerate(context))
        assert ngram.probabilities(levels, np.arange(first, first + 10), 10).sum() == pytest.approx(1)


def test_five_gram_knows_what_it_was_trained_on() -> None:
    ngram = script("ngram")
    rows = {"train": [{"text": "abcdefgh" * 50, "source": "s"}], "heldout": [{"text": "abcdefgh" * 3, "source": "s"}]}
    known = ngram.bits_per_byte(rows, lambda text: list(text.encode()), lambda _: 1, 257, 256)
    rows["heldout"] = [{"text": "hgfedcba" * 3, "source": "s"}]
    unknown = ngram.bits_per_byte(rows, lambda text: list(text.encode()), lambda _: 1, 257, 256)
    assert known["all"] < 0.5 < 2 < unknown["all"]


def test_card_measures_and_installs_the_model_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that has learned nothing has about log2(6144) bits per token, far more than the 5-gram model: exit 3."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    card = script("card")
    torch.manual_seed(1)
    LlamaForCausalLM(AutoConfig.from_pretrained(ASSETS / "base", dtype="float32")).save_pretrained(tmp_path / "model")
    target = tmp_path / "target"
    for folder in (tmp_path / "model", target):
        AutoTokenizer.from_pretrained(ASSETS / "base").save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        (target / name).write_text((ASSETS / "base" / name).read_text(encoding="ascii"), encoding="ascii")
    text, sources = "Where is my parcel? " * 9, json.loads((RECIPE / "sources.json").read_text(encoding="ascii"))
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
    for kind, row in (("text", {"text": text}), ("chat", {"messages": turns})):
        (tmp_path / kind).mkdir()
        lines = [json.dumps({**row, "source": source, "row": "0"}) for source in sources]
        for name in ("train", "heldout"):
            (tmp_path / kind / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    answer = card.answer
    monkeypatch.setattr(card, "answer", lambda model, tokenizer, messages, longest: answer(model, tokenizer, messages, 3))
    folders = ["--data", tmp_path, "--model", tmp_path / "model", "--target", target, "--results", tmp_path / "results"]
    assert card.main([str(part) for part in folders]) == 3
    result = json.loads(next((tmp_path / "results").iterdir()).read_text())
    ids = AutoTokenizer.from_pretrained(target)(text)["input_ids"]
    assert result["bits_per_byte"]["all"] == pytest.approx(12.6 * (len(ids) - 1) / (len(text) - len("Where")), rel=0.1)
    assert result["support_exact_match"] == 0
    readme = (target / "README.md").read_text()
    assert "{{" not in readme
    assert (target / "model.safetensors").stat().st_size < 14e6
