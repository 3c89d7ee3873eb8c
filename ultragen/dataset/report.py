"""What a run says: what it will make and whether the disk holds it, how long it takes, and at the
end what became of every file."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path

from ..files import write_text
from .shard_files import LATENTS, TEXT, read_sources, size_text
from .sources import LeftOut

LEFT_OUT = "left_out.jsonl"


def check_disk(out: Path, needed: int) -> int:
    """Checks that what will be written fits on the disk.

    Args:
        out: Where it goes; it need not be there yet.
        needed: Its bytes.

    Returns:
        The bytes that are free.

    Raises:
        OSError: It does not fit.
    """
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise OSError(
            f"The latents and embeddings take about {_gigabytes(needed)}, and {_gigabytes(free)} "
            f"are free on the disk of {out}: free space, choose another --out, or smaller --bucket."
        )
    return free


def table(title: str, rows: Mapping[str, int]) -> str:
    """Numbers with their names, the largest first, below a title."""
    ordered = sorted(rows.items(), key=lambda row: (-row[1], row[0]))
    return "\n".join([title, *(f"{number:9,}  {name}" for name, number in ordered)])


def plan_text(clips: Mapping[str, int], needed: int, free: int) -> str:
    """What a run will make.

    Args:
        clips: Number of clips by bucket.
        needed: Bytes that it will take.
        free: Bytes that the disk has.
    """
    size = f"They take about {_gigabytes(needed)} of {_gigabytes(free)} that are free."
    return f"{table('Clips to encode, by rows x columns x frames:', clips)}\n{size}"


@dataclass
class Report:
    """What became of every file.

    Attributes:
        out: The dataset.
        clips: Number of clips by bucket.
        left_out: Files of which all or a part was left out.
    """

    out: Path
    clips: Counter[str] = field(default_factory=Counter)
    left_out: list[LeftOut] = field(default_factory=list)

    @classmethod
    def read(cls, out: Path, others: Iterable[LeftOut] = ()) -> Report:
        """Reads a dataset.

        Args:
            out: Its folder.
            others: Files that were left out without being written down.

        Raises:
            OSError: A shard is missing or damaged.
        """
        report = cls(out, left_out=list(others))
        for _, source in read_sources(out):
            sizes = ((clip.height, clip.width, clip.num_frames) for clip in source.clips)
            report.clips.update(map(size_text, sizes))
            if source.left_out is not None:
                report.left_out.append(LeftOut(source.name, source.left_out))
        report.left_out.sort(key=lambda each: each.name)
        return report

    def write(self) -> None:
        """Writes the names of what was left out, one JSON object a line.

        Raises:
            OSError: The disk is full, or the folder can't be written to.
        """
        lines = [json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in self.left_out]
        write_text(self.out / LEFT_OUT, "".join(lines))

    def __str__(self) -> str:
        said = [table("Clips taken, by rows x columns x frames:", self.clips)]
        if self.left_out:
            # Frames and sizes differ from file to file.
            kinds = Counter(re.sub(r"\d+", "N", each.reason) for each in self.left_out)
            said += [table("Left out:", kinds), f"Their names: {self.out / LEFT_OUT}"]
        size = sum(
            path.stat().st_size
            for kind in (LATENTS, TEXT)
            for path in (self.out / kind).glob("*.safetensors")
        )
        total = self.clips.total()
        return "\n".join([*said, f"Written to {self.out}: {total:,} clips, {_gigabytes(size)}"])


class Remaining:
    """How long a run will still take, by what it took so far.

    Args:
        total: All there is to do, in any unit.
    """

    def __init__(self, total: float) -> None:
        self.total, self.done, self.since = total, 0.0, time.monotonic()

    def add(self, done: float) -> None:
        self.done += done

    @property
    def fraction(self) -> float:
        return min(1.0, self.done / self.total) if self.total else 1.0

    def __str__(self) -> str:
        if not self.done:
            return "time left unknown yet"
        passed = time.monotonic() - self.since
        return f"{timedelta(seconds=round(passed * (1 / self.fraction - 1)))} left"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
