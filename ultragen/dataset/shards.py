"""A dataset of latents as training reads it, clip by clip."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ..weights.fingerprint import fingerprint
from .shard_files import (
    Size,
    caption_key,
    read_settings,
    read_sources,
    read_tensor,
    read_text_index,
    size_text,
)


@dataclass(frozen=True)
class Clip:
    """A clip of a dataset.

    Attributes:
        name: Path of its source in the folder of clips.
        captions: One or several to draw from.
        height: Rows in pixels.
        width: Columns in pixels.
        num_frames: Frames, 4n + 1.
        frame_rate: Frames a second.
        start: Seconds in the source at which it starts.
        shard: File of its latents, relative to the dataset.
        tensor: Their key there.
        digest: Hash of its latents.
    """

    name: str
    captions: tuple[str, ...]
    height: int
    width: int
    num_frames: int
    frame_rate: float
    start: float
    shard: str
    tensor: str
    digest: str

    @property
    def size(self) -> Size:
        return self.height, self.width, self.num_frames


class LatentDataset:
    """The clips of a folder that `python -m ultragen dataset` wrote. Latents and embeddings are
    read when they are asked for; it may be given to the workers of a data loader.

    Args:
        folder: As `--out` named it.

    Raises:
        ValueError: The folder is no dataset, or one of another version, or has no clips yet.
        OSError: A file is missing or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.settings = read_settings(self.folder)
        # The order does not depend on which process encoded what.
        self.clips = sorted(self._find_clips(), key=lambda clip: (clip.name, clip.start))
        if not self.clips:
            raise ValueError(f"{self.folder} has no clips yet: run `dataset` to its end first.")

    def _find_clips(self) -> Iterator[Clip]:
        for shard, source in read_sources(self.folder):
            for clip in source.clips:
                yield Clip(
                    source.name,
                    source.captions,
                    frame_rate=self.settings.frame_rate,
                    shard=shard,
                    **asdict(clip),
                )

    def __len__(self) -> int:
        return len(self.clips)

    def by_size(self) -> dict[Size, list[int]]:
        """The numbers of the clips of each size, which fit into one batch."""
        found: dict[Size, list[int]] = {}
        for number, clip in enumerate(self.clips):
            found.setdefault(clip.size, []).append(number)
        return found

    def latents(self, number: int) -> Tensor:
        """A clip's latents c t h w, in bfloat16 and of unit variance, as the transformer takes
        them.

        Raises:
            OSError: The shard is damaged.
        """
        clip = self.clips[number]
        return read_tensor(self.folder / clip.shard, clip.tensor)

    def text(self, number: int, caption: int = 0) -> Tensor:
        """Embedding of one of a clip's captions, n d in bfloat16: valid tokens only, so that n
        differs.

        Raises:
            ValueError: The dataset has captions alone.
            OSError: The shard is damaged, or the caption's embedding is missing.
        """
        return self._embedding(self.clips[number].captions[caption])

    def empty_text(self) -> Tensor:
        """Embedding of the empty prompt, n d; errors as in `text`."""
        return self._embedding("")

    def _embedding(self, caption: str) -> Tensor:
        if self.settings.text_encoder is None:
            raise ValueError(
                f"{self.folder} holds captions without embeddings, because the text encoder of "
                f"the {self.settings.model} model is trained along: tokenise Clip.captions."
            )
        key = caption_key(caption)
        if key not in self._text_shards:
            raise OSError(
                f"{self.folder} lacks the embedding of {caption!r:.60}: run `dataset` again, which "
                "adds what is missing."
            )
        return read_tensor(self.folder / self._text_shards[key], key)

    @cached_property
    def _text_shards(self) -> dict[str, str]:
        return read_text_index(self.folder)

    def fingerprint(self) -> str:
        """SHA-256 over settings, clips, captions and latents: another one once any is changed,
        added or removed, and the same whatever the number of processes that encoded them."""
        digest = hashlib.sha256(json.dumps(asdict(self.settings), sort_keys=True).encode())
        for clip in self.clips:
            parts = (clip.name, clip.start, clip.captions, clip.size, clip.digest)
            digest.update(json.dumps(parts).encode())
        return digest.hexdigest()

    def check(
        self,
        model: str,
        vae: str,
        sizes: Collection[Size] = (),
        text_encoder: str | None = None,
    ) -> None:
        """Checks that a model can be trained on these clips.

        Args:
            model: `wan` or `embedded`.
            vae: Fingerprint of the model's autoencoder, as `vae_fingerprint` gives it.
            sizes: Sizes that are asked for, of which there must be clips.
            text_encoder: Fingerprint of the model's text encoder, as `text_fingerprint` gives it;
                None does not compare it.

        Raises:
            ValueError: The latents or embeddings are another model's, or there are no clips of a
                size.
        """
        again = "encode the clips again with `dataset`, into another folder"
        if model != self.settings.model:
            raise ValueError(
                f"{self.folder} holds latents of the {self.settings.model} model, not of {model}: "
                f"{again} and with --model {model}."
            )
        other = "{folder} holds {what} of another {part} ({there:.12}) than the model's ({own:.12})"
        for what, part, there, own in (
            ("latents", "VAE", self.settings.vae, vae),
            ("embeddings", "text encoder", self.settings.text_encoder, text_encoder),
        ):
            if own is not None and own != there:
                said = other.format(
                    folder=self.folder, what=what, part=part, there=there or "none", own=own
                )
                raise ValueError(f"{said}: {again} and with that model as --base.")
        known = self.by_size()
        if missing := [size_text(size) for size in sizes if tuple(size) not in known]:
            raise ValueError(
                f"{self.folder} holds no clips of {', '.join(missing)} (rows × columns × frames), "
                f"but of {', '.join(map(size_text, known))}: choose one of these, or {again}."
            )


def vae_fingerprint(base: Path) -> str:
    """Of the autoencoder in a pipeline's folder."""
    return fingerprint(base / "vae")


def text_fingerprint(base: Path) -> str:
    """Of tokenizer and text encoder in a pipeline's folder."""
    return fingerprint(base / "tokenizer", base / "text_encoder")
