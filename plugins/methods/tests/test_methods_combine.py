from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lightning_ft_methods.combine import combine, main
from lightning_ft_methods.lora import LoRA

from lightning_ft.errors import UsageError
from lightning_ft.loading import load, locate
from lightning_ft.quantization import Quantization
from lightning_ft.testing.methods import logits
from lightning_ft.testing.models import tiny_backbone_folder

if TYPE_CHECKING:
    from torch import Tensor

NAME = "model.layers.1.mlp.down_proj"
OPTIONS = (LoRA(rank=4), LoRA(rank=8, alpha=4, use_rslora=True), LoRA(rank=2, target_modules=["q_proj", "down_proj"]))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_backbone_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def adapters(model: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three adapters of other ranks, scales and layers, with random weights."""
    from transformers import AutoModelForCausalLM

    folders = []
    for number, method in enumerate(OPTIONS):
        attached: Any = method.attach(AutoModelForCausalLM.from_pretrained(model), 1)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for p in attached.parameters():
                if p.requires_grad:
                    p.copy_(0.1 * torch.randn(p.shape, generator=generator))
        folder = tmp_path_factory.mktemp("adapters") / str(number)
        attached.save_pretrained(str(folder))
        folders.append(str(folder))
    return folders


def change(adapter: str | Path, name: str = NAME) -> Tensor:
    """What peft's merging adds to a layer, in float64."""
    merged = load(str(adapter)).model.merge_and_unload()
    base = load(locate(str(adapter)).base).model
    difference: Tensor = merged.get_parameter(f"{name}.weight").double() - base.get_parameter(f"{name}.weight").double()
    return difference


def trimmed(change: Tensor, density: float) -> Tensor:
    """Yadav et al. 2023, algorithm 1, step 1: all but the largest become zero."""
    kept = change.abs().flatten().topk(int(density * change.numel())).indices
    out = torch.zeros_like(change).flatten()
    out[kept] = change.flatten()[kept]
    return out.reshape(change.shape)


@pytest.mark.parametrize("how", ["linear", "cat"])
def test_the_sum_is_exact(how: Any, adapters: list[str], tmp_path: Path) -> None:
    kept = combine(adapters, tmp_path / "new", weights=[0.5, -2.0, 1.5], how=how)
    expected = 0.5 * change(adapters[0]) - 2.0 * change(adapters[1]) + 1.5 * change(adapters[2])
    torch.testing.assert_close(change(tmp_path / "new"), expected, atol=1e-6, rtol=0)
    only_two = 0.5 * change(adapters[0], "model.layers.0.mlp.up_proj") - 2.0 * change(adapters[1], "model.layers.0.mlp.up_proj")
    torch.testing.assert_close(change(tmp_path / "new", "model.layers.0.mlp.up_proj"), only_two, atol=1e-6, rtol=0)
    assert kept == pytest.approx(1, abs=1e-6)
    assert json.loads((tmp_path / "new" / "adapter_config.json").read_text())["r"] == 14


def test_a_lower_rank_holds_the_leading_singular_values(adapters: list[str], tmp_path: Path) -> None:
    kept = combine(adapters[:2], tmp_path / "new", rank=3)
    whole = change(adapters[0]) + change(adapters[1])
    u, s, vh = torch.linalg.svd(whole)
    torch.testing.assert_close(change(tmp_path / "new"), u[:, :3] @ (s[:3, None] * vh[:3]), atol=1e-6, rtol=0)
    assert 0.2 < kept < 0.95


def test_ties_trims_elects_and_averages(adapters: list[str], tmp_path: Path) -> None:
    """Yadav et al. 2023, algorithm 1, at full rank; weights count in the mean, not in the election."""
    combine(adapters[:2], tmp_path / "new", how="ties", density=0.3, weights=[1.0, 0.7], rank=32)
    changes = torch.stack([trimmed(change(adapters[0]), 0.3), trimmed(change(adapters[1]), 0.3)])
    sign = changes.sum(0).sign()
    agrees = (changes.sign() == sign) & (changes != 0)
    expected = (torch.tensor([1.0, 0.7])[:, None, None] * changes * agrees).sum(0) / agrees.sum(0).clamp(min=1)
    torch.testing.assert_close(change(tmp_path / "new"), expected, atol=1e-6, rtol=0)


def test_dare_drops_at_random_and_scales_what_stays(adapters: list[str], tmp_path: Path) -> None:
    combine([adapters[0]] * 2, tmp_path / "one", how="dare", density=0.25, weights=[1.0, 0.0], rank=32)
    combine([adapters[0]] * 2, tmp_path / "again", how="dare", density=0.25, weights=[1.0, 0.0], rank=32)
    combine([adapters[0]] * 2, tmp_path / "other", how="dare", density=0.25, weights=[1.0, 0.0], rank=32, seed=1)
    found, whole = change(tmp_path / "one"), change(adapters[0])
    stays = found.abs() > 1e-6
    torch.testing.assert_close(found[stays], 4 * whole[stays], atol=1e-5, rtol=0)
    assert 0.2 < stays.double().mean() < 0.3
    assert torch.equal(found, change(tmp_path / "again"))
    assert not torch.equal(found, change(tmp_path / "other"))


def test_the_new_adapter_is_an_adapter_like_others(adapters: list[str], tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    combine(adapters[:2], tmp_path / "new", how="dare_ties", density=0.5)
    here = logits(load(str(tmp_path / "new")).model)
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "new")), here)
    assert not torch.allclose(here, logits(load(adapters[0]).model), atol=1e-3)


