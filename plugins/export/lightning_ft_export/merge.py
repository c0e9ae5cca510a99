"""`lightning-ft merge`: an adapter folded into its base model, and how far the merged model is from what was trained."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lightning_ft.backbone import has_own_code, quiet_peft
from lightning_ft.cli.parser import add_model, command, given_once
from lightning_ft.errors import CheckFailedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor, nn

    from lightning_ft.loading import Loaded, Location

Base = Literal["dequantized", "original"]
PLAIN_STARTS = ("None", "True", "False", "gaussian", "orthogonal")
"""peft's starts of an adapter that leave the base weights as they are."""
TEXTS, LONGEST = 16, 256
"""Sample texts on which the distance is measured, and their longest in tokens."""


@dataclass(frozen=True)
class Distance:
    """How far the logits of the merged model are from those of base and adapter, over all positions of the sample texts."""

    mean: float
    """Mean absolute difference."""
    most: float
    """Largest absolute difference."""
    spread: float
    """Standard deviation of the logits, to compare with."""
    same_choice: float
    """Share of positions with the same most likely token."""

    def sentence(self) -> str:
        """For the terminal."""
        return (
            f"logit distance to base and adapter: mean {self.mean:.2g}, largest {self.most:.2g} (the logits' spread is "
            f"{self.spread:.2g}); the same most likely token at {self.same_choice:.2%} of the positions"
        )


def main(argv: Sequence[str]) -> int:
    """Write the merged model and print the distance."""
    parser = command(
        "merge",
        "Fold an adapter into its base model: a plain model that needs no peft. An adapter that was trained on a quantised\n"
        "base is never merged into few bits, where rounding would undo what was learned; --base says into which weights:\n"
        "  dequantized  the quantised weights turned back: what was trained, nearly exactly (the default)\n"
        "  original     the weights before quantisation: the adapter meets a base that it was not trained on",
        "example: lightning-ft merge runs/support_1 --output support",
    )
    add_model(parser)
    parser.add_argument("--output", metavar="FOLDER", help="the folder to write")
    parser.add_argument("--base", choices=get_args(Base), help="for adapters of a quantised base; see above")
    parser.add_argument("--dtype", choices=["fp32", "bf16", "fp16"], help="of the merged weights; default: that of the base")
    parser.add_argument("--trust_remote_code", action="store_true", help="run Python code that comes with the base model")
    given = parser.parse_args(argv)
    model = given_once(given, "model", "lightning-ft merge --model RUN --output FOLDER")
    if not given.output:
        raise UsageError("Expected --output, got nothing; type the folder to write after --output.")
    distance = merge(model, given.output, base=given.base, dtype=given.dtype, trust_remote_code=given.trust_remote_code)
    print(distance.sentence())
    print(f"merged: {given.output}")
    return 0


def merge(
    model: str, output: str | Path, *, base: Base | None = None, dtype: str | None = None, trust_remote_code: bool = False
) -> Distance:
    """Write a plain model that does what the adapter does on its base.

    Args:
        model: An adapter, or the run folder of one.
        output: A folder that does not exist or is empty.
        base: Into which weights an adapter of a quantised base goes; None: dequantized.
        dtype: `fp32`, `bf16` or `fp16`; None: that of the base's weights.
        trust_remote_code: Whether code that comes with the base model may run.

    Raises:
        UsageError: the model is no adapter, its method cannot be merged, `base` does not apply, or the folder is taken.
        CheckFailedError: what the merged model computes are no numbers.
    """
    import torch

    from lightning_ft.atomic import whole_folder
    from lightning_ft.loading import load, locate
    from lightning_ft.run.card import note_stops

    where = locate(model)
    target = Path(output)
    _check(where, model, target, base)
    before = load(model, trust_remote_code=trust_remote_code)
    ids = _sample(before)
    trained = [_logits(before.model, one) for one in ids]
    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, None: None}
    merged = _merged(before, where, base or "dequantized", named[dtype])
    distance = _distance(merged, ids, trained)
    if not math.isfinite(distance.mean):
        raise CheckFailedError(
            f"Expected logits that are numbers, got NaN or infinity from the model merged in {dtype or 'its own type'}; "
            "nothing was written; type --dtype bf16 or fp32."
        )
    with whole_folder(target) as folder:
        merged.save_pretrained(str(folder))
        before.template.install(before.tokenizer)
        before.tokenizer.save_pretrained(str(folder))
        note_stops(folder, before.stop_tokens)
        card = f"# {where.base} with the adapter {model} merged into it\n\n{distance.sentence()}.\n"
        (folder / "README.md").write_text(card, encoding="utf-8")
    return distance


