"""A part of an evaluation's clips, so that several processes share them."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """The clips whose number, divided by `count`, leaves `index` - 1; alone, all of them.

    Attributes:
        index: From 1 to `count`.
        count: Shards there are.

    Raises:
        ValueError: There is no such shard.
    """

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ValueError(
                f"there is no shard {self}: of I/N, I goes from 1 to N, as in 1/4, 2/4, 3/4 and "
                "4/4 for four processes."
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """A shard as people type it.

        Raises:
            ValueError: It is not I/N, or there is no such shard.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip(), re.ASCII)
        if found is None:
            raise ValueError(
                f"shard {text!r:.40} is not I/N, such as 2/4 for the second of four processes."
            )
        return cls(*(int(number) for number in found.groups()))

    def __contains__(self, number: int) -> bool:
        return number % self.count == self.index - 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"
