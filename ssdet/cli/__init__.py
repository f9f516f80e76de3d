"""Commands: what experiments share, and `ssdet COMMAND`."""

from ssdet.cli.experiment import experiment

__all__ = ["experiment"]
