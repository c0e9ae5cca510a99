"""lightning-ft on the setting of a GPU suite, by its Python door: rows packed end to end, so many tokens a step.

Words behind the two folders, as the suite gives them: `method` (lora or full), `batch_tokens` (of a micro-batch; else the
setting's), `ends` (whether the process ends behind its last step), and any other option of `fit`, as `quantize=nf4`.
"""

from __future__ import annotations

from benchmarks.baselines.gpu_clock import GpuClock, arguments


def main() -> None:
    """Train the setting's steps, with nothing before, between and behind them."""
    setting, folder, words = arguments()
    options = setting.options
    method, tokens, ends = words.pop("method"), words.pop("batch_tokens", options["batch_tokens"]), words.pop("ends", False)
    clock = GpuClock(setting, folder, method, tokens * words.get("accumulate", 1), ends=ends)
    import lightning_ft

    chosen = {"name": method, **({"rank": options["rank"], "alpha": options["alpha"]} if method == "lora" else {})}
    given = {
        "method": chosen, "epochs": 1, "max_steps": options["steps"], "batch_tokens": tokens, "packing": "on",
        "max_length": options["row_tokens"], "learning_rate": options["learning_rate"], "lr_scheduler": "linear",
        "warmup": 0, "weight_decay": 0.0, "max_grad_norm": 1.0, "seed": options["seed"], "log_every": options["steps"],
        "verdict_rows": 0, "preflight": False, "eval_every": 10**9, "save_every": 0, "output": str(folder / "run"), **words,
    }  # fmt: skip
    lightning_ft.fit(model=setting.model, data=str(setting.folder / "train.jsonl"), split=[1.0, 0.0], **given)
    clock.check()


if __name__ == "__main__":
    main()
