from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lightning_ft.decoding import Chooser, Pieces
from lightning_ft.engine.model import evaluating
from lightning_ft.errors import UsageError
from lightning_ft.generation import Sampling, batches_by_length, generate_texts, stream_text
from lightning_ft.testing.models import CONTEXT, FAMILIES, tiny_model, tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = [
    "The capital of France",
    "a",
    "Once upon a time there was a very small model that",
    "1 + 1 =",
    "zz top",
    "def f(x):\n    ",
]
STOP = (259,)


# peft asks a deprecated property of transformers while it wraps a model.
PEFT_WARNS = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    return tiny_model(request.param)


@pytest.fixture
def tokenizer() -> Any:
    return tiny_tokenizer()


def greedy_reference(model: Any, ids: list[int], length: int, stop: tuple[int, ...]) -> list[int]:
    """The definition: the whole text through the model once per token, no cache, no batch, no padding."""
    out: list[int] = []
    with torch.no_grad():
        while len(out) < length:
            token = int(model(input_ids=torch.tensor([ids + out])).logits[0, -1].argmax())
            if token in stop:
                break
            out.append(token)
    return out


@pytest.mark.parametrize("batch_tokens", [1, 90, 8192])
def test_batched_greedy_is_greedy_one_by_one(model: Any, tokenizer: Any, batch_tokens: int) -> None:
    sampling = Sampling(max_new_tokens=12)
    got = generate_texts(model, tokenizer, PROMPTS, sampling, stop_tokens=STOP, batch_tokens=batch_tokens)
    ids = [tokenizer(p, add_special_tokens=False)["input_ids"] for p in PROMPTS]
    assert got == [tokenizer.decode(greedy_reference(model, row, 12, STOP), skip_special_tokens=True) for row in ids]
    assert len(set(got)) > 3


