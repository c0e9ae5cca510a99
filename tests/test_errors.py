import pytest

from lightning_ft import errors
from lightning_ft.errors import did_you_mean


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("lroa", ["LoRA", "prefix"], " Did you mean 'LoRA'?"),
        ("LORA ", ["LoRA"], " Did you mean 'LoRA'?"),
        ("zzz", ["LoRA", "prefix"], ""),
        ("lora", [], ""),
        ("epoch", iter(["epochs", "eval_every"]), " Did you mean 'epochs'?"),
        ("learn", ["lr_min", "learning_rate", "learning_rate_of_heads"], " Did you mean 'learning_rate'?"),
        ("lr", ["lr_min", "learning_rate"], ""),
    ],
)
def test_did_you_mean(name: str, known: list[str], expected: str) -> None:
    assert did_you_mean(name, known) == expected


def test_exit_codes() -> None:
    classes = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.LightningFTError)]
    codes = {cls.__name__: cls.exit_code for cls in classes}
    assert codes == {
        "LightningFTError": 1, "UsageError": 2, "DataError": 2, "PluginError": 2, "NotMergeableError": 2, "TrainingError": 1,
        "LostRankError": 1, "CheckFailedError": 3, "RunInterruptedError": 1, "NoMemoryError": 1,
    }  # fmt: skip
    assert issubclass(errors.UsageError, ValueError)
    assert errors.RunInterruptedError("stopped", 15).signum == 15
