"""`lightning-ft combine`: one adapter out of several, on what they add to each layer."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lightning_ft.atomic import MANIFEST
from lightning_ft.cli.parser import command
from lightning_ft.errors import UsageError
from lightning_ft.run.state import TENSORS, TREE
from lightning_ft_methods.stored import WEIGHTS, A, B, StoredLoRA, stored_lora

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

How = Literal["linear", "cat", "ties", "dare", "dare_ties"]
PRUNING = ("ties", "dare", "dare_ties")
PREFIX = "base_model.model."
"""Before every module's name in an adapter's file."""
LEFT_OUT = {WEIGHTS, "adapter_config.json", MANIFEST, "README.md", TENSORS, TREE}
"""Files of an adapter that are not taken over: its own, and the state of its training."""


def main(argv: Sequence[str]) -> int:
    """Combine adapters and say how much of their sum the new one holds."""
    parser = command(
        "combine",
        "Combine LoRA adapters of one base model into a new one. Every layer's changes W_i = s_i B_i A_i are weighted and put\n"
        "together; the result is brought to --rank by its leading singular vectors.\n\n"
        "  linear     sum of w_i W_i\n"
        "  cat        the same sum, exactly: A and B side by side (the rank is the sum of the ranks)\n"
        "  ties       the largest --density of each W_i, the sign of the majority, the mean of those that have it\n"
        "             (Yadav et al. 2023, arXiv:2306.01708)\n"
        "  dare       a random --density of each W_i, scaled by 1 / density, summed (Yu et al. 2023, arXiv:2311.03099)\n"
        "  dare_ties  as dare, put together as ties does",
        "example: lightning-ft combine --adapters runs/sql_1 runs/chat_1 --how ties --density 0.3 --output both",
    )
    parser.add_argument("--adapters", nargs="+", metavar="RUN", help="adapters or run folders, at least two")
    parser.add_argument("--weights", nargs="+", type=float, metavar="W", help="a weight for each; default: 1 for all")
    parser.add_argument("--how", choices=get_args(How), default="linear", help="default: linear")
    parser.add_argument("--density", type=float, metavar="SHARE", help="share of each change that is kept; default: 0.5")
    parser.add_argument("--rank", type=int, metavar="R", help="rank of the new adapter; default: the sum of the ranks")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides what dare keeps; default: 0")
    parser.add_argument("--output", metavar="FOLDER", help="the folder to write")
    given = parser.parse_args(argv)
    names = [name for word in given.adapters or () for name in word.split(",") if name]
    if len(names) < 2:
        raise UsageError(f"Expected at least two --adapters; got {', '.join(names) or 'none'}.")
    if not given.output:
        raise UsageError("Expected --output, got nothing; type the folder to write after --output.")
    kept = combine(
        names, given.output, weights=given.weights, how=given.how, density=given.density, rank=given.rank, seed=given.seed
    )
    print(f"{given.how} of {len(names)} adapters: {given.output} (holds {kept:.1%} of the combined change's squared norm)")
    return 0


def combine(
    adapters: Sequence[str], output: str | Path, *, weights: Sequence[float] | None = None, how: How = "linear",
    density: float | None = None, rank: int | None = None, seed: int = 0,
) -> float:  # fmt: skip
    """Write the adapter that combines others, and return which share of the combined change's squared norm it holds.

    Args:
        adapters: At least two folders or run folders of LoRA adapters of one base model.
        output: A folder that does not exist or is empty.
        weights: One for each adapter, any finite number; None: 1 for all.
        how: See `lightning-ft combine --help`.
        density: Share of each change that `ties`, `dare` and `dare_ties` keep, above 0 and at most 1; None: 0.5.
        rank: Of the new adapter; None: the sum of the ranks.
        seed: Decides what `dare` keeps.

    Raises:
        UsageError: a value is out of range, the folder is taken, or the adapters do not go together.
    """
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file

    from lightning_ft.atomic import whole_folder

    stored = [stored_lora(name, "--adapters") for name in adapters]
    scales = _checked(stored, weights, how, density, rank, seed, Path(output))
    tensors = [one.weights() for one in stored]
    modules = sorted({name.removesuffix(A) for one in tensors for name in one if name.endswith(A)})
    most = sum(int(one.config["r"]) for one in stored)
    target = rank or most
    torch.manual_seed(seed)
    out: dict[str, Tensor] = {}
    total = held = 0.0
    for module in modules:
        changes = [(one, own, scale) for one, own, scale in zip(stored, tensors, scales, strict=True) if module + A in own]
        if how == "cat":
            a, b = _side_by_side(module, changes, target)
            _check_finite(b @ a)
            found = squared = float((b @ a).square().sum())
        else:
            whole = _together(how, 0.5 if density is None else density)(
                [one.change(module, own) for one, own, _ in changes], torch.tensor([scale for _, _, scale in changes])
            )
            _check_finite(whole)
            a, b, found = _factors(whole, target)
            squared = float(whole.square().sum())
        out[module + A], out[module + B] = a.contiguous(), b.contiguous()
        total, held = total + squared, held + found
    if not total:
        raise UsageError("Expected adapters, --weights and --density that leave a change, but the combined one is zero.")
    names = [module.removeprefix(PREFIX) for module in modules]  # whole, as ends would take in layers that no adapter had
    config = LoraConfig(
        task_type="CAUSAL_LM", r=target, lora_alpha=target, target_modules=names, inference_mode=True,
        base_model_name_or_path=stored[0].where.base, fan_in_fan_out=bool(stored[0].config.get("fan_in_fan_out")),
        revision=stored[0].where.revision,
    )  # fmt: skip
    with whole_folder(Path(output)) as folder:
        for path in stored[0].folder.iterdir():  # tokenizer, template, how the base is stored
            if path.is_file() and path.name not in LEFT_OUT:
                shutil.copy2(path, folder / path.name)
        save_file(out, folder / WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(str(folder))
    return held / total


def _check_finite(change: Tensor) -> None:
    """Refuse numbers whose squares float32 does not hold, too."""
    if not bool(change.square().sum().isfinite()):
        raise UsageError("Expected adapters and --weights whose combined change is finite; one of a layer is not.")


def _checked(
    stored: Sequence[StoredLoRA], weights: Sequence[float] | None, how: str, density: float | None, rank: int | None,
    seed: int, output: Path,
) -> list[float]:  # fmt: skip
    """The weights, once everything fits together."""
    bases = sorted({one.where.base for one in stored})
    if len(bases) > 1:
        raise UsageError(f"Expected --adapters of one base model, got adapters of '{bases[0]}' and '{bases[1]}'.")
    commits = sorted({str(one.where.revision) for one in stored})
    if len(commits) > 1:
        raise UsageError(f"Expected --adapters of one revision of their base, got some of {commits[0]} and of {commits[1]}.")
    kinds = {one.where.quantization for one in stored}
    if len(kinds) > 1:
        said = " and ".join(sorted(kind.quantize if kind else "full precision" for kind in kinds))
        raise UsageError(f"Expected --adapters that were trained on one kind of base, got adapters on {said}.")
    if weights is not None and (len(weights) != len(stored) or not all(map(math.isfinite, weights))):
        raise UsageError(f"Expected a finite number of --weights for each of the {len(stored)} adapters; got {list(weights)}.")
    if density is not None and how not in PRUNING:
        raise UsageError(f"Expected --density with --how {', '.join(PRUNING)}, got --how {how}, which keeps everything.")
    if density is not None and not 0 < density <= 1:
        raise UsageError(f"Expected --density to be above 0 and at most 1; got {density}.")
    most = sum(int(one.config["r"]) for one in stored)
    if not 0 <= seed < 2**32:
        raise UsageError(f"Expected --seed to be from 0 to 4294967295; got {seed}.")
    if rank is not None and (isinstance(rank, bool) or rank < 1):
        raise UsageError(f"Expected --rank to be at least 1; got {rank}.")
    if how == "cat" and rank not in (None, most):
        raise UsageError(f"Expected --rank {most} with --how cat, the sum of the ranks, got {rank}; type --how linear.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"Expected --output to be a new folder, got '{output}', which is there already; name another.")
    return list(weights) if weights is not None else [1.0] * len(stored)


def _together(how: str, density: float) -> Callable[[list[Tensor], Tensor], Tensor]:
    """How changes become one, by peft's implementations of the papers."""
    from peft.utils import merge_utils

    def linear(changes: list[Tensor], weights: Tensor) -> Tensor:
        summed: Tensor = merge_utils.task_arithmetic(changes, weights)
        return summed

    def pruned(changes: list[Tensor], weights: Tensor) -> Tensor:
        function: Any = {"ties": merge_utils.ties, "dare": merge_utils.dare_linear, "dare_ties": merge_utils.dare_ties}[how]
        put_together: Tensor = function(changes, weights, density)
        return put_together

    return pruned if how in PRUNING else linear


