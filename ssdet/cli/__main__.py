"""`ssdet COMMAND …`: each command is a function `command(arguments) -> exit status`."""

import sys
from importlib import import_module

from ssdet.cli.streams import standard_streams
from ssdet.system.quiet import quiet_dependencies

COMMANDS = {
    "plan": ("ssdet.cli.study:plan", "what an experiment would run, and what it costs"),
    "run": ("ssdet.cli.study:run", "run an experiment to its table; lists them without a name"),
    "watch": ("ssdet.cli.watch", "a study while it runs: stages, scores so far, time left"),
    "results": ("ssdet.cli.results", "list, show, compare and remove what a store holds"),
    "evaluate": ("ssdet.cli.evaluate", "score predictions under every protocol that applies"),
    "verify": ("ssdet.cli.verify", "recompute the table of a proof bundle"),
    "search": ("ssdet.cli.search", "what searches found; tune arms; trust early stopping"),
    "report": ("ssdet.cli.report", "a finished study as one HTML page"),
    "lens": ("ssdet.cli.lens", "what an augmentation makes of clips, as a picture"),
    "ensemble": ("ssdet.cli.ensemble", "build and judge an ensemble of finished runs"),
    "weights": ("ssdet.cli.weights", "published weights and your own: list, get, import, show"),
    "infer": ("ssdet.cli.infer", "what a trained network finds in any videos"),
    "extract": ("ssdet.cli.extract", "features of whole videos from any network"),
    "doctor": ("ssdet.cli.doctor", "is this machine, or a Ray cluster, fit to run studies"),
    "data": (
        "ssdet.cli.data",
        "check, convert and count videos of a data set; import features",
    ),
}


def usage() -> str:
    """What there is, a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: ssdet COMMAND … (--help after any command)", "", *lines])


@quiet_dependencies()
def main(arguments: list[str] | None = None) -> int:
    """Run one command; exit status 0 done, 1 failed, 2 wrong usage."""
    with standard_streams():
        return _run(sys.argv[1:] if arguments is None else arguments)


def _run(given: list[str]) -> int:
    if given and given[0] in ("-h", "--help"):
        print(usage())
        return 0
    if not given or given[0] not in COMMANDS:
        wrong = f"error: no command {given[0]!r}\n" if given else ""
        print(wrong + usage(), file=sys.stderr)
        return 2
    module, _, function = COMMANDS[given[0]][0].partition(":")
    return int(getattr(import_module(module), function or "command")(given[1:]))


def entry() -> None:
    """The `ssdet` script."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
