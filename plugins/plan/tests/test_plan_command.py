from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from lightning_ft_plan.forecast import RUNTIME
from lightning_ft_plan.hollow import PARTS
from lightning_ft_plan.machine import Target
from lightning_ft_plan.planning import Planning
from lightning_ft_plan.rehearsal import account
from lightning_ft_plan.scene import Scene
from lightning_ft_plan.testing import by_name, only, planned, requested, rows_of, sixty_rows, untimed  # noqa: F401  # fixtures

from lightning_ft.cli import main
from lightning_ft.errors import UsageError
from lightning_ft.registry import registry
from lightning_ft.testing.methods import attach
from lightning_ft.testing.models import FAMILIES, tiny_backbone_folder, tiny_model, tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "hidden_act": "silu", "hidden_size": 4096,
    "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0, "tie_word_embeddings": False, "dtype": "bfloat16", "vocab_size": 128256,
}  # fmt: skip


def attached(method: Any, family: Any) -> tuple[Any, str]:
    """The tiny model with a method, or why it does not take it."""
    try:
        return attach(method, family), ""
    except UsageError as error:
        return None, str(error).rstrip(".")


@rows_of("lora", "full", "ia3")
@pytest.mark.usefixtures("only", "untimed")
@pytest.mark.parametrize("family", FAMILIES)
def test_words_that_a_task_adds_are_planned_as_the_tokens_that_they_will_be(
    family: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, rows, run = tiny_backbone_folder(tmp_path / "model", family), tmp_path / "rows.jsonl", tmp_path / "run"
    text = "Myocarditis and thrombosis: myocarditis is of the heart, thrombosis of the blood."
    rows.write_text("".join(json.dumps({"text": f"{text} {n}"}) + "\n" for n in range(40)), encoding="utf-8")
    words = [str(model), "--data", str(rows), "--precision", "fp32", "--batch_size", "4", "--max_steps", "1"]
    words += ["--task.name", "domain"]
    plain, found = (planned(capsys, *words, *more) for more in ((), ("--task.add_tokens", "auto:3")))
    assert found["data"]["tokens"] < plain["data"]["tokens"]
    for name in ("lora", "full"):
        assert by_name(found)[name]["trainable"] > by_name(plain)[name]["trainable"]
    assert by_name(found)["ia3"]["reason"].startswith(
        "not for this model: Expected a method that trains the rows of new tokens, as the task adds tokens; got ia3"
    )
    few = ["--output", str(run), "--preflight", "false", "--save_every", "0", "--verdict_rows", "0"]
    assert main(["fit", *words, *few, "--task.add_tokens", "auto:3", "--method", "lora"]) == 0
    record = json.loads((run / "run.json").read_text())
    assert len(record["new_tokens"]) == 3
    assert record["parameters"].startswith(f"trainable params: {by_name(found)['lora']['trainable']:,} ")
    ledger = json.loads((run / "ledger.json").read_text())
    assert ledger["max_length"] == found["data"]["max_length"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_is_there_with_the_numbers_that_it_trains(
    family: Any, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_backbone_folder(tmp_path / "model", family)
    found = by_name(planned(capsys, folder, "--data", rows, "--precision", "fp32"))
    assert found.keys() >= set(registry().methods)
    fitting = 0
    for entry in registry().methods.values():
        row = found[entry.name]
        model, refused = attached(entry.cls(), family)
        if model is None:
            assert row["verdict"] is None, entry.name
            assert row["reason"].startswith(f"not for this model: {refused}"), entry.name
            continue
        fitting += 1
        assert row["trainable"] == sum(p.numel() for p in model.parameters() if p.requires_grad), entry.name
        assert list(row["parts"]) == [*PARTS, RUNTIME]
        assert sum(row["parts"].values()) == row["memory"]
        assert min(row["parts"].values()) >= 0
        assert row["total_seconds"] > row["step_seconds"] > 0
    assert fitting > 8
    assert found["lora + nf4"]["trainable"] == found["lora"]["trainable"]


@rows_of("full")
@pytest.mark.usefixtures("only", "untimed")
def test_weights_are_counted_by_their_type_and_gradients_by_what_trains(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_backbone_folder(tmp_path / "model")
    plan = planned(capsys, folder, "--data", rows, "--precision", "fp32")
    full = by_name(plan)["full"]
    numbers = sum(p.numel() for p in tiny_model("llama").parameters())
    assert plan["parameters"] == full["trainable"] == numbers
    # Rotary frequencies are buffers, a few numbers beside.
    assert 4 * numbers <= full["parts"]["weights"] < 4 * numbers + 1000
    if full["moment"] != "packing check":
        assert full["parts"]["optimizer"] == pytest.approx(8 * numbers, rel=0.02)


def test_a_config_without_weights_is_planned(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "llama-8b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA_8B), encoding="utf-8")
    words = ("--model", folder, "--data", rows, "--memory", "24GB", "--device", "gpu")
    plan = planned(capsys, *words)
    found = by_name(plan)
    assert plan["parameters"] == found["full"]["trainable"] == 8_030_261_248
    # rank (in + out) for q, k, v, o, gate, up and down of 32 layers.
    widths = (4096 + 4096, 4096 + 1024, 4096 + 1024, 4096 + 4096, 4096 + 14336, 4096 + 14336, 14336 + 4096)
    assert found["lora"]["trainable"] == 16 * 32 * sum(widths)
    assert found["freeze"]["trainable"] == sum((16 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096), 4096,
                                                128256 * 4096))  # fmt: skip
    assert found["lora"]["parts"]["weights"] == pytest.approx(2 * 8_030_261_248 + 4 * found["lora"]["trainable"], rel=1e-3)
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    saved = found["lora"]["parts"]["weights"] - found["lora + nf4"]["parts"]["weights"]
    assert saved == pytest.approx(linear * (2 - 4.5 / 8), rel=1e-3)
    # Beside the weights a permutation of each layer's inputs, a matrix in float32.
    turned = found["boft"]["parts"]["weights"] - 2 * 8_030_261_248
    assert turned == pytest.approx(32 * 4 * (6 * 4096**2 + 14336**2), rel=5e-3)
    assert found["full"]["verdict"] == "does not fit"
    assert found["full"]["memory"] > 16 * 8_030_261_248
    assert plan["time"] == [], "the GPU is not here"


WIDE = {**LLAMA_8B, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8,
        "num_key_value_heads": 8, "vocab_size": 260}  # fmt: skip


@rows_of("lora")
@pytest.mark.usefixtures("only", "untimed")
@pytest.mark.parametrize(("kind", "bits", "making"), [("nf4", 4.5, 14), ("int8", 8.02, 10)])
@pytest.mark.parametrize(("precision", "bytes_each"), [("bf16", 2), ("fp32", 4)])
def test_reading_the_weights_of_a_quantised_base_is_a_moment_of_its_own(
    kind: str, bits: float, making: int, precision: str, bytes_each: int, rows: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """With small batches the worst one: the whole file in 16 bits, and what quantising its largest matrix takes."""
    folder = tmp_path / "wide"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(WIDE), encoding="utf-8")
    tiny_tokenizer().save_pretrained(folder)
    words = ("--data", rows, "--batch_tokens", "64", "--quantize", kind, "--precision", precision, "--memory", "24GB")
    plan = planned(capsys, folder, *words, "--device", "cpu")
    found = by_name(plan)
    plain, few = found["lora"], found[f"lora + {kind}"]
    linear = 8 * (4 * 512 * 512 + 3 * 512 * 2048)
    saved = plain["parts"]["weights"] - few["parts"]["weights"]
    assert saved == pytest.approx(linear * (bytes_each - bits / 8), rel=1e-3)
    assert few["moment"] == "load"
    assert few["parts"]["activations"] == 0
    reading = 2 * plan["parameters"] + making * 512 * 2048
    assert few["parts"][RUNTIME] - plain["parts"][RUNTIME] == pytest.approx(reading, rel=0.2), "but for its holes"


@rows_of("lora")
@pytest.mark.usefixtures("only", "untimed")
@pytest.mark.parametrize(("kind", "device"), [("nf4", "cpu"), ("int8", "gpu")])
def test_a_quantised_base_has_the_activations_of_a_plain_one_and_a_weight(
    kind: str, device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LoRA keeps of a layer's input what it keeps of a plain layer's, no float32 copy; a weight of 2 bytes is written out."""
    folder, rows = tmp_path / "wide", tmp_path / "rows.jsonl"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**WIDE, "num_hidden_layers": 2}), encoding="utf-8")
    tiny_tokenizer().save_pretrained(folder)
    rows.write_text("".join(json.dumps({"prompt": f"{n}" * 300, "completion": "yes " * 100}) + "\n" for n in range(10, 40)))
    words = ("--data", rows, "--batch_tokens", "1024", "--max_length", "1024", "--quantize", kind, "--precision", "bf16")
    found = by_name(planned(capsys, folder, *words, "--memory", "24GB", "--device", device))
    plain, few = found["lora"], found[f"lora + {kind}"]
    assert {plain["moment"], few["moment"]} <= {"forward", "backward"}
    more = few["parts"]["activations"] - plain["parts"]["activations"]
    assert plain["parts"]["activations"] > 3e7
    assert more < 2 * 512 * 2048 + 0.05 * plain["parts"]["activations"]


def test_options_of_a_quantised_base_are_refused_as_fit_refuses_them(rows: Path, tmp_path: Path) -> None:
    folder = tiny_backbone_folder(tmp_path / "model")
    assert main(["plan", str(folder), "--data", str(rows), "--double_quant", "true"]) == 2


def test_rows_longer_than_the_models_positions_are_refused_as_fit_refuses_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "long.jsonl"
    lines = [json.dumps({"prompt": f"say {n}", "completion": "word " * 3000}) for n in range(8)]
    path.write_text("\n".join(lines), encoding="utf-8")
    said = []
    for words in (["plan"], ["fit", "--output", str(tmp_path / "run")]):
        assert main([*words, "--model", "embedded", "--data", str(path)]) != 0
        said.append(capsys.readouterr().err.strip().splitlines()[-1])
    assert "the model has places for 512: shorten the rows" in said[0]
    assert said[0] == said[1]


@rows_of("lora", "full", "adalora", "lisa", "prompt_tuning")
@pytest.mark.usefixtures("only")
def test_the_plan_is_the_same_each_time_but_for_what_is_measured(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_backbone_folder(tmp_path / "model")
    # Within one process the first plan fills small caches of the product (masks), which count once.
    plans = [planned(capsys, folder, "--data", rows, "--memory", "24GB", "--device", "gpu") for _ in range(3)]
    assert plans[1] == plans[2]
    assert list(plans[0]) == ["model", "files", "parameters", "device", "memory", "data", "methods", "time", "recommendation",
                              "command", "advice"]  # fmt: skip
    assert len({tuple(row) for row in plans[0]["methods"]}) == 1, "all rows have the same keys"


@rows_of("lora", "full", "prefix_tuning")
@pytest.mark.usefixtures("only")
def test_options_of_a_run_count(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_backbone_folder(tmp_path / "model")
    base = ("--memory", "24GB", "--device", "gpu", "--data", rows)
    plain = planned(capsys, folder, *base, "--batch_tokens", "512")
    other = planned(
        capsys, folder, *base, "--batch_tokens", "512", "--method.rank", "128", "--optimizer", "SGD", "--epochs", "9",
        "--gradient_checkpointing", "true",
    )  # fmt: skip
    before, after = by_name(plain), by_name(other)
    assert after["lora"]["trainable"] == 8 * before["lora"]["trainable"]
    assert after["lora"]["options"] == {"rank": 128}
    assert after["full"]["parts"]["optimizer"] == 0, "SGD without momentum has no state"
    assert "recomputed activations" in after["prefix_tuning"]["reason"]
    assert 0 <= other["data"]["steps"] - 3 * plain["data"]["steps"] <= 3, "epochs are packed in another order each"
    assert [line.partition(":")[0] for line in other["advice"]] == ["--method.rank 128", "--epochs 9"]


def test_the_table_names_every_method_and_recommends(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_backbone_folder(tmp_path / "model")
    target = tmp_path / "plan.json"
    assert main(["plan", str(folder), "--data", str(rows), "--goal", "domain_shift", "--json", str(target)]) == 0
    said = capsys.readouterr().out
    for name in registry().methods:
        assert f"\n{name} " in said or f"\n{name}: " in said
    assert f"`lightning-ft fit --model {folder} --data {rows} --method lora --method.rank 8`" in said
    assert json.loads(target.read_text(encoding="utf-8"))["recommendation"]["row"] == "lora"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "nowhere", "--data", "ROWS"], "Expected --model to be a model folder"),
        (["--model", "MODEL"], "Expected --data, got nothing"),
        (["--model", "MODEL", "--data", "nothing.jsonl"], "nothing.jsonl"),
        (["--model", "MODEL", "--data", "ROWS", "--memory=-3GB"], "Expected --memory to be a size above 0"),
        (["--model", "MODEL", "--data", "ROWS", "--memory"], "Expected a value after --memory"),
        (["--model", "MODEL", "--data", "ROWS", "--memori", "3GB"], "got '--memori'"),
        (["--model", "MODEL", "--data", "ROWS", "--goal", "fun"], "Expected --goal to be one of"),
        (["--model", "MODEL", "--data", "ROWS", "--device", "tpu"], "Expected --device to be one of cpu, gpu"),
        (["--model", "MODEL", "--data", "ROWS", "--method", "lroa"], "Did you mean 'lora'?"),
        (["--model", "MODEL", "--data", "ROWS", "--json", "no/such/plan.json"], "Expected --json to name a file"),
        (["--model", "MODEL", "--data", "ROWS", "--json", "rows.jsonl"], "Expected a name that ends in .json behind --json"),
        (["--model", "MODEL", "--data", "ROWS", "--max_length", "100000"], "Expected --max_length from 1 to 256"),
        (["--model", "MODEL", "--data", "ROWS", "--strategy", "fsdp"], "Expected --strategy auto or ddp"),
    ],
)
def test_wrong_input_is_one_sentence(
    words: list[str], message: str, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_backbone_folder(tmp_path / "model")
    replaced = [{"MODEL": str(folder), "ROWS": str(rows)}.get(word, word) for word in words]
    assert main(["plan", *replaced]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1], said


def test_help_costs_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--help"]) == 0
    assert "--memory SIZE" in capsys.readouterr().out


@rows_of("lora", "full", "spectrum")
@pytest.mark.usefixtures("only")
def test_weights_of_the_folder_are_not_read(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_backbone_folder(tmp_path / "model")
    whole = planned(capsys, folder, "--data", rows, "--memory", "24GB", "--device", "gpu")
    (folder / "model.safetensors").write_bytes(b"these are no weights")
    again = planned(capsys, folder, "--data", rows, "--memory", "24GB", "--device", "gpu")
    assert by_name(whole)["spectrum"]["trainable"] > 0
    assert {n: r["trainable"] for n, r in by_name(again).items()} == {n: r["trainable"] for n, r in by_name(whole).items()}


@rows_of("lisa", "full")
@pytest.mark.usefixtures("only", "untimed")
def test_layers_that_train_in_turns_have_their_optimiser_state_in_turns(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two of the shipped model's four layers at a time, for which a rehearsal of one layer is too shallow."""
    found = by_name(planned(capsys, "embedded", "--data", rows))
    turns, whole = found["lisa"], found["full"]
    assert turns["trainable"] == whole["trainable"]
    assert turns["parts"]["optimizer"] < 0.8 * whole["parts"]["optimizer"]


@pytest.mark.parametrize("name", ["lora", "full"])
def test_layers_that_are_recomputed_repeat_with_their_number(
    name: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 12 layers: the fewer of them are recomputed, the more is kept; from few layers follows what all of them take."""
    shape = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    small = {"num_hidden_layers": 12, "vocab_size": 260, "max_position_embeddings": 512}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(LLAMA_8B | shape | small))
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    request = requested(tmp_path / "model", rows, batch_tokens=512, packing="off")
    config = request.config()
    planning = Planning(request, Target("gpu", 8 * 10**9, "auto"), print)
    load, method = planning.work.load(packed=False, shared=False), registry().methods[name].cls()

    def activations(every: bool | int, offload: bool = False) -> float:
        chosen = replace(config, gradient_checkpointing=every, activation_offload=offload)
        scene = replace(planning.scene, config=chosen)
        found = account(scene, method, planning.target.formats(trains_base=method.trains_base), load.step, None, gpu=True)
        return found.windows["forward"]["activations"]

    none, third, second, every = map(activations, (False, 3, 2, True))
    assert none > third > second > every
    inputs = 12 * load.step.micro[0].input_ids.numel() * 64 * (4 if method.trains_base else 2)
    assert every - activations(True, offload=True) == pytest.approx(inputs, rel=0.2), "the host keeps the layers' inputs"
    monkeypatch.setattr(Scene, "period", property(lambda self: self.depth))
    assert activations(3) == pytest.approx(third, rel=0.01)


@rows_of("lora", "full")
@pytest.mark.usefixtures("only")
def test_a_compiled_run_is_planned_as_one_that_is_not(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_backbone_folder(tmp_path / "model")
    assert main(["plan", str(folder), "--data", str(rows), "--compile", "true", "--memory", "2GB", "--device", "gpu"]) == 0
    assert "compile: memory and time are planned as without it" in capsys.readouterr().err


def test_offloading_is_planned_for_a_gpu_only(rows: Path, tmp_path: Path) -> None:
    folder = tiny_backbone_folder(tmp_path / "model")
    request = requested(folder, rows, gradient_checkpointing=True, activation_offload=True)
    with pytest.raises(UsageError, match=r"^Expected a GPU for --activation_offload, found none: "):
        Planning(request, Target("cpu", 8 * 10**9, "auto"), print)