def _side_by_side(module: str, changes: Sequence[tuple[StoredLoRA, Any, float]], rank: int) -> tuple[Tensor, Tensor]:
    """A and B whose product is the weighted sum of the products, exactly; zeros where an adapter lacks the layer."""
    import torch

    tops, lefts = [], []
    for one, own, scale in changes:
        a, b = own[module + A].float(), own[module + B].float()
        size = a.shape[0]
        s = one.config["lora_alpha"] / (size**0.5 if one.config.get("use_rslora") else size)
        tops.append(a)
        lefts.append(b * (s * scale))
    a, b = torch.cat(tops), torch.cat(lefts, dim=1)
    missing = rank - a.shape[0]
    return torch.nn.functional.pad(a, (0, 0, 0, missing)), torch.nn.functional.pad(b, (0, missing))


def _factors(change: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """A and B of a rank whose product is nearest to a change (Eckart and Young 1936), and the squared norm that they hold."""
    import torch

    u, s, vh = torch.linalg.svd(change, full_matrices=False)
    root = s[:rank].sqrt()
    a, b = root[:, None] * vh[:rank], u[:, :rank] * root
    missing = rank - a.shape[0]  # a narrow layer has fewer singular values
    pad = torch.nn.functional.pad
    return pad(a, (0, 0, 0, missing)), pad(b, (0, missing)), float(s[:rank].square().sum())
