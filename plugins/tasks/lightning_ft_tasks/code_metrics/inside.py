"""What runs within the sandbox: limits first, then the texts of code one after the other. Its text is given to `python -c`.

It reads one JSON object {"limits", "sources", "token"} from standard input. On standard output it says that it began, and the
token where all of the code ran to its end; what the code itself prints goes to standard error. An exit that the code asks for,
at whatever status, leaves no token. It runs in this very interpreter: that it ran to its end is a proof against mistakes, not
against code that was written to look for the token.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import types

STARTED = b"started\n"


def main() -> None:
    """Run the code of standard input."""
    order = json.load(sys.stdin)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    said = os.dup(1)
    os.dup2(2, 1)
    for name, value in order["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    module = types.ModuleType("candidate")  # not __main__: what stands below that question is no part of the answer
    sys.modules["candidate"] = module
    process, write, leave, token = os.getpid(), os.write, os._exit, order["token"].encode()
    run, made = exec, compile  # the next source finds what the one before put in their place
    write(said, STARTED)
    try:
        for source in order["sources"]:
            run(made(source, "<answer>", "exec", dont_inherit=True), module.__dict__)
    except BaseException:  # whatever the code raises, SystemExit too, is told, and ends it as failed
        sys.__excepthook__(*sys.exc_info())
        leave(1)
    if os.getpid() == process:  # a fork of the code comes here, too
        write(said, token)
    leave(0)


if __name__ == "__main__":
    main()