def _check(where: Location, model: str, target: Path, base: Base | None) -> None:
    from lightning_ft.backbone import read_json
    from lightning_ft.loading import ADAPTER
    from lightning_ft.run.folder import check_writable

    if where.adapter is None:
        raise UsageError(f"Expected --model to be an adapter or the run folder of one; '{model}' is a whole model already.")
    config = read_json(where.adapter / ADAPTER)
    kind = str(config.get("peft_type"))
    if kind in ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT"):
        raise UsageError(
            f"Expected an adapter that changes weights, got one of type {kind}, which adds inputs; serve the adapter as it is."
        )
    if base is not None and where.quantization is None:
        raise UsageError(f"Expected --base for an adapter of a quantised base, got '{model}' without one; leave --base out.")
    if where.quantization is not None and base != "original" and str(config.get("init_lora_weights")) not in PLAIN_STARTS:
        got = config["init_lora_weights"]
        raise UsageError(f"Expected an adapter that leaves its base as it is, got one of {got}; type --base original.")
    check_writable(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"Expected --output to be a new folder, got '{target}', which is there already; name another.")


def _merged(before: Loaded, where: Location, base: Base, dtype: torch.dtype | None) -> Any:
    """The plain model: adapter and base as loaded, or the adapter upon a base of full precision.

    Added up in float32 and rounded once, to `dtype` or what the base's weights were.
    """
    from lightning_ft.loading import load, untie_adapted, with_adapter

    adapted = before.model
    turned: list[str] = []
    if where.quantization is not None:
        assert where.adapter is not None
        # On the CPU: beside the quantised one there may be no room on a GPU.
        trusted = has_own_code(adapted.get_base_model())
        plain = load(where.base, device="cpu", revision=where.revision, trust_remote_code=trusted).model
        turned = _to_linear(plain)
        if base == "dequantized":
            _turn_back(adapted.get_base_model(), plain)
        adapted = with_adapter(plain, where.adapter)
    stored = adapted.get_base_model().dtype
    adapted.float()
    untie_adapted(adapted)
    with quiet_peft():
        merged: Any = adapted.merge_and_unload(safe_merge=True).to(dtype or stored)
    _to_conv1d(merged, turned)
    return merged


def _turn_back(quantised: nn.Module, plain: nn.Module) -> None:
    """Give the plain model of linear layers the weights that the quantised one computes with."""
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
    from peft.utils.integrations import dequantize_bnb_weight

    for name, module in quantised.named_modules():
        if not isinstance(module, (Linear4bit, Linear8bitLt)):
            continue
        stored: Any = module
        weight = dequantize_bnb_weight(stored.weight, state=getattr(stored, "state", None))
        plain.get_parameter(f"{name.removesuffix('.base_layer')}.weight").data.copy_(weight)


def _to_linear(model: nn.Module) -> list[str]:
    """Put linear layers in place of GPT-2's Conv1D, as quantisation does, and return their names.

    An adapter of a quantised base is one of linear layers, and peft has some of no other kind.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    names = [name for name, module in model.named_modules() if isinstance(module, Conv1D)]
    for name in names:
        old: Any = model.get_submodule(name)
        new = nn.Linear(old.nx, old.nf, device="meta")
        new.weight, new.bias = nn.Parameter(old.weight.detach().t().contiguous()), old.bias
        model.set_submodule(name, new)
    return names


def _to_conv1d(model: nn.Module, names: list[str]) -> None:
    """Undo `_to_linear` for the layers of these names."""
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    for name in names:
        old: Any = model.get_submodule(name)
        with torch.device("meta"):
            new = Conv1D(old.out_features, old.in_features)  # type: ignore[no-untyped-call]  # of transformers
        new.weight, new.bias = nn.Parameter(old.weight.detach().t().contiguous()), old.bias
        model.set_submodule(name, new)


def _sample(loaded: Loaded) -> list[Tensor]:
    """(1, T) token ids of the texts that are shipped with the package."""
    import torch

    from lightning_ft.loading import embedded_folder

    rows = (embedded_folder().parent / "data" / "chat.jsonl").read_text(encoding="utf-8").splitlines()[:TEXTS]
    texts = [" ".join(message["content"] for message in json.loads(row)["messages"]) for row in rows]
    longest = min(LONGEST, getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None) or LONGEST)
    encoded = loaded.tokenizer(texts, truncation=True, max_length=longest)["input_ids"]
    return [torch.tensor([ids], device=loaded.model.device) for ids in encoded]


def _logits(model: Any, ids: Tensor) -> Tensor:
    """(T, V), of the model's own type, on the host."""
    import torch

    model.eval()
    with torch.inference_mode():
        found: Tensor = model(input_ids=ids.to(model.device), use_cache=False).logits[0].cpu()
    return found


def _distance(merged: Any, ids: list[Tensor], trained: list[Tensor]) -> Distance:
    """Text by text, so that no more than one text's logits of the merged model exist."""
    apart = most = total = squares = 0.0
    same = positions = numbers = 0
    for one, before in zip(ids, trained, strict=True):
        now, then = _logits(merged, one).float(), before.float()
        gap = (now - then).abs()
        apart, most = apart + float(gap.double().sum()), max(most, float(gap.max()))
        total, squares = total + float(then.double().sum()), squares + float(then.double().square().sum())
        same += int((now.argmax(-1) == then.argmax(-1)).sum())
        positions, numbers = positions + len(then), numbers + then.numel()
    spread = max(0.0, squares / numbers - (total / numbers) ** 2) ** 0.5
    return Distance(apart / numbers, most, spread, same / positions)
