"""A text encoder that reads a prompt clause by clause.

"The sun on the right, the camera pans left": a small encoder lets the pan into the sun's words, and
the transformer draws the sun anywhere (`benchmarks/text.py`). Here tokens see the other tokens of
their own clause alone. The 1.3B model's encoder is large enough, and reads whole prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, UMT5EncoderModel

# To load a class that is not its own, diffusers looks for the class's kind beside it.
__all__ = ["ClauseTextEncoder", "PreTrainedModel", "within_clauses"]


class ClauseTextEncoder(UMT5EncoderModel):
    """UMT5's encoder, whose attention stays within clauses if its configuration has
    `clause_ends`, the ids of the tokens that end one, such as the comma's; else UMT5's encoder.
    """

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **extra: Any
    ) -> Any:
        """Token ids b n and what is no padding, b n → as UMT5's encoder."""
        ends = getattr(self.config, "clause_ends", None)
        if ends and input_ids is not None:
            there = attention_mask if attention_mask is not None else torch.ones_like(input_ids)
            seen = within_clauses(input_ids, there.bool(), ends, self.config.eos_token_id)
            hidden = torch.zeros_like(seen, dtype=self.dtype)
            attention_mask = hidden.masked_fill(~seen, torch.finfo(self.dtype).min)[:, None]
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **extra)


def within_clauses(ids: Tensor, there: Tensor, ends: Sequence[int], last: int) -> Tensor:
    """Which token sees which, b n n: those of its own clause, its end among them; the token at the
    end of the prompt sees all.

    Args:
        ids: Token ids, b n.
        there: What is no padding, b n.
        ends: Ids of the tokens that end a clause.
        last: Id of the token at the end of the prompt.
    """
    end = torch.zeros_like(there)
    for token in ends:
        end = end | (ids == token)
    clause = end.cumsum(1) - end.long()
    same = clause[:, :, None] == clause[:, None, :]
    # Padding sees all as well: a row without anything to see has no softmax.
    free = (ids == last) | ~there
    return (same | free[:, :, None]) & there[:, None, :]
