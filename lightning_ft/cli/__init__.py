"""The command line: finds the command, runs it, and turns errors into one sentence and an exit code.

A command is a module with `main(argv) -> int`; it is imported when it is called, so that help and typos cost no torch.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import TYPE_CHECKING

from lightning_ft.errors import LightningFTError, PluginError, RunInterruptedError, UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.metadata import EntryPoint

CORE = {
    "fit": ("lightning_ft.cli.fit:fit", "fine-tune a model on data"),
    "validate": ("lightning_ft.cli.fit:validate", "likelihood metrics on the validation split"),
    "test": ("lightning_ft.cli.fit:test", "likelihood metrics on the test split"),
    "predict": ("lightning_ft.cli.fit:predict", "answer the test split into predictions.jsonl"),
    "generate": ("lightning_ft.cli.generate:main", "answer prompts"),
    "chat": ("lightning_ft.cli.chat:main", "talk to a model in the terminal"),
    "evaluate": ("lightning_ft.cli.evaluate:main", "measure a model on held-out data"),
    "score": ("lightning_ft.cli.score:main", "measure predictions that exist already"),
    "plugins": ("lightning_ft.cli.plugins:main", "what is installed, and from where"),
    "doctor": ("lightning_ft.cli.doctor:main", "what this machine can do, what is missing, how to mend it"),
    "quickstart": ("lightning_ft.cli.quickstart:main", "fine-tune the small model that is shipped, in minutes, offline"),
}
"""Commands of the core: where their function is, and a line of help."""
BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done; 1 failed; 2 wrong usage or input; 3 a check said no; 128 + signal when interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        code = _dispatch(words)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output is gone (`| head`); Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except SystemExit as end:
        # argparse ends a --help this way; so may a plugin's command.
        if isinstance(end.code, str):
            _say(end.code)
            return 1
        return int(end.code or 0)
    except KeyboardInterrupt:
        _say("Interrupted.")
        return 130
    except LightningFTError as error:
        if debug:
            traceback.print_exc()
        if not (isinstance(error, UsageError) and _another_says_it()):
            _say(str(error).strip())
        return 128 + error.signum if isinstance(error, RunInterruptedError) else error.exit_code
    except Exception as error:
        if debug:
            traceback.print_exc()
            return 1
        text = " ".join(str(error).split())
        shown = text if len(text) <= 300 else text[:297] + "..."
        _say(f"{type(error).__name__}: {shown or 'no message'}; run again with --debug for the traceback.")
        return 1
    return code


def _another_says_it() -> bool:
    """Whether this is not the first process of its machine: of what was typed all of them say the same."""
    return os.environ.get("LOCAL_RANK", "0") != "0"


def _say(message: str) -> None:
    print(f"lightning-ft: {message}", file=sys.stderr)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        print(overview())
        return 0
    if words[0] in ("--version", "-V"):
        from lightning_ft import __version__

        print(f"lightning-ft {__version__}")
        return 0
    name, *rest = words
    if name in CORE:
        path = CORE[name][0]
    else:
        point = _plugin_command(name)
        return int(_load(point)(rest) or 0)
    module, _, function = path.partition(":")
    return int(getattr(importlib.import_module(module), function)(rest))


def _plugin_command(name: str) -> EntryPoint:
    from lightning_ft import plugins

    found = plugins.commands()
    if name in found:
        return found[name]
    names = [*CORE, *found]
    what = "a flag before the command" if name.startswith("-") else f"'{name}'"
    raise UsageError(f"Expected a command of `lightning-ft --help`, got {what}.{did_you_mean(name, names)}")


def _load(point: EntryPoint) -> Callable[[list[str]], int]:
    """The `main` of a plugin's command."""
    from lightning_ft import plugins

    mend = f"mend or uninstall it, or set LIGHTNING_FT_DISABLE_PLUGINS={point.name}"
    try:
        loaded = point.load()
    except Exception as error:
        raise PluginError(
            f"Command '{point.name}' ({plugins.origin(point)}) failed to import: {type(error).__name__}: {error}; {mend}."
        ) from error
    function = loaded if callable(loaded) else getattr(loaded, "main", None)
    if not callable(function):
        raise PluginError(
            f"Command '{point.name}' ({plugins.origin(point)}): expected {point.value} to have main(argv) -> int; got none; "
            f"{mend}."
        )
    return function  # type: ignore[no-any-return]  # an entry point is typed by convention only


def overview() -> str:
    """`lightning-ft --help`: every command, those of plugins with their distribution."""
    from lightning_ft import plugins

    lines = ["Usage: lightning-ft COMMAND [OPTIONS]", "", "Fine-tune language models, and prove that they got better.", ""]
    lines += ["Commands:", *(f"  {name:<11} {text}" for name, (_, text) in CORE.items())]
    brought: dict[str, list[EntryPoint]] = {}
    for point in plugins.commands().values():
        brought.setdefault(plugins.origin(point), []).append(point)
    if brought:
        lines += ["", "Commands of plugins:"]
    for origin, points in brought.items():
        summary = points[0].dist.metadata["Summary"] if points[0].dist else None
        lines += [f"  {' '.join(point.name for point in points)}", f"      {origin}{': ' + summary if summary else ''}"]
    return "\n".join(
        [
            *lines,
            "",
            "The shortest run:  lightning-ft fit --model PATH_OR_HUB_ID --data FILE",
            "`lightning-ft COMMAND --help` shows the options of a command; --debug shows tracebacks.",
        ]
    )