def test_from_the_command_line(adapters: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--adapters", *adapters[:2], "--weights", "1", "0.5", "--rank", "4", "--output", str(tmp_path / "new")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"linear of 2 adapters: {tmp_path / 'new'} (holds ")
    kept = combine(adapters[:2], tmp_path / "b", weights=[1, 0.5], rank=4)
    assert float(said.partition("holds ")[2].partition("%")[0]) / 100 == pytest.approx(kept, abs=1e-3)


def test_what_does_not_go_together_is_refused(adapters: list[str], model: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    first, other = Path(adapters[0]), tmp_path / "other"
    tiny_backbone_folder(tmp_path / "model2")
    other.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        content = (first / name).read_bytes()
        (other / name).write_bytes(content.replace(model.encode(), str(tmp_path / "model2").encode()))
    new = tmp_path / "new"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"weights": [1.0]}, "a finite number of --weights for each of the 2 adapters"),
        ({"weights": [1.0, float("nan")]}, "a finite number of --weights"),
        ({"density": 0.3}, "Expected --density with --how ties, dare, dare_ties, got --how linear"),
        ({"how": "ties", "density": 0.0}, "above 0 and at most 1; got 0.0"),
        ({"rank": 0}, "--rank to be at least 1; got 0"),
        ({"how": "cat", "rank": 5}, "Expected --rank 12 with --how cat, the sum of the ranks, got 5"),
        ({"adapters": [adapters[0], model]}, "got '.*', a whole model"),
        ({"adapters": [adapters[0], str(other)]}, "Expected --adapters of one base model"),
        ({"output": tmp_path / "full"}, "which is there already; name another"),
    ]
    for options, said in cases:
        with pytest.raises(UsageError, match=said):
            combine(**{"adapters": adapters[:2], "output": new, **options})
        assert not new.exists()
    for words, said in ((adapters[:1], "at least two --adapters"), (adapters, "Expected --output")):
        with pytest.raises(UsageError, match=said):
            main(["--adapters", *words])


