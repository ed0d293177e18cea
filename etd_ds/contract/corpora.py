"""Where a corpus reference may point on a hub, without torch and without the network."""

from __future__ import annotations

import re
from dataclasses import dataclass

EMBEDDED = "embedded"

# org/name, optionally : a configuration, optionally @ a branch, tag or commit.
_HUB = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?::(?P<config>[\w.-]{1,96}))?(?:@(?P<revision>[\w.-]{1,96}))?",
    re.ASCII,
)


@dataclass(frozen=True)
class Hub:
    """A data set of a hub; `revision` none means: look up what `main` is and record it."""

    repo: str
    config: str | None
    revision: str | None


def parse_hub(reference: str) -> Hub | None:
    """The hub data set that a reference names, or `None` if it has not that form."""
    match = _HUB.fullmatch(reference)
    if match is None or ".." in match["repo"] or "--" in match["repo"]:
        return None
    return Hub(match["repo"], match["config"], match["revision"])
