"""The files that a benchmark writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..files import write_text
from .records import Report
from .tables import Table, markdown


@dataclass(frozen=True)
class Outputs:
    """Where a report goes.

    Attributes:
        json: All results, for `--against`.
        markdown: The tables.
    """

    json: Path | None = None
    markdown: Path | None = None

    def check(self, overwrite: bool) -> None:
        """Checks that the files can be written, before the work starts.

        Raises:
            OSError: if a folder is missing, or a file is there and stays.
        """
        for option, path in (("--json", self.json), ("--markdown", self.markdown)):
            if path is None:
                continue
            if path.is_dir() or not path.parent.is_dir():
                raise OSError(f"{option} {path} is no file in a folder that exists.")
            if path.exists() and not overwrite:
                raise OSError(
                    f"{path} exists already: choose another {option}, or add --overwrite."
                )

    def save(self, report: Report, changes: Table | None = None) -> None:
        """Writes what there is so far."""
        if self.json:
            write_text(self.json, report.to_json())
        if self.markdown:
            write_text(self.markdown, markdown(report, changes))
