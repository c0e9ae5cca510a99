"""`chat`: talk to a model in the terminal; answers stream, turns are rendered by the model's own template."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

from lightning_ft.cli.early import look
from lightning_ft.cli.parser import add_model, command, given_once
from lightning_ft.cli.sampling import add_sampling, given_sampling
from lightning_ft.errors import did_you_mean
from lightning_ft.types import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

COMMANDS = {"/exit": "leave", "/reset": "forget the conversation", "/system TEXT": "set the system turn", "/help": "this list"}


class Conversation:
    """The turns so far.

    Args:
        answer: streams the answer to a list of messages.
        system: the system turn; empty: none.
    """

    def __init__(self, answer: Callable[[list[Message]], Iterable[str]], system: str = "") -> None:
        self.answer, self.system = answer, system
        self.turns: list[Message] = []

    def say(self, text: str) -> Iterable[str]:
        """Stream the answer to a user's turn; an answer that is broken off is forgotten together with its question."""
        turns = [*self.turns, Message("user", text)]
        head = [Message("system", self.system)] if self.system else []
        pieces = []
        for piece in self.answer([*head, *turns]):
            pieces.append(piece)
            yield piece
        self.turns = [*turns, Message("assistant", "".join(pieces))]

    def command(self, line: str) -> str | None:
        """Run a `/command`; its reply, or None to leave."""
        name, _, rest = line.partition(" ")
        if name == "/exit":
            return None
        if name == "/reset":
            self.turns = []
            return "Forgotten."
        if name == "/system":
            self.system, self.turns = rest.strip(), []
            return (
                "System turn set; a new conversation begins."
                if self.system
                else "System turn removed; a new conversation begins."
            )
        if name == "/help":
            return "\n".join(f"{key:<14} {text}" for key, text in COMMANDS.items())
        return f"Expected one of {', '.join(COMMANDS)}; got '{name}'.{did_you_mean(name, [c.split()[0] for c in COMMANDS])}"


def main(argv: Sequence[str]) -> int:
    """Read turns from the terminal (or standard input, one per line) until /exit or the end of input."""
    parser = command(
        "chat",
        "Talk to a model. Commands inside: " + ", ".join(COMMANDS) + ". Ctrl-C stops an answer, Ctrl-D leaves.",
        "example: lightning-ft chat runs/support_1 --temperature 0.7",
    )
    add_model(parser)
    parser.add_argument("--system", default="", metavar="TEXT", help="the system turn")
    add_sampling(parser)
    arguments = parser.parse_args(argv)
    model = given_once(arguments, "model", "lightning-ft chat --model RUN")
    look(model)
    repl(Conversation(answerer(model, given_sampling(arguments)), arguments.system))
    return 0


def answerer(model: str, sampling: dict[str, Any]) -> Callable[[list[Message]], Iterable[str]]:
    """Load a model; the function streams its answer to a list of messages."""
    from lightning_ft.api import load
    from lightning_ft.generation import Sampling, stream_text

    chosen = Sampling(**sampling)
    loaded = load(model)

    def answer(messages: list[Message]) -> Iterable[str]:
        prompt = loaded.template.prompt(messages)
        return stream_text(loaded.model, loaded.tokenizer, prompt, chosen, stop_tokens=loaded.stop_tokens)

    return answer


def repl(conversation: Conversation) -> None:
    """The loop: one line, one answer."""
    terminal = sys.stdin.isatty()
    if terminal:
        print("Type a message; /help lists commands, /exit leaves.")
        _enable_history()
    while True:
        try:
            line = input("> " if terminal else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            print()
            return
        if not line:
            continue
        if line.startswith("/"):
            reply = conversation.command(line)
            if reply is None:
                return
            print(reply)
            continue
        _print_answer(conversation.say(line))


def _print_answer(pieces: Iterable[str]) -> None:
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
        print(flush=True)
    except KeyboardInterrupt:
        print("\nStopped; this turn is forgotten.")


def _enable_history() -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - importing it gives input() line editing and history
