"""What a baseline trains, an adapter or, where the setting's `method` is full, all weights, and in which number format.

An adapter stands on frozen bf16 weights. The precision of full fine-tuning is the contestant's: float32 weights under bf16
autocast, or `pure`, bf16 weights alone. On a processor without fast bfloat16 everything is float32 and nothing is cast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.setting import Setting


def is_full(options: dict[str, Any]) -> bool:
    """Whether all weights train."""
    return options.get("method") == "full"


def dtype(options: dict[str, Any], pure: bool = False) -> str:
    """In which the weights are loaded."""
    return "float32" if not low(options) or (is_full(options) and not pure) else "bfloat16"


def low(options: dict[str, Any]) -> bool:
    """Whether bfloat16 is fast on this machine."""
    return bool(options.get("bf16", True))


def adapter(options: dict[str, Any]) -> Any:
    """LoRA on all linear layers."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM", r=options["rank"], lora_alpha=options["alpha"], lora_dropout=0.0, target_modules="all-linear"
    )


def trained_model(setting: Setting, pure: bool = False) -> Any:
    """The model in training mode, with an adapter or with weights that all train."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    options = setting.options
    # transformers loads for use, and Lightning leaves the mode as it is.
    model = AutoModelForCausalLM.from_pretrained(setting.model, dtype=dtype(options, pure)).train()
    return model if is_full(options) else get_peft_model(model, adapter(options))
