"""What all rows begin with, computed once: found in the table, the same losses and gradients, and where it stays off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model

from lightning_ft.data.collate import muted, pack
from lightning_ft.data.halve import halved
from lightning_ft.data.prefix import LEAST, common_prefix, common_prompt, prompt_tokens, share, share_each
from lightning_ft.data.table import EncodedTable, TableWriter
from lightning_ft.data.targets import found_ahead
from lightning_ft.engine.head import demote, head_path
from lightning_ft.engine.loss import score_rows, token_logps, token_loss
from lightning_ft.engine.packing import check_packing
from lightning_ft.engine.recompute import checkpoint_activations
from lightning_ft.engine.verify import verify_last_layer, verify_shared
from lightning_ft.types import IGNORE_INDEX, Batch, Encoded
from tests.test_last_layer import gradients
from tests.test_loss import FAMILIES, GPT2, TINY, VOCAB, from_config, make

if TYPE_CHECKING:
    from pathlib import Path

PREFIX = 11


def rows(prefix: int = PREFIX, lengths: tuple[int, ...] = (9, 21, 5, 14), answer: int = 4) -> list[Encoded]:
    """Rows that begin alike; the last tokens of each are supervised, and in one of them all but the first."""
    draw = torch.Generator().manual_seed(0)
    common = torch.randint(3, VOCAB, (prefix,), generator=draw).tolist()
    found = []
    for n, length in enumerate(lengths):
        own = torch.randint(3, VOCAB, (length,), generator=draw).tolist()
        own[0] = 3 + n
        labels = [IGNORE_INDEX] * (prefix + length - answer) + own[-answer:]
        found.append(Encoded(common + own, common + own if n == 1 else labels, f"a:{n}"))
    return found


def plain(**options: Any) -> Batch:
    return found_ahead(pack(rows(**options), 128))


def once(**options: Any) -> Batch:
    return share(plain(**options), options.get("prefix", PREFIX))


def assert_same(expected: list[torch.Tensor], found: list[torch.Tensor]) -> None:
    """But for the norms of many families, which are float32 in any case."""
    assert len(found) == len(expected)
    for e, f in zip(expected, found, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_whole_rows(family: str) -> None:
    model = make(family)
    assert check_packing(model, VOCAB).way == "documents"
    assert verify_shared(model, PREFIX, VOCAB) is not None
    expected = gradients(model, plain())
    assert_same(expected, gradients(model, once()))
    assert verify_last_layer(model, plain())
    assert_same(expected, gradients(model, once()))


@pytest.mark.parametrize("way", ["chunked", "selected", "full"])
def test_texts_that_are_supervised_from_their_first_token_on_read_what_they_share(way: str) -> None:
    model = make("llama")
    while head_path(model).name != way:
        demote(model, "the test says so")
    texts = [Encoded(row.input_ids, row.input_ids, row.row) for row in rows()]
    whole = found_ahead(pack(texts, 128))
    assert_same(gradients(model, whole), gradients(model, share(whole, PREFIX)))


def test_sliding_windows_and_weights() -> None:
    torch.manual_seed(0)
    config = tf.MistralConfig(**TINY, sliding_window=7)
    model = tf.AutoModelForCausalLM.from_config(config).double()  # type: ignore[no-untyped-call]  # of transformers
    batches = [plain(), once()]
    for batch in batches:
        batch.weights = torch.rand(batch.labels.shape, generator=torch.Generator().manual_seed(1))
    assert_same(gradients(model, batches[0]), gradients(model, batches[1]))


def test_the_model_sees_fewer_tokens() -> None:
    model = make("llama")
    seen: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0].numel()))
    token_loss(model, once())
    token_loss(model, plain())
    assert seen[-2:] == [128 - 3 * PREFIX, 128]


def test_scores_and_log_probabilities_are_of_each_row() -> None:
    model = make("llama")
    torch.testing.assert_close(token_logps(model, once()), token_logps(model, plain()))
    for one, other in zip(score_rows(model, once()), score_rows(model, plain()), strict=True):
        assert one == pytest.approx(other)


def test_recomputed_layers_and_adapters() -> None:
    base = make("llama")
    checkpoint_activations(base)
    base.get_input_embeddings().weight.requires_grad_()
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    model.enable_input_require_grads()
    assert_same(gradients(model, plain()), gradients(model, once()))


def test_halves_share_too() -> None:
    model = make("llama")
    parts = halved([once()])
    assert len(parts) == 2
    assert all(part.shared is not None and part.shared.input_ids is part.input_ids for part in parts)
    sums = [token_loss(model, part) for part in parts]
    whole = token_loss(model, plain())
    torch.testing.assert_close(torch.stack([a for a, _ in sums]).sum(), whole[0])
    assert sum(float(n) for _, n in sums) == float(whole[1])


def test_other_tokens_or_labels_take_it_back() -> None:
    """An objective may put others in their place."""
    model, batch = make("llama"), once()
    batch.labels = batch.labels.clone()
    assert batch.documents is not None
    late = batch.documents[3] + PREFIX + 3  # predicted at a position that is not among those computed for the shape alone
    batch.labels[0, late] = batch.input_ids[0, late]
    other = plain()
    other.labels = batch.labels
    assert verify_last_layer(model, batch)
    assert_same(gradients(model, other), gradients(model, batch))
    batch.input_ids = batch.input_ids.flip(1)
    other.input_ids = batch.input_ids
    assert_same(gradients(model, other), gradients(model, batch))


def test_a_batch_that_only_keeps_step_and_one_on_its_way() -> None:
    model = make("llama")
    batch = share(found_ahead(muted(pack(rows(), 128))), PREFIX).to("cpu")
    assert batch.shared is not None
    loss, count = token_loss(model, batch)
    assert (float(loss.detach()), float(count)) == (0.0, 0.0)


def test_dropout_keeps_it_off() -> None:
    torch.manual_seed(0)
    for changed in ({"attn_pdrop": 0.1}, {"resid_pdrop": 0.1}):
        model = tf.AutoModelForCausalLM.from_config(tf.GPT2Config(**(GPT2 | changed)))  # type: ignore[no-untyped-call]  # of transformers
        assert verify_shared(model, PREFIX, VOCAB) is None
    assert verify_shared(from_config("gpt2"), PREFIX, VOCAB) is not None
    adapted = get_peft_model(make("llama"), LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1))
    assert verify_shared(adapted, PREFIX, VOCAB) is None


def test_layers_that_pass_nothing_on_keep_it_off() -> None:
    model: Any = make("llama")
    forward = model.model.layers[0].forward

    def deaf(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("shared", None)
        return forward(*args, **kwargs)

    model.model.layers[0].forward = deaf
    assert verify_shared(model, PREFIX, VOCAB) is None


def table(tmp_path: Path, *blocks: list[Encoded]) -> EncodedTable:
    writer = TableWriter(tmp_path / "rows.arrow")
    for block in blocks:
        writer.write(block, [None] * len(block))
    writer.close()
    return EncodedTable(tmp_path / "rows.arrow")


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ([rows(), rows()], PREFIX),
        ([rows(), [Encoded(rows()[0].input_ids[:9] + [1] * 20, [1] * 29, "b:1")]], 9),
        ([rows(), [Encoded(rows()[0].input_ids[:9], [1] * 9, "b:1")]], 8),
        ([rows(), [Encoded([1] * 30, [1] * 30, "b:1")]], 0),
        ([rows(LEAST - 1)], 0),
        ([rows(lengths=(300, 400, 500))], 0),
        ([rows()[:1]], 0),
        ([], 0),
    ],
    ids=["common", "shorter", "a short row", "nothing", "too few", "long rows", "one row", "no row"],
)
def test_the_beginning_of_all_rows(tmp_path: Path, blocks: list[list[Encoded]], expected: int) -> None:
    assert common_prefix(table(tmp_path, *blocks)) == expected


def test_a_padded_batch_and_a_single_row_are_left_alone() -> None:
    assert share(found_ahead(pack(rows()[:1])), PREFIX).shared is None
    assert share(plain(), 0).shared is None


def pairs_of() -> tuple[Batch, list[int]]:
    """Three pairs of a prompt and two answers, which begin alike in the second, too; and what is alike in each document."""
    draw = torch.Generator().manual_seed(3)

    def tokens(count: int) -> list[int]:
        found: list[int] = torch.randint(3, VOCAB, (count,), generator=draw).tolist()
        return found

    made, alike = [], []
    for prompt, common, lengths in ((9, 0, (5, 12)), (13, 2, (4, 9)), (3, 0, (7, 1))):
        begun, begins = tokens(prompt), tokens(common)
        answers = [[*begins, 3 + n, *tokens(length - 1)] for n, length in enumerate(lengths)]
        ids = [token for answer in answers for token in (*begun, *answer)]
        labels = [label for answer in answers for label in (*([IGNORE_INDEX] * prompt), *answer)]
        made.append(Encoded(ids, labels, "a:1", parts=tuple(prompt + len(answer) for answer in answers)))
        alike += [0, prompt + common]
    return found_ahead(pack(made, 200)), alike


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_of_a_pair_is_computed_once(family: str) -> None:
    model = make(family)
    assert check_packing(model, VOCAB).way == "documents"
    assert verify_shared(model, 9, VOCAB, pairs=True) is not None
    (plain, alike), (shared, _) = pairs_of(), pairs_of()
    shared = share_each(shared, alike)
    assert shared.shared is not None
    assert len(shared.shared.keep) == 200 - sum(alike)
    torch.testing.assert_close(token_logps(model, shared), token_logps(model, plain))
    assert_same(gradients(model, plain), gradients(model, shared))
    for batch in (plain, shared):
        parts = halved(halved([batch]))
        assert [len(part.rows) for part in parts] == [2, 2, 2]
        assert all((part.shared is not None) == (batch is shared) for part in parts)
        torch.testing.assert_close(torch.cat([token_logps(model, part) for part in parts]), token_logps(model, plain))


def test_prompts_are_found_in_the_table(tmp_path: Path) -> None:
    rows = [
        Encoded([1, 2, 3, 4, 1, 2, 3, 5, 6], [1] * 9, "a:1", parts=(4, 5)),
        Encoded([7, 7, 7], [1] * 3, "a:2", parts=(2, 1)),
    ]
    same = [Encoded([5] * 40 + [5] * 40, [1] * 80, f"a:{n}", parts=(40, 40)) for n in range(3, 5)]
    assert [prompt_tokens(row) for row in rows + same] == [3, 0, 39, 39]
    mean, saved = common_prompt(table(tmp_path, rows + same))
    assert mean == 20
    assert saved == pytest.approx(81 / (9 + 3 + 80 + 80))
    assert common_prompt(table(tmp_path, rows)) == (0, 0.0)
    assert common_prompt(table(tmp_path, [Encoded([1] * 30, [1] * 30, "a:1")])) == (0, 0.0)
