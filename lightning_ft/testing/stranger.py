"""A process that has peft and transformers and nothing of ours (this file as a script), asked what saved models compute."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Locked:
    """Finds nothing of ours, nor Lightning, in a list of `sys.meta_path`."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        """Refuse it.

        Raises:
            ImportError: its name begins with `lightning`.
        """
        if name.startswith("lightning"):
            raise ImportError(f"'{name}' is not for a stranger")


class Stranger:
    """Such a process, started with the first question; it loads any number of folders."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.process = folder, None  # type: tuple[Path, subprocess.Popen[str] | None]

    def logits(self, saved: Path, ids: Tensor) -> Tensor:
        """(B, T, V) logits of the model in a folder, as that process has them; its error is raised here."""
        import torch

        if self.process is None:
            self.process = subprocess.Popen(
                # -P: the kit's own modules, beside this file, are no top-level ones
                [sys.executable, "-P", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=self.folder,
            )
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        torch.save(ids, self.folder / "ids.pt")
        print(json.dumps(str(saved)), file=process.stdin, flush=True)
        answer = process.stdout.readline().strip()
        assert answer == "done", f"{saved} did not load without our code: {answer}"
        found: Tensor = torch.load(self.folder / "logits.pt")
        return found

    def close(self) -> None:
        """End it."""
        if self.process is not None:
            from lightning_ft.testing.processes import end  # the stranger itself, who is this file, has nothing of ours

            end(self.process)


def serve() -> None:
    """Answer each folder with its logits at `ids.pt`, in `logits.pt`."""
    sys.meta_path.insert(0, Locked())
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    for line in sys.stdin:
        folder = Path(json.loads(line))
        try:
            adapter = (folder / "adapter_config.json").is_file()
            model = (AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM).from_pretrained(folder).eval()
            with torch.no_grad():
                torch.save(model(input_ids=torch.load("ids.pt"), use_cache=False).logits, "logits.pt")
            print("done", flush=True)
        except Exception as error:  # the test tells it
            print(f"{type(error).__name__}: {error}".replace("\n", " "), flush=True)


if __name__ == "__main__":
    serve()
