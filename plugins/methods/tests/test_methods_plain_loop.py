"""Training with a method is a plain loop around peft: the same losses, step for step."""

from __future__ import annotations

import contextlib
import json
import warnings
from typing import TYPE_CHECKING, Any, cast

import peft
import pytest
import torch
from lightning_ft_methods.adalora import AdaLoRA
from lightning_ft_methods.lora import LoRA
from lightning_ft_methods.orthogonal import BOFT, OFT
from lightning_ft_methods.products import LoHa, LoKr
from lightning_ft_methods.prompts import PrefixTuning, PromptTuning, PTuning, PTuningV2
from lightning_ft_methods.selective import NormTuning
from lightning_ft_methods.vectors import IA3, VeRA
from transformers import AutoModelForCausalLM, AutoTokenizer

import lightning_ft
from lightning_ft.testing.models import tiny_backbone_folder

if TYPE_CHECKING:
    from pathlib import Path

    from lightning_ft.method import Method

STEPS, RATE, SEED = 6, 3e-3, 5
ALL: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": "all-linear"}
SOFT: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
CASES: dict[str, tuple[Method, Any]] = {
    "lora": (LoRA(rank=4), peft.LoraConfig(r=4, lora_alpha=8, **ALL)),
    "rslora": (LoRA(rank=4, use_rslora=True), peft.LoraConfig(r=4, lora_alpha=8, use_rslora=True, **ALL)),
    "dora": (LoRA(rank=4, use_dora=True), peft.LoraConfig(r=4, lora_alpha=8, use_dora=True, **ALL)),
    "pissa": (LoRA(rank=4, init="pissa"), peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights="pissa", **ALL)),
    "olora": (LoRA(rank=4, init="olora"), peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights="olora", **ALL)),
    "lora+": (LoRA(rank=4, plus_ratio=16.0), peft.LoraConfig(r=4, lora_alpha=8, **ALL)),
    "lora and head": (
        LoRA(rank=4, modules_to_save=["lm_head"]), peft.LoraConfig(r=4, lora_alpha=8, modules_to_save=["lm_head"], **ALL),
    ),
    "lora and tokens": (
        LoRA(rank=4, trainable_tokens=[65, 66]),
        peft.LoraConfig(r=4, lora_alpha=8, trainable_token_indices={"embed_tokens": [65, 66], "lm_head": [65, 66]}, **ALL),
    ),
    "adalora": (
        AdaLoRA(rank=2, initial_rank=4, warmup=0.2, settle=0.5),
        peft.AdaLoraConfig(init_r=4, target_r=2, lora_alpha=8, tinit=1, tfinal=3, deltaT=1, total_step=STEPS, **ALL),
    ),
    "ia3": (IA3(), peft.IA3Config(task_type="CAUSAL_LM")),
    "vera": (VeRA(rank=8), peft.VeraConfig(r=8, projection_prng_key=0, **ALL)),
    "oft": (OFT(block_size=8), peft.OFTConfig(oft_block_size=8, r=0, **ALL)),
    "boft": (BOFT(), peft.BOFTConfig(boft_block_size=4, **ALL)),
    "loha": (LoHa(rank=4), peft.LoHaConfig(r=4, alpha=8, **ALL)),
    "lokr": (LoKr(rank=4), peft.LoKrConfig(r=4, alpha=8, **ALL)),
    "norm": (NormTuning(), peft.LNTuningConfig(task_type="CAUSAL_LM")),
    "prompt_tuning": (PromptTuning(virtual_tokens=4, init="random"), peft.PromptTuningConfig(**SOFT)),
    "p_tuning": (PTuning(virtual_tokens=4), peft.PromptEncoderConfig(encoder_hidden_size=128, **SOFT)),
    "p_tuning lstm": (
        PTuning(virtual_tokens=4, encoder="lstm"),
        peft.PromptEncoderConfig(encoder_hidden_size=128, encoder_reparameterization_type="LSTM", encoder_dropout=0.0, **SOFT),
    ),
    "p_tuning_v2": (PTuningV2(virtual_tokens=4), peft.PrefixTuningConfig(**SOFT)),
    "prefix_tuning": (
        PrefixTuning(virtual_tokens=4), peft.PrefixTuningConfig(prefix_projection=True, encoder_hidden_size=128, **SOFT),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model folder, and a file of eight rows: a step sees all of them."""
    folder = tmp_path_factory.mktemp("plain")
    rows = folder / "rows.jsonl"
    lines = [{"instruction": f"Count to {n}.", "output": " ".join(map(str, range(n + 1)))} for n in range(8)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTNING_FT_CACHE", str(folder / "cache"))
        yield tiny_backbone_folder(folder / "model"), rows


def plain_losses(folder: Path, rows: Path, config: Any, plus_ratio: float | None) -> list[float]:
    """Loss of each step of a loop that knows nothing of lightning-ft."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = []
    for row in map(json.loads, rows.read_text().splitlines()):
        turns = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        found: Any = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
        ids = torch.tensor(found["input_ids"])
        encoded.append((ids, torch.where(torch.tensor(found["assistant_masks"]).bool(), ids, -100)))
    ids = torch.nn.utils.rnn.pad_sequence([ids for ids, _ in encoded], batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence([labels for _, labels in encoded], batch_first=True, padding_value=-100)

    torch.manual_seed(SEED)
    model = cast("Any", peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)).train()
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    fast = [p for name, p in named if plus_ratio and "lora_B" in name]
    slow = [p for name, p in named if not (plus_ratio and "lora_B" in name)]
    groups: list[dict[str, Any]] = [{"params": slow}, {"params": fast, "lr": RATE * (plus_ratio or 1)}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=RATE, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        out = model(input_ids=ids, use_cache=False).logits[:, -ids.shape[1] :]
        loss = torch.nn.functional.cross_entropy(out[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        losses.append(loss.item())
        if isinstance(config, peft.AdaLoraConfig):
            matrices = [(n, p) for n, p in model.named_parameters() if "lora_A" in n or "lora_B" in n]
            grams = [p @ p.T if "lora_A" in n else p.T @ p for n, p in matrices]
            loss = loss + config.orth_reg_weight * sum(torch.norm(g - torch.eye(len(g))) for g in grams) / len(grams)
        optimizer.zero_grad()
        cast("Any", loss).backward()
        torch.nn.utils.clip_grad_norm_(slow + fast, 1.0)
        optimizer.step()
        if isinstance(config, peft.AdaLoraConfig):
            model.base_model.update_and_allocate(step)
    return losses


@pytest.mark.parametrize("name", CASES)
def test_a_method_trains_as_a_plain_loop_around_peft(name: str, given: Any, tmp_path: Path) -> None:
    folder, rows = given
    method, config = CASES[name]
    run = lightning_ft.fit(
        model=str(folder), data=rows, method=method, output=str(tmp_path / "run"), precision="fp32", epochs=float(STEPS),
        batch_size=8, learning_rate=RATE, lr_scheduler="constant", warmup=0, weight_decay=0.0, max_grad_norm=1.0, seed=SEED,
        packing="off", log_every=1, verdict_rows=0, split=[1.0, 0.0], preflight=False,
    )  # fmt: skip
    mine = [line["loss"] for line in run.metrics if "loss" in line]
    with warnings.catch_warnings() if name in ("boft", "norm") else contextlib.nullcontext():
        warnings.simplefilter("ignore") if name in ("boft", "norm") else None  # notices of peft's
        theirs = plain_losses(folder, rows, config, getattr(method, "plus_ratio", None))
    assert mine == pytest.approx(theirs, rel=1e-5)
    assert theirs[-1] < theirs[0]
