"""LitGPT's LoRA fine-tuning on a CPU: its model, its adapter layers, its rows and its loop (`litgpt.finetune.lora.fit`).

Weights are bf16, the adapter too (its precision `bf16-true`; `--mixed` is float32 weights under bf16 autocast; without fast
bfloat16 all is float32). Its head is computed in chunks of 128 positions. Batches are of rows of like length, which its own
loader does not do; clipping, which its recipe lacks, comes in through a hook of torch.
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
from benchmarks.baselines.trained import low

if TYPE_CHECKING:
    from benchmarks.setting import Messages, Setting


def configured(setting: Setting) -> Any:
    """Its config of the setting's Llama shape, with LoRA on all linear layers but the head."""
    from litgpt.lora import Config

    options, shape = setting.options, setting.options["shape"]
    known = json.loads((Path(setting.model) / "config.json").read_text(encoding="utf-8"))
    theta = known["rope_parameters"]["rope_theta"]
    return Config(
        name="benchmark", block_size=options["max_length"], padded_vocab_size=options["vocab_size"],
        n_layer=shape["num_hidden_layers"], n_embd=shape["hidden_size"], n_head=shape["num_attention_heads"],
        n_query_groups=shape["num_key_value_heads"], intermediate_size=shape["intermediate_size"],
        norm_class_name="RMSNorm", norm_eps=known["rms_norm_eps"], mlp_class_name="LLaMAMLP", parallel_residual=False,
        bias=False, rotary_percentage=1.0, rope_base=int(theta), lora_r=options["rank"], lora_alpha=options["alpha"],
        lora_dropout=0.0, lora_query=True, lora_key=True, lora_value=True, lora_projection=True, lora_mlp=True,
        lora_head=False,
    )  # fmt: skip


def precision(options: dict[str, Any]) -> Any:
    """Lightning's name of the number format."""
    return "32-true" if not low(options) else "bf16-mixed" if "--mixed" in sys.argv else "bf16-true"


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
    """The merged model, in float32 and under the names of transformers."""
    from litgpt.lora import lora_filter, merge_lora_weights
    from litgpt.scripts.convert_lit_checkpoint import copy_weights_llama
    from safetensors.torch import save_file

    model.float()
    merge_lora_weights(model)
    merged = {name.replace("linear.", ""): value for name, value in model.state_dict().items() if not lora_filter(name, value)}
    found: dict[str, torch.Tensor] = {}
    copy_weights_llama(config, found, merged, untie_weights=True)
    folder.mkdir()
    shutil.copy(Path(setting.model) / "config.json", folder)
    save_file({name: value.contiguous() for name, value in found.items()}, folder / "model.safetensors", {"format": "pt"})


def main() -> None:
    """Train one epoch and save the merged model."""
    clock = Clock()
    import lightning
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.data.base import get_sft_collate_fn
    from litgpt.finetune.lora import fit
    from litgpt.lora import GPT, mark_only_lora_as_trainable

    setting, folder = arguments()
    options, config = setting.options, configured(setting)
    batches = buckets(rows_of(setting), options["batch_size"], options["seed"])
    fabric = lightning.Fabric(devices=1, accelerator="cpu", precision=precision(options))
    fabric.seed_everything(options["seed"])
    with fabric.init_module():
        model = GPT(config)
    mark_only_lora_as_trainable(model)
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
    fit(
        fabric, model, fabric.setup_optimizers(optimizer), scheduler, loader, loader, 1, Path(setting.model), folder,
        TrainArgs(
            epochs=1, max_steps=len(batches), global_batch_size=options["batch_size"], micro_batch_size=options["batch_size"],
            lr_warmup_steps=None, save_interval=None, log_interval=10**9,
        ),
        EvalArgs(interval=10**9), None,
    )  # fmt: skip
    clock.write(folder, setting, folder / "trained")
    save(model.module, config, setting, folder / "trained")


if __name__ == "__main__":
    main()
