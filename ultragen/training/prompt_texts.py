"""Prompts of a file, embedded once, before the text encoder is dropped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState
from torch import Tensor

from ..dataset.encoders import CaptionEncoder, caption_batches
from ..dataset.shard_files import TEXT, ShardWriter, caption_key, read_tensor, read_text_index
from ..dataset.table_files import read_text
from ..weights.wan import load_tokenizer


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts of a text file, one a line, each once.

    Raises:
        ValueError: if it can't be read, or has none.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path}: give a text file with a prompt a line.")
    lines = (" ".join(line.split()) for line in read_text(path).split("\n"))
    prompts = tuple(dict.fromkeys(filter(None, lines)))
    if not prompts:
        raise ValueError(f"{path} has no prompts: give a text file with a prompt a line.")
    return prompts


def embed_missing(folder: Path, base: Path, texts: Sequence[str], state: PartialState) -> None:
    """Embeds those texts of a process's share that a folder has no embeddings of; a run that is
    killed goes on.

    Args:
        folder: Created if missing.
        base: Wan's folder.
        texts: Prompts, which all processes share out.
        state: Of this process, on whose device the text encoder runs, and is dropped.

    Raises:
        OSError: if a file is missing or damaged, or can't be written.
    """
    (folder / TEXT).mkdir(parents=True, exist_ok=True)
    there = read_text_index(folder)
    # Of all texts, not of those that are missing: by now others may have written some of theirs.
    # Whole batches, since an embedding depends a little on those beside it: any number of
    # processes makes the same ones.
    batches = caption_batches(load_tokenizer(base / "tokenizer"), texts)
    share = batches[state.process_index :: state.num_processes]
    missing = [text for batch in share for _, text in batch if caption_key(text) not in there]
    if not missing:
        return
    encoder, writer = CaptionEncoder(base, state.device), ShardWriter(folder, TEXT)
    for text, embedding in encoder.encode(missing):
        writer.add_text(text, embedding)
    writer.flush()


class PromptTexts:
    """Embeddings of prompts, read when they are asked for.

    Args:
        folder: Where `embed_missing` left them.
        prompts: What they are of.
    """

    def __init__(self, folder: Path, prompts: Sequence[str]) -> None:
        self.folder, self.prompts = folder, tuple(prompts)
        self.shards = read_text_index(folder)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, number: int) -> Tensor:
        """Embedding of a prompt, n d in bfloat16: valid tokens only, so that n differs."""
        return self.of(self.prompts[number])

    def of(self, text: str) -> Tensor:
        """Embedding of a text that was embedded with the prompts, n d."""
        key = caption_key(text)
        return read_tensor(self.folder / self.shards[key], key)

    def fingerprint(self) -> str:
        """As `prompts_fingerprint` gives it."""
        return prompts_fingerprint(self.prompts)


def prompts_fingerprint(prompts: Sequence[str]) -> str:
    """SHA-256 of prompts: another one once any is changed, moved, added or removed."""
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
