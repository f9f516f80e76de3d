"""Commands: what experiments share, and `ssdet COMMAND`."""

from typing import TYPE_CHECKING

from ssdet.system.lazy import attach

if TYPE_CHECKING:
    from ssdet.cli.experiment import experiment

attach(
    __name__,
    {
        "ssdet.cli.experiment": ["experiment"],
    },
)
