"""`lightning-ft ray fit`: what `lightning-ft fit` does, by workers on a Ray cluster."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ft.cli.parser import CommandParser, command
from lightning_ft.config import option_names
from lightning_ft.errors import UsageError, did_you_mean
from lightning_ft_ray.cluster import check_address, check_installed, cluster

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from lightning_ft.cli.resolve import Request
    from lightning_ft.config import TrainingConfig

PURPOSE = """Fine-tune a model on a Ray cluster: every option, config and result is that of `lightning-ft fit`."""
EXAMPLE = """All options of `lightning-ft fit --help` are understood, too: --config, --model, --data, --resume ...
Workers work in the current folder; other machines have to share it under the same name.

example: lightning-ft ray fit MODEL --data FILE --num_workers 2
         lightning-ft ray fit MODEL --data FILE --address auto --tries 3"""


def parser() -> CommandParser:
    """This command's own flags; all others are `fit`'s."""
    made = command("ray fit", PURPOSE, EXAMPLE)
    made.usage = "lightning-ft ray fit MODEL --data FILE [--num_workers N] [--address auto] [--OPTION VALUE ...]"
    made.add_argument(
        "--num_workers", type=int, metavar="N",
        help="Ray's workers, a process of training each (default: --devices; where that is auto, every GPU of the cluster, or "
        "one for each machine without any)",
    )  # fmt: skip
    made.add_argument(
        "--address",
        default="local",
        help="local (default): a cluster of this machine's own for the time of the run; auto or host:port: one that runs",
    )
    made.add_argument(
        "--cpus_per_worker", type=float, metavar="N", help="default: as many as all workers can have alike; 0.5: two share one"
    )
    made.add_argument("--use_gpu", choices=["true", "false"], help="a GPU for each worker (default: where the cluster has any)")
    made.add_argument(
        "--tries", type=int, default=1, metavar="N",
        help="how often the workers are started, if one is lost or fails, before the run has failed; each time they go on from "
        "the last checkpoint (default: 1)",
    )  # fmt: skip
    return made


def main(argv: Sequence[str]) -> int:
    """Run `fit`, the one word there is."""
    word, *rest = argv or ("--help",)
    if word in ("--help", "-h", "help"):
        print("Usage: lightning-ft ray fit [OPTIONS]\n\n`lightning-ft ray fit --help` shows the options.")
        return 0
    if word != "fit":
        raise UsageError(f"Expected `lightning-ft ray fit`, got 'ray {word}'.{did_you_mean(word, ('fit',))}")
    return fit(rest)


def fit(argv: Sequence[str]) -> int:
    """Fine-tune on a cluster."""
    from lightning_ft.cli.fit import print_config
    from lightning_ft.cli.resolve import check_torch_names, parse, resolve

    flags = parser()
    own, rest = flags.parse_known_args(flags.spelled(argv))
    check(own)
    check_flags(rest, [option for action in flags._actions for option in action.option_strings])
    arguments = parse(rest)
    if own.num_workers is not None and (given := arguments.layer.values.get("devices")) is not None:
        raise UsageError(f"Expected either --num_workers or --devices, got {own.num_workers} and {given.value}.")
    request = resolve(arguments)
    if "print_config" in arguments.switches:
        print_config(request)
        return 0
    check_installed()
    check_address(own.address)
    check_torch_names(request)
    from lightning_ft.cli.lightning import TrainerCLI

    TrainerCLI("fit", request, lambda config: run(config, request, own))
    return 0


def check(own: argparse.Namespace) -> None:
    """Refuse numbers that are none.

    Raises:
        UsageError: the first of them.
    """
    for name, least in (("num_workers", 1), ("tries", 1)):
        value: int | None = getattr(own, name)
        if value is not None and value < least:
            raise UsageError(f"Expected --{name} to be at least {least}; got {value}.")
    cpus = own.cpus_per_worker
    if cpus is not None and not (0 < cpus < 1 or (math.isfinite(cpus) and cpus >= 1 and cpus == int(cpus))):
        raise UsageError(f"Expected --cpus_per_worker to be a whole number or a part of 1, as 0.5; got {cpus:g}.")


def check_flags(words: Sequence[str], own: Sequence[str]) -> None:
    """Refuse a flag that neither this command nor `fit` has; `fit` alone would propose one of its own for a slip of ours.

    Raises:
        UsageError: the first of them.
    """
    known = [*own, *(f"--{name}" for name in (*option_names(), "config", "print_config"))]
    for word in words:
        flag = word.partition("=")[0].partition(".")[0]
        if flag.startswith("--") and flag.replace("-", "_") not in {name.replace("-", "_") for name in known}:
            hint = did_you_mean(flag, known)
            raise UsageError(f"Expected a flag of `lightning-ft ray fit --help` or of `fit`, got '{flag}'.{hint}")


def run(config: TrainingConfig, request: Request, own: Any) -> None:
    """The run, and the end of it as `fit` prints it."""
    from lightning_ft.cli.fit import show_verdict
    from lightning_ft_ray.desk import Order
    from lightning_ft_ray.launch import launch
    from lightning_ft_ray.machines import group_of
    from lightning_ft_ray.survey import survey
    from lightning_ft_ray.training import environment

    # Ray Train wants a place for checkpoints that it is given; those of a run lie in the run folder.
    storage = tempfile.TemporaryDirectory(prefix="lightning-ft-ray-", ignore_cleanup_errors=True)
    with storage as records, cluster(own.address) as machines:
        gpu = None if own.use_gpu is None else own.use_gpu == "true"
        group = group_of(config, machines, workers=own.num_workers, cpus=own.cpus_per_worker, use_gpu=gpu)
        survey(config, machines)
        config, given = sized(config, request.given, own.num_workers)
        order = Order(config, given, str(Path.cwd()), group, own.tries, records, environment(group))
        ending = launch(order, stays=own.address != "local")
    show_verdict(ending.verdict)
    print(f"Run folder: {ending.folder}")


def sized(config: TrainingConfig, given: frozenset[str], workers: int | None) -> tuple[TrainingConfig, frozenset[str]]:
    """The config as it would say the number of workers itself, so that its run is that of `fit --devices`."""
    if workers is None:
        return config, given
    trainer = {key: value for key, value in config.trainer.items() if key != "num_nodes"}
    return dataclasses.replace(config, devices=workers, trainer=trainer), given | {"devices"}