def changed(adapter: str, folder: Path, **values: Any) -> str:
    """A copy of an adapter with another config."""
    shutil.copytree(adapter, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return str(folder)


def test_layers_that_only_one_adapter_has_stay_in(adapters: list[str], model: str, tmp_path: Path) -> None:
    """peft's `layers_to_transform` of the first adapter would keep the other's layers out, if it were taken over."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(
        r=2, target_modules=["down_proj"], layers_to_transform=[1], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    one: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    one.save_pretrained(str(tmp_path / "one"))
    combine([str(tmp_path / "one"), adapters[0]], tmp_path / "new", how="cat")
    for name in (NAME, "model.layers.0.mlp.down_proj", "model.layers.0.self_attn.q_proj"):
        whole = change(adapters[0], name) + (change(tmp_path / "one", name) if name == NAME else 0)
        torch.testing.assert_close(change(tmp_path / "new", name), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "got one of init=pissa_niter_4, which changes the base"),
        ({"init_lora_weights": "corda"}, "got one of init=corda"),
        ({"use_dora": True}, "got one with use_dora"),
        ({"lora_bias": True}, "got one with lora_bias"),
        ({"alpha_pattern": {"q_proj": 4}}, "got one with alpha_pattern"),
        ({"layer_replication": [[0, 1]]}, "got one with layer_replication"),
        ({"r": None}, "got one whose config has no rank or alpha above 0"),
        ({"lora_alpha": "x"}, "got one whose config has no rank or alpha above 0"),
    ],
)
def test_adapters_that_are_more_than_two_matrices_are_refused(
    values: dict[str, Any], said: str, adapters: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        combine([changed(adapters[0], tmp_path / "odd", **values), adapters[1]], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_adapters_of_bases_that_are_stored_differently_are_refused(adapters: list[str], tmp_path: Path) -> None:
    quantised = changed(adapters[0], tmp_path / "quantised")
    Quantization(quantize="nf4").write(tmp_path / "quantised")
    with pytest.raises(UsageError, match="one kind of base, got adapters on full precision and nf4"):
        combine([quantised, adapters[1]], tmp_path / "new")


@pytest.mark.parametrize("how", ["linear", "cat", "ties"])
@pytest.mark.parametrize(
    ("weights", "said"), [([1e30, 1e30], "is finite"), ([1e39, 1.0], "is finite"), ([0.0, 0.0], "is zero")]
)
def test_weights_that_leave_no_change_are_refused(
    how: Any, weights: list[float], said: str, adapters: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        combine(adapters[:2], tmp_path / "new", weights=weights, how=how)
    assert not (tmp_path / "new").exists()


def test_a_name_that_is_no_adapter_is_told_by_its_own_flag(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Expected --adapters to be a model folder"):
        combine([str(tmp_path / "none"), str(tmp_path / "none")], tmp_path / "new")


def test_the_state_of_the_first_adapters_training_is_left_behind(adapters: list[str], tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(adapters[0], checkpoint)
    for name in ("trainer_state.safetensors", "trainer_state.json", "manifest.json", "tokenizer.json"):
        (checkpoint / name).write_text("{}")
    combine([str(checkpoint), adapters[1]], tmp_path / "new")
    found = {path.name for path in (tmp_path / "new").iterdir()} - {"README.md"}  # peft writes a card
    assert found == {"adapter_config.json", "adapter_model.safetensors", "manifest.json", "tokenizer.json"}


def test_the_new_adapter_stands_on_the_revision_of_the_others(
    adapters: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = []
    for number, (name, commit) in enumerate(zip([*adapters[:2], adapters[1]], ("abc", "abc", "def"), strict=True)):
        copies.append(tmp_path / str(number))
        shutil.copytree(name if (Path(name) / "adapter_config.json").is_file() else Path(name) / "final_model", copies[-1])
        file = copies[-1] / "adapter_config.json"
        config = json.loads(file.read_text()) | {"base_model_name_or_path": "owner/name", "revision": commit}
        file.write_text(json.dumps(config))
    combine([str(path) for path in copies[:2]], tmp_path / "new")
    assert json.loads((tmp_path / "new" / "adapter_config.json").read_text())["revision"] == "abc"
    with pytest.raises(UsageError, match="of one revision of their base, got some of abc and of def"):
        combine([str(path) for path in copies[1:]], tmp_path / "other")
