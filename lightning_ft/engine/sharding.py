"""A model over several processes: layers cut in pieces (tensor parallel), parameters spread (FSDP2), or both.

The mesh has two sides: `data_parallel`, whose processes see different rows, and `tensor_parallel`, whose processes hold a layer
together and see the same rows. A parameter that is cut or spread is a DTensor; everything else lies whole in each process.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from lightning_ft.engine.model import base_model, decoder_layers
from lightning_ft.quantization import keep_scales

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.parallel import ParallelStyle

DATA, TENSOR = "data_parallel", "tensor_parallel"
"""The sides of the mesh, as Lightning names them."""
SHARED = "replicated_with_grad_allreduce"
"""transformers' word for a weight that lies whole in each process, but meets only the process's part of the activations."""
UNCUT = frozenset({"lm_head", "embed_tokens"})
"""Not cut though transformers' plan may: the loss makes logits in chunks of all words."""


class Shards:
    """What of a model lies in this process.

    Args:
        model: With its method attached; its parameters become this process's parts of them.
        mesh: Of the two sides.
        spread: Whether parameters are spread over the data-parallel side.
        compute: What float32 parameters that are spread are gathered in; None: as they are.
        held: What parameters that are spread are kept in: each process turns its share alone into it; None: as they came.
    """

    def __init__(
        self, model: nn.Module, mesh: DeviceMesh, *, spread: bool, compute: torch.dtype | None, held: torch.dtype | None = None
    ) -> None:
        self.mesh = mesh
        self._partial: list[nn.Module] = []
        if mesh[TENSOR].size() > 1:
            self._cut(model, mesh[TENSOR])
        if spread:
            self._spread(model, mesh[DATA], compute)
            if held is not None:
                model.to(held)

    def _cut(self, model: nn.Module, mesh: DeviceMesh) -> None:
        """Give each process its columns and rows of the layers' matrices, by transformers' plan for the architecture."""
        from torch.distributed.tensor.parallel import parallelize_module

        inner = base_model(model).base_model
        plan = inner.config.get_text_config().base_model_tp_plan or {}
        for name, module in inner.named_modules():
            style = next((style for pattern, style in plan.items() if matches(pattern, name)), None)
            if style is None or name.rpartition(".")[2] in UNCUT:
                continue
            if style == SHARED:
                self._partial.append(module)
            else:
                parallelize_module(module, mesh, styles()[style])

    def _spread(self, model: nn.Module, mesh: DeviceMesh, compute: torch.dtype | None) -> None:
        """Give each process its share of every parameter; a layer's are gathered while it computes."""
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        keep_scales(model)
        fixed = {p for p in model.parameters() if p.dtype == torch.int8}  # whose kernels take whole matrices
        policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32) if compute else MixedPrecisionPolicy()
        for part in (*decoder_layers(model), model):
            fully_shard(part, mesh=mesh, mp_policy=policy, ignored_params=fixed)

    def finish_gradients(self) -> None:
        """Add up the gradients of weights that each process has met with its part of the activations only."""
        for module in self._partial:
            for p in module.parameters():
                if p.grad is not None:
                    grad = p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad
                    torch.distributed.all_reduce(grad, group=self.mesh[TENSOR].get_group())


def styles() -> dict[str, ParallelStyle]:
    """How a matrix is cut, by transformers' word for it."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

    return {
        "colwise": ColwiseParallel(), "colwise_gather_output": ColwiseParallel(output_layouts=Replicate()),
        "rowwise": RowwiseParallel(), "rowwise_split_input": RowwiseParallel(input_layouts=Replicate()),
    }  # fmt: skip


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern of transformers' plans, in which `*` is a number, means the module of a name."""
    return re.fullmatch(re.escape(pattern).replace(r"\*", r"\d+"), name) is not None


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, in every process; all have to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(
    state: Mapping[str, Tensor], *, keep: bool, owners: Mapping[str, int] | None = None, copy: bool = False
) -> dict[str, Tensor]:
    """Whole tensors on the CPU, one after the other; all processes have to ask.

    Args:
        state: Tensors by name, the same names in the same order in every process.
        keep: Whether this process gets them.
        owners: A number for each name; names with one number (a head that is the embedding) are one tensor, and stay so.
        copy: Also of what lies whole on the CPU already.
    """
    copies: dict[str | int, Tensor] = {}
    found = {}
    for name, tensor in state.items():
        owner = (owners or {}).get(name, name)
        if owner not in copies:
            full = whole(tensor.detach())
            copies[owner] = full.to("cpu", copy=copy) if keep else torch.empty(0)
        if keep:
            found[name] = copies[owner]
    return found


def data_place(module: Any) -> tuple[int, int]:
    """This process's number among those that see different rows, and how many these are.

    Args:
        module: A LightningModule that a trainer trains.
    """
    mesh = module._device_mesh
    if mesh is None:
        return module.trainer.global_rank, module.trainer.world_size
    return mesh[DATA].get_local_rank(), mesh[DATA].size()


def summed(module: Any, value: Tensor) -> Tensor:
    """The sum over the processes that see different rows; a copy."""
    if module.trainer.world_size == 1:
        return value
    group = None if module._device_mesh is None else module._device_mesh[DATA].get_group()
    # A copy: gloo and NCCL put the sum where the summand was.
    strategy = module.trainer.strategy
    reduced = strategy.reduce(value.to(strategy.root_device, copy=True), group=group, reduce_op="sum")
    assert isinstance(reduced, Tensor)
    return reduced
