"""lightning-ft on the setting of a training suite, by its Python door and its defaults.

Precision, batching by length and the chunked head are what `fit` does by itself; only what the setting fixes for all
contestants is said here, and what would add work that the others do not do (verdict, preflight, validation) is off.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.baselines.measure import Clock, arguments


def main() -> None:
    """Train one epoch; the run folder holds the adapter."""
    clock = Clock()
    import lightning_ft

    setting, folder = arguments()
    options = setting.options
    run = lightning_ft.fit(
        model=setting.model, data=str(setting.folder / "train.jsonl"), split=[1.0, 0.0],
        method={"name": "lora", "rank": options["rank"], "alpha": options["alpha"]}, epochs=1,
        batch_size=options["batch_size"], max_length=options["max_length"], learning_rate=options["learning_rate"],
        lr_scheduler="linear", warmup=0, weight_decay=0.0, max_grad_norm=1.0, seed=options["seed"],
        verdict_rows=0, preflight=False, eval_every=10**9, save_every=0, output=str(folder / "run"),
    )  # fmt: skip
    clock.write(folder, setting, Path(run.folder) / "final_model")


if __name__ == "__main__":
    main()
