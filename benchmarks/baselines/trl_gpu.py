"""TRL's SFTTrainer at its best on one GPU: bf16 weights, Liger's kernels in the layers, fused AdamW, nothing recomputed.

Its loss is its own, which never makes the full logits and which Liger's must not replace. All rows are of one length, so
that nothing is padded. Words behind the two folders, as the suite gives them: `method` (lora or full), `quantize` (nf4),
`batch_tokens` (of a micro-batch; else the setting's), `ends` (whether the process ends behind its last step), and any other
argument of SFTConfig.
"""

from __future__ import annotations

from typing import Any

from benchmarks.baselines.gpu_clock import GpuClock, arguments
from benchmarks.baselines.trained import adapter
from benchmarks.baselines.trl import prompt_completion


def main() -> None:
    """Train the setting's steps; nothing is saved or logged."""
    setting, folder, words = arguments()
    options = setting.options
    method, tokens, ends = words.pop("method"), words.pop("batch_tokens", options["batch_tokens"]), words.pop("ends", False)
    quantisation = four_bits(words.pop("quantize", None))
    clock = GpuClock(setting, folder, method, tokens * words.get("gradient_accumulation_steps", 1), ends=ends)
    import torch
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    gpu = torch.cuda.is_available()
    given: dict[str, Any] = {
        "bf16": True, "use_cpu": not gpu, "use_liger_kernel": gpu, "dataloader_pin_memory": gpu,
        "model_init_kwargs": {"dtype": "bfloat16", "attn_implementation": "sdpa"}, "gradient_checkpointing": False,
        "completion_only_loss": True, "max_length": options["row_tokens"], "max_steps": options["steps"],
        "per_device_train_batch_size": tokens // options["row_tokens"], "learning_rate": options["learning_rate"],
        "lr_scheduler_type": "linear", "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused", "logging_strategy": "no", "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "seed": options["seed"], **words,
    }  # fmt: skip
    trainer = SFTTrainer(
        model=setting.model, args=SFTConfig(output_dir=str(folder / "trainer"), **given),
        train_dataset=prompt_completion(setting), peft_config=adapter(options) if method == "lora" else None,
        processing_class=AutoTokenizer.from_pretrained(setting.model), quantization_config=quantisation,
    )  # fmt: skip
    trainer.train()
    clock.check()


def four_bits(kind: str | None) -> Any:
    """Bitsandbytes' quantisation of the base, computing in bfloat16; None for none."""
    import torch
    from transformers import BitsAndBytesConfig

    if kind is None:
        return None
    compute = torch.bfloat16
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_compute_dtype=compute)  # type: ignore[no-untyped-call]  # no annotations


if __name__ == "__main__":
    main()
