"""LitGPT's fine-tuning on a CPU: its model, its adapter layers, its rows and its loops (`litgpt.finetune.lora` and `full`).

Weights are bf16, the adapter too (its precision `bf16-true`; `--mixed` and full fine-tuning are float32 weights under bf16
autocast; without fast bfloat16 all is float32). Its head is computed in chunks of 128 positions. Batches are of rows of like
length, which its own loader does not do; clipping, which its recipe lacks, comes in through a hook of torch.
"""

# mypy: disable-error-code="import-not-found"
# LitGPT is in an environment of its own, not in that of the checks.

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.utils.data

from benchmarks.baselines.measure import Clock, arguments
from benchmarks.baselines.plain_torch import buckets
from benchmarks.baselines.trained import is_full, low

if TYPE_CHECKING:
    from benchmarks.setting import Messages, Setting


def configured(setting: Setting) -> Any:
    """Its config of the setting's Llama shape; for an adapter with LoRA on all linear layers but the head."""
    options, shape = setting.options, setting.options["shape"]
    known = json.loads((Path(setting.model) / "config.json").read_text(encoding="utf-8"))
    theta = known["rope_parameters"]["rope_theta"]
    common: dict[str, Any] = {
        "name": "benchmark", "block_size": options["max_length"], "padded_vocab_size": options["vocab_size"],
        "n_layer": shape["num_hidden_layers"], "n_embd": shape["hidden_size"], "n_head": shape["num_attention_heads"],
        "n_query_groups": shape["num_key_value_heads"], "intermediate_size": shape["intermediate_size"],
        "norm_class_name": "RMSNorm", "norm_eps": known["rms_norm_eps"], "mlp_class_name": "LLaMAMLP",
        "parallel_residual": False, "bias": False, "rotary_percentage": 1.0, "rope_base": int(theta),
    }  # fmt: skip
    if is_full(options):
        from litgpt.config import Config

        return Config(**common)
    from litgpt.lora import Config as Adapted

    layers = ("query", "key", "value", "projection", "mlp")
    return Adapted(
        **common, lora_r=options["rank"], lora_alpha=options["alpha"], lora_dropout=0.0, lora_head=False,
        **{f"lora_{layer}": True for layer in layers},
    )  # fmt: skip


def built(config: Any, *, full: bool) -> Any:
    """Its model; of an adapter only that trains, else head and embedding are one matrix, as in the setting's model."""
    if not full:
        from litgpt.lora import GPT, mark_only_lora_as_trainable

        adapted = GPT(config)
        mark_only_lora_as_trainable(adapted)
        return adapted
    from litgpt.model import GPT as Whole

    model = Whole(config)
    model.lm_head.weight = model.transformer.wte.weight
    return model


def precision(options: dict[str, Any]) -> Any:
    """Lightning's name of the number format."""
    if not low(options):
        return "32-true"
    return "bf16-mixed" if is_full(options) or "--mixed" in sys.argv else "bf16-true"


def weights_of(setting: Setting, config: Any) -> dict[str, torch.Tensor]:
    """The setting's weights under LitGPT's names, by its own conversion."""
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = {}
    copy_weights_hf_llama(config, {}, found, load_file(Path(setting.model) / "model.safetensors"))
    return found


def rows_of(setting: Setting) -> list[dict[str, Any]]:
    """The training rows, encoded by its data set with the setting's chat template as its prompt style."""
    from litgpt.data.base import SFTDataset
    from litgpt.prompts import PromptStyle
    from litgpt.tokenizer import Tokenizer

    class Turns(PromptStyle):  # type: ignore[misc]  # unknown to mypy, as above
        """`CHAT_TEMPLATE` of one question; the answer's end is the tokenizer's stop token."""

        def apply(self, prompt: Any, *, sys_prompt: str | None = None, **kwargs: str) -> str:
            return f"<|im_start|>user\n{prompt}<|im_end|><|im_start|>assistant\n"

    rows = SFTDataset([sample(row) for row in setting.rows("train")], Tokenizer(setting.model), Turns())
    return [rows[i] for i in range(len(rows))]


def sample(messages: Messages) -> dict[str, str]:
    """A conversation of two turns as LitGPT wants it."""
    question, answer = messages
    return {"instruction": question["content"], "output": answer["content"]}


def save(model: Any, config: Any, setting: Setting, folder: Path) -> None:
    """The model, an adapter merged into it, in float32 and under the names of transformers."""
    from litgpt.scripts.convert_lit_checkpoint import copy_weights_llama
    from safetensors.torch import save_file

    model.float()
    whole = model.state_dict()
    if not is_full(setting.options):
        from litgpt.lora import lora_filter, merge_lora_weights

        merge_lora_weights(model)
        whole = {n.replace("linear.", ""): value for n, value in model.state_dict().items() if not lora_filter(n, value)}
    found: dict[str, torch.Tensor] = {}
    copy_weights_llama(config, found, whole, untie_weights=True)
    folder.mkdir()
    shutil.copy(Path(setting.model) / "config.json", folder)
    save_file({name: value.contiguous() for name, value in found.items()}, folder / "model.safetensors", {"format": "pt"})


def fit(
    fabric: Any, model: Any, optimizer: Any, scheduler: Any, loader: Any, folder: Path, setting: Setting, steps: int
) -> None:
    """Its own loop for one epoch."""
    from litgpt.args import EvalArgs, TrainArgs

    size = setting.options["batch_size"]
    train = TrainArgs(
        epochs=1, max_steps=steps, global_batch_size=size, micro_batch_size=size, lr_warmup_steps=None, save_interval=None,
        log_interval=10**9,
    )  # fmt: skip
    rest = (loader, loader, 1)  # rows to train and to validate, devices
    places = (Path(setting.model), folder, train, EvalArgs(interval=10**9), None)
    if is_full(setting.options):
        from litgpt.finetune import full

        state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "iter_num": 0, "step_count": 0}
        full.fit(fabric, state, *rest, False, *places)
        return
    from litgpt.finetune import lora

    lora.fit(fabric, model, optimizer, scheduler, *rest, *places)


def main() -> None:
    """Train one epoch and save the model."""
    clock = Clock()
    import lightning
    from litgpt.data.base import get_sft_collate_fn

    setting, folder = arguments()
    options, config = setting.options, configured(setting)
    batches = buckets(rows_of(setting), options["batch_size"], options["seed"])
    fabric = lightning.Fabric(devices=1, accelerator="cpu", precision=precision(options))
    fabric.seed_everything(options["seed"])
    with fabric.init_module():
        model = built(config, full=is_full(options))
    model = fabric.setup_module(model)
    model.load_state_dict(weights_of(setting, config), strict=False)  # the adapter keeps its own
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options["learning_rate"], weight_decay=0.0, fused=True)

    def clip(*_: Any) -> None:
        torch.nn.utils.clip_grad_norm_(trained, 1.0)

    optimizer.register_step_pre_hook(clip)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(batches))
    loader: Any = torch.utils.data.DataLoader(
        [row for batch in batches for row in batch],  # type: ignore[arg-type]  # a list is a map-style data set
        batch_size=options["batch_size"], collate_fn=get_sft_collate_fn(),
    )  # fmt: skip
    fit(fabric, model, fabric.setup_optimizers(optimizer), scheduler, loader, folder, setting, len(batches))
    clock.write(folder, setting, folder / "trained")
    save(model.module, config, setting, folder / "trained")


if __name__ == "__main__":
    main()
