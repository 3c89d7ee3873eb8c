"""What is said of clips that can't be read, or not to their end."""

from __future__ import annotations


class UnreadableVideo(ValueError):
    """No frame of a file can be used; the message is the reason in a few words."""


class DamagedVideo(UnreadableVideo):
    """A file can be used up to some frame: raised after those before it were given.

    Attributes:
        whole_frames: How many of the file's frames were whole.
    """

    def __init__(self, reason: str, whole_frames: int) -> None:
        super().__init__(reason)
        self.whole_frames = whole_frames