def test_real_model_tells_its_published_story(shared_data: Path) -> None:
    """Text and length are published with the checkpoint (llama2.c, stories260K)."""
    import json

    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared_data / "lm_stories260k"
    expected = json.loads((folder / "expected.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder / "hf")
    tokenizer = AutoTokenizer.from_pretrained(folder / "hf")
    prompts = ["<s>", "<s>Once upon a time, there was a little dog", "<s>One day"]
    sampling = Sampling(max_new_tokens=expected["max_new_tokens"])
    texts = generate_texts(model, tokenizer, prompts, sampling, stop_tokens=(2,))
    assert texts[0] == expected["expected_text"]
    assert texts == [generate_texts(model, tokenizer, [p], sampling, stop_tokens=(2,))[0] for p in prompts]
    assert "".join(stream_text(model, tokenizer, "<s>", sampling, stop_tokens=(2,))) == expected["expected_text"]


def test_any_stop_token_ends_the_answer_and_is_not_in_it(model: Any, tokenizer: Any) -> None:
    ids = tokenizer(PROMPTS[0], add_special_tokens=False)["input_ids"]
    free = greedy_reference(model, ids, 12, ())
    stop = free[5]
    cut = free[: free.index(stop)]
    for stops in [(stop,), (stop, 3), (3, stop)]:
        got = generate_texts(model, tokenizer, PROMPTS[:3], Sampling(max_new_tokens=12), stop_tokens=stops)
        assert got[0] == tokenizer.decode(cut, skip_special_tokens=True)


def test_stop_text_ends_the_answer_and_is_not_in_it(model: Any, tokenizer: Any) -> None:
    sampling = Sampling(max_new_tokens=30, temperature=1.5, seed=2)
    free = generate_texts(model, tokenizer, PROMPTS, sampling, stop_tokens=STOP)
    text = max(free, key=len)
    stop = text[6:8]
    stopping = Sampling(max_new_tokens=30, temperature=1.5, seed=2, stop=(stop, "never there"))
    got = generate_texts(model, tokenizer, PROMPTS, stopping, stop_tokens=STOP)
    assert got == [t.split(stop)[0] for t in free]
    assert got != free
    i = free.index(text)
    if i == 0:
        assert "".join(stream_text(model, tokenizer, PROMPTS[0], stopping, stop_tokens=STOP)) == got[0]


def test_sampling_does_not_depend_on_the_batch_and_follows_the_seed(model: Any, tokenizer: Any) -> None:
    def run(seed: int, batch_tokens: int) -> list[str]:
        sampling = Sampling(max_new_tokens=10, temperature=1.0, top_p=0.95, top_k=50, repetition_penalty=1.2, seed=seed)
        return generate_texts(model, tokenizer, PROMPTS, sampling, stop_tokens=STOP, batch_tokens=batch_tokens)

    assert run(1, 1) == run(1, 8192)
    assert run(1, 8192) != run(2, 8192)


def test_numbers_decide_draws_wherever_prompts_are_answered(model: Any, tokenizer: Any) -> None:
    """As where two processes have every second row."""
    sampling = Sampling(max_new_tokens=12, temperature=1.0, seed=3)
    whole = generate_texts(model, tokenizer, PROMPTS, sampling, stop_tokens=STOP)
    parts = [
        generate_texts(model, tokenizer, PROMPTS[n::2], sampling, stop_tokens=STOP, numbers=range(len(PROMPTS))[n::2])
        for n in (0, 1)
    ]
    assert [parts[i % 2][i // 2] for i in range(len(PROMPTS))] == whole


def test_draws_follow_the_distribution() -> None:
    """p = softmax(log([.5, .3, .15, .05])): top_p 0.9 keeps three (.5 + .3 < .9), top_k 2 keeps two, each renormalised."""
    shares = torch.tensor([0.15, 0.5, 0.05, 0.3])
    n = 20_000
    for sampling, expected in [
        (Sampling(temperature=1.0), shares),
        (Sampling(temperature=1.0, top_p=0.9), torch.tensor([0.15, 0.5, 0, 0.3]) / 0.95),
        (Sampling(temperature=1.0, top_k=2), torch.tensor([0, 0.5, 0, 0.3]) / 0.8),
        (Sampling(temperature=0.5), shares**2 / (shares**2).sum()),
        (Sampling(temperature=1.0, top_p=1e-6), torch.tensor([0.0, 1, 0, 0])),
    ]:
        chooser = Chooser(sampling, torch.zeros(n, dtype=torch.long), 1, range(n))
        chosen = chooser(torch.zeros(n, 1, dtype=torch.long), shares.log().expand(n, 4)).argmax(-1)
        got = torch.bincount(chosen, minlength=4) / n
        torch.testing.assert_close(got, expected, atol=0.015, rtol=0)
        assert got[expected == 0].sum() == 0


def test_repetition_penalty_by_hand_and_blind_to_padding() -> None:
    """Token 0 is padding of row 0 and a real token of row 1; 2 / 1.25 = 1.6, -2 * 1.25 = -2.5."""
    chooser = Chooser(Sampling(repetition_penalty=1.25), torch.tensor([1, 0]), 2, (0, 1))
    got = chooser(torch.tensor([[0, 1], [0, 1]]), torch.tensor([[2.0, -2.0, 1.0], [2.0, -2.0, 1.0]]))
    torch.testing.assert_close(got, torch.tensor([[2.0, -2.5, 1.0], [1.6, -2.5, 1.0]]))


def test_settings_in_the_models_folder_do_not_leak_in(tokenizer: Any) -> None:
    plain: Any = tiny_model("llama")
    loud: Any = tiny_model("llama")
    loud.generation_config.update(do_sample=True, temperature=5.0, min_new_tokens=9, suppress_tokens=list(range(200)))
    before = loud.generation_config.to_dict()
    sampling = Sampling(max_new_tokens=12)
    want = generate_texts(plain, tokenizer, PROMPTS, sampling, stop_tokens=STOP)
    assert generate_texts(loud, tokenizer, PROMPTS, sampling, stop_tokens=STOP) == want
    assert loud.generation_config.to_dict() == before


@PEFT_WARNS
def test_adapter_is_used_and_modes_are_restored(tokenizer: Any) -> None:
    from peft import LoraConfig, get_peft_model

    base = tiny_model("llama")
    sampling = Sampling(max_new_tokens=12)
    want = generate_texts(base, tokenizer, PROMPTS, sampling, stop_tokens=STOP)
    model: Any = get_peft_model(base, LoraConfig(target_modules="all-linear", lora_dropout=0.5))
    model.train()
    model.base_model.model.model.norm.eval()
    modes = {name: m.training for name, m in model.named_modules()}
    assert generate_texts(model, tokenizer, PROMPTS, sampling, stop_tokens=STOP) == want  # B is zero; dropout is off
    assert {name: m.training for name, m in model.named_modules()} == modes
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(generator=torch.Generator().manual_seed(0))
    assert generate_texts(model, tokenizer, PROMPTS, sampling, stop_tokens=STOP) != want


@PEFT_WARNS
@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_learning_adapters_generate(tokenizer: Any, family: Any) -> None:
    from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

    kinds: list[Any] = [PrefixTuningConfig, PromptTuningConfig]
    for config in kinds:
        torch.manual_seed(0)
        model: Any = get_peft_model(tiny_model(family), config(num_virtual_tokens=3, task_type="CAUSAL_LM")).eval()
        got = generate_texts(model, tokenizer, PROMPTS, Sampling(max_new_tokens=6), stop_tokens=STOP)
        ids = [tokenizer(p, add_special_tokens=False)["input_ids"] for p in PROMPTS]
        assert got == [tokenizer.decode(greedy_reference(model, row, 6, STOP), skip_special_tokens=True) for row in ids]


def test_long_prompts_keep_first_token_and_end(model: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    sampling = Sampling(max_new_tokens=8)
    fits, long = "x" * (CONTEXT - 8), "<|bos|>" + "ab" * CONTEXT + " the end"
    with caplog.at_level(logging.WARNING, logger="lightning_ft.generation"):
        got = generate_texts(model, tokenizer, ["short", fits, long], sampling, stop_tokens=STOP)
    assert "1 of 3 prompts were cut on the left to 248 tokens" in caplog.text
    by_hand = "<|bos|>" + long[7:][-(CONTEXT - 8 - 1) :]
    assert got[2] == generate_texts(model, tokenizer, [by_hand], sampling, stop_tokens=STOP)[0]


def test_answers_use_what_the_context_leaves_and_do_not_depend_on_the_batch(model: Any, tokenizer: Any) -> None:
    sampling = Sampling(max_new_tokens=10 * CONTEXT)
    prompts = ["b" * (CONTEXT // 2), "c" * 100, "c" * 100 + "d"]
    together = generate_texts(model, tokenizer, prompts, sampling, stop_tokens=())
    assert together == [generate_texts(model, tokenizer, [p], sampling, stop_tokens=())[0] for p in prompts]


def test_stream_is_the_answer_in_valid_pieces(model: Any, tokenizer: Any) -> None:
    for sampling in (Sampling(max_new_tokens=20), Sampling(max_new_tokens=40, temperature=1.3, seed=3)):
        pieces = list(stream_text(model, tokenizer, PROMPTS[0], sampling, stop_tokens=STOP))
        assert "".join(pieces) == generate_texts(model, tokenizer, [PROMPTS[0]], sampling, stop_tokens=STOP)[0]
        assert len(pieces) > 1


def test_pieces_never_break_a_character_nor_show_a_stop_text(tokenizer: Any) -> None:
    text = "na\u00efve \u6771\u4eac \U0001f600 ok###END after"
    for stop, want in [((), text), (("##END", "#END"), text.split("##END")[0]), (("zzz",), text), (("after!",), text)]:
        pieces = Pieces(tokenizer, stop)
        shown = [pieces.add(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
        shown.append(pieces.rest())
        assert "".join(shown) == want
        assert not any("\ufffd" in piece for piece in shown)
        assert "\U0001f600" in shown


def test_half_a_character_at_the_end_is_shown_as_the_whole_decodes(tokenizer: Any) -> None:
    ids = tokenizer("a\u6771", add_special_tokens=False)["input_ids"][:-1]
    pieces = Pieces(tokenizer, ())
    assert "".join([pieces.add(i) for i in ids] + [pieces.rest()]) == tokenizer.decode(ids) == "a\ufffd"


def test_closing_a_stream_stops_the_model(tokenizer: Any) -> None:
    model = tiny_model("llama")
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    stream = stream_text(model, tokenizer, "abc", Sampling(max_new_tokens=200), stop_tokens=())
    next(stream)
    stream.close()  # type: ignore[attr-defined]  # a generator, declared as the Iterator that callers need
    assert len(calls) < 150
    assert model.generation_config.eos_token_id == 259


def test_an_error_in_the_stream_reaches_the_reader(tokenizer: Any) -> None:
    model = tiny_model("llama")

    def fail(*_: Any) -> None:
        raise RuntimeError("broken layer")

    model.model.layers[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="broken layer"):
        list(stream_text(model, tokenizer, "abc", Sampling(), stop_tokens=()))


def test_batches_hold_every_row_once_within_the_budget() -> None:
    lengths = [5, 3, 9, 1, 4, 4, 20]
    batches = batches_by_length(lengths, 12)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert batches[0] == [6]
    assert all(len(b) == 1 or max(lengths[i] for i in b) * len(b) <= 12 for b in batches)
    assert [[lengths[i] for i in batch] for batch in batches] == [[20], [9], [5, 4], [4, 3, 1]]


def test_no_prompts_and_empty_prompts(tokenizer: Any) -> None:
    model = tiny_model("llama")
    assert generate_texts(model, tokenizer, [], Sampling(), stop_tokens=STOP) == []
    assert generate_texts(model, tokenizer, [""], Sampling(max_new_tokens=4), stop_tokens=STOP) == generate_texts(
        model, tokenizer, ["<|bos|>"], Sampling(max_new_tokens=4), stop_tokens=STOP
    )
    tokenizer.bos_token = None
    with pytest.raises(UsageError, match="prompt 1 to have at least one token"):
        generate_texts(model, tokenizer, [""], Sampling(), stop_tokens=STOP)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"repetition_penalty": 0}, {"stop": ("",)},
        {"stop": "END"},
    ],
)  # fmt: skip
def test_wrong_options_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(options))} "):
        Sampling(**options)


def test_modes_are_restored_after_an_error() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval())

    def body() -> None:
        with evaluating(model):
            assert not model[0].training
            raise KeyError

    with pytest.raises(KeyError):
        body()
    assert (model[0].training, model[1].training) == (True, False)


def test_progress_is_shown_as_plain_lines_without_a_terminal(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    generate_texts(
        tiny_model("llama"), tokenizer, PROMPTS, Sampling(max_new_tokens=2), stop_tokens=STOP, batch_tokens=1, progress=True
    )
    assert "generating: 6 of 6 batches" in capsys.readouterr().err
