"""Attention to keys in parts, and `benchmarks/long_attention.py`, which compares it."""

from __future__ import annotations

import long_attention
import pytest
import torch
from torch.nn import functional as F

from ultragen.ops import key_parts
from ultragen.ops.key_parts import attend_in_parts


@pytest.mark.parametrize("size", [16, 30, 50, 99])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_parts_give_what_the_whole_gives(size, scale):
    """Also where a few keys have nearly all the weight, and where the last part is shorter."""
    torch.manual_seed(0)
    query, key, value = (x.transpose(1, 2) for x in torch.randn(3, 1, 100, 2, 128))
    query = scale * query
    found, sums = attend_in_parts(query, key, value, size)
    expected = F.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    scores = query.double() @ key.double().mT / 128**0.5
    expected = scores.logsumexp(-1, keepdim=True).float()
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-5)


def test_parts_are_even_and_compile_in_one_graph(monkeypatch):
    """640 keys in parts of 512 at most are parts of three and two tiles, not of four and one."""
    asked, attend = [], key_parts.attend

    def watched(query, key, value):
        asked.append(key.shape[2])
        return attend(query, key, value)

    query, key, value = torch.randn(3, 1, 2, 640, 128)
    compiled = torch.compile(attend_in_parts, fullgraph=True, backend="eager")
    found = compiled(query, key, value, 512)
    monkeypatch.setattr(key_parts, "attend", watched)
    torch.testing.assert_close(attend_in_parts(query, key, value, 512)[0], found[0])
    assert asked == [384, 256] * 2


def test_lines(capsys):
    arguments = ["--tokens", "100", "40", "--parts", "50", "--heads", "1", "--runs", "1", "--cpu"]
    assert long_attention.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == [
        "100 tokens, whole",
        "100 tokens, whole, heads one after the other",
        "100 tokens, parts of 50",
        "40 tokens, whole",
        "40 tokens, whole, heads one after the other",
    ]
