"""`ssdet COMMAND …`: each command is a function `command(arguments) -> exit status`."""

import sys
from importlib import import_module

from ssdet.cli.streams import standard_streams
from ssdet.system.quiet import quiet_dependencies

COMMANDS = {
    "plan": ("ssdet.cli.study:plan", "print the stages of an experiment and their cost"),
    "run": (
        "ssdet.cli.study:run",
        "run an experiment and write its table; without a name, list them",
    ),
    "watch": ("ssdet.cli.watch", "follow a running study: stages, scores so far, time left"),
    "results": ("ssdet.cli.results", "list, show, compare and remove results in a store"),
    "evaluate": ("ssdet.cli.evaluate", "score predictions under every protocol that applies"),
    "verify": ("ssdet.cli.verify", "recompute the table of a proof bundle"),
    "search": ("ssdet.cli.search", "show searches, tune arms, check early stopping"),
    "report": ("ssdet.cli.report", "write a finished study as one HTML page"),
    "lens": ("ssdet.cli.lens", "draw clips before and after an augmentation"),
    "ensemble": ("ssdet.cli.ensemble", "build and score an ensemble of finished runs"),
    "weights": ("ssdet.cli.weights", "list, download, import and show weights"),
    "infer": ("ssdet.cli.infer", "detect actions in videos with a trained network"),
    "extract": ("ssdet.cli.extract", "extract features of whole videos with any network"),
    "doctor": (
        "ssdet.cli.doctor",
        "check this machine or a Ray cluster before running studies",
    ),
    "data": (
        "ssdet.cli.data",
        "check, convert and count videos of a data set; import features",
    ),
}


def usage() -> str:
    """Help text that lists the commands, one per line."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: ssdet COMMAND … (--help after any command)", "", *lines])


@quiet_dependencies()
def main(arguments: list[str] | None = None) -> int:
    """Run one command; exit status 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    with standard_streams():
        return _run(sys.argv[1:] if arguments is None else arguments)


def _run(arguments: list[str]) -> int:
    name = arguments[0] if arguments else ""
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name not in COMMANDS:
        error = f"error: no command {name!r}\n" if arguments else ""
        print(error + usage(), file=sys.stderr)
        return 2
    module, _, function = COMMANDS[name][0].partition(":")
    return int(getattr(import_module(module), function or "command")(arguments[1:]))


def entry() -> None:
    """Entry point of the `ssdet` script."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
