"""`data augment`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft_datatools.commands.parser import parsed, tool

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Write the rows and further ones."""
    from lightning_ft_datatools.augmenting import SHARE, augment
    from lightning_ft_datatools.noise import KINDS
    from lightning_ft_datatools.output import write_rows
    from lightning_ft_datatools.targets import check_rows
    from lightning_ft_datatools.ways import RATE, TEMPERATURE

    parser = tool(
        "augment",
        "Further training rows with the prompt said otherwise, or with slips in it; answers stay as they are.",
        "train.jsonl --rephrase templates --noise typo,case --output more.jsonl",
    )
    add = parser.add_argument
    add("--output", required=True, metavar="FILE", help="a new .jsonl file")
    add(
        "--rephrase",
        action="append",
        default=[],
        metavar="HOW",
        help="templates (English), local, or a URL of OpenAI-compatible chat completions, key in $OPENAI_API_KEY; repeatable",
    )
    add("--rephrase_model", metavar="NAME", help="the endpoint's model; with local: run folder, model folder, hub id, embedded")
    add("--max_new_tokens", type=int, metavar="N", help="longest rephrasing of a model (default: local 256, URL as it has)")
    add("--temperature", type=float, metavar="T", help=f"of a model that rephrases (default: {TEMPERATURE})")
    add("--noise", default="", metavar="KINDS", help=f"slips, as typo,case: any of {', '.join(KINDS)}")
    add(
        "--noise_rate",
        type=float,
        metavar="P",
        help=f"probability of a slip: per letter for typo, per word for case, per blank for space (default: {RATE})",
    )
    add("--copies", type=int, default=1, metavar="N", help="further rows per row and way (default: 1)")
    add("--share", type=float, default=SHARE, metavar="S", help=f"of the training rows, which get copies (default: {SHARE})")
    add("--seed", type=int, default=0, metavar="N", help="another seed gives other copies (default: 0)")  # fmt: skip
    arguments = parsed(parser, argv)
    output = check_rows(arguments.output, arguments.files)
    made = augment(
        arguments.files, rephrase=arguments.rephrase, rephrase_model=arguments.rephrase_model, noise=arguments.noise,
        noise_rate=arguments.noise_rate, copies=arguments.copies, share=arguments.share, seed=arguments.seed,
        max_new_tokens=arguments.max_new_tokens, temperature=arguments.temperature, task=arguments.task,
        columns=arguments.columns,
    )  # fmt: skip
    write_rows(output, made.rows)
    print(f"{made.summary()}: {output}")
    return 0
