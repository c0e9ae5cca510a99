"""`generate`: answers to prompts from flags, a file or standard input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_ft.atomic import write_text
from lightning_ft.cli.early import look
from lightning_ft.cli.parser import add_model, command, given_once
from lightning_ft.cli.sampling import add_sampling, given_sampling
from lightning_ft.errors import DataError, UsageError, json_name, json_name_of

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Answer prompts; one answer per prompt on standard output."""
    parser = command(
        "generate",
        "Answer prompts. Prompts come from --prompt, --prompts or standard input (the whole input is one prompt).",
        'example: lightning-ft generate runs/support_1 --prompt "Where is my parcel?"',
    )
    add_model(parser)
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="a prompt (repeatable)")
    parser.add_argument(
        "--prompts", metavar="FILE", help='a prompt per line, or .jsonl with {"prompt": ...}; - is standard input'
    )
    parser.add_argument("--output", metavar="FOLDER", help="write predictions.jsonl there instead of printing")
    parser.add_argument("--json", action="store_true", help='print {"prompt", "prediction"} per line')
    add_sampling(parser)
    arguments = parser.parse_args(argv)
    model = given_once(arguments, "model", "lightning-ft generate --model RUN --prompt TEXT")
    prompts = [*arguments.prompt, *(_read_prompts(arguments.prompts) if arguments.prompts else ())]
    if not prompts and not sys.stdin.isatty():
        text = sys.stdin.read().strip("\n")
        prompts = [text] if text.strip() else []
    if not prompts:
        raise UsageError("Expected a prompt by --prompt, --prompts or standard input; got none.")
    look(model)
    if arguments.output:
        from lightning_ft.evaluation import RESULTS
        from lightning_ft.run.folder import check_writable

        check_writable(Path(arguments.output))
        if (Path(arguments.output) / RESULTS).exists():
            raise UsageError(f"Expected --output to be another folder than '{arguments.output}', which holds an evaluation.")

    from lightning_ft.api import generate

    answers = generate(model, prompts, **given_sampling(arguments))
    lines = [json.dumps({"prompt": p, "prediction": a}, ensure_ascii=False) for p, a in zip(prompts, answers, strict=True)]
    if arguments.output:
        file = Path(arguments.output) / "predictions.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, "".join(f"{line}\n" for line in lines))
        print(f"{len(lines)} answers: {file}")
    elif arguments.json:
        print("\n".join(lines))
    else:
        # Between several answers an empty line; a single one is exactly what the model wrote.
        print("\n\n".join(answers))
    return 0


def _read_prompts(name: str) -> list[str]:
    """The prompts of a file.

    Raises:
        DataError: the file cannot be read, or a line of a .jsonl file has no prompt.
    """
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else f"byte {error.start} is no UTF-8"
        raise DataError(f"{name}: expected a text file of prompts; {said}.") from None
    # Not splitlines(): it also breaks at U+2028 and its like, which JSON strings may hold as they are.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not name.endswith(".jsonl"):
        return [line for _, line in lines]
    prompts = []
    for number, line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{name}:{number}: expected a JSON object; {error.msg} at column {error.colno}.") from None
        prompt = row.get("prompt", row.get("instruction")) if isinstance(row, dict) else row
        if not isinstance(prompt, str):
            got = json_name_of(row, "prompt") if isinstance(row, dict) else json_name(row)
            raise DataError(f"{name}:{number}: expected 'prompt' to be text; got {got}.")
        prompts.append(prompt)
    return prompts
