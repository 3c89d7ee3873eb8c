"""Which clip a sample is, and what is drawn for it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from ultragen.training.clip_order import ClipOrder, sample_generator

LARGE, SMALL = (64, 96, 9), (64, 64, 1)
CLIPS = {LARGE: [0, 2, 4, 6, 8, 9], SMALL: [1, 3, 5, 7]}


@pytest.mark.parametrize("group", [1, 2])
def test_a_pass_takes_every_clip_once(group):
    order = ClipOrder(CLIPS, group, seed=3)
    assert order.groups * group == 10
    passes = [[order[i] for i in range(start, start + 10)] for start in (0, 10, 20)]
    for one in passes:
        assert sorted(number for _, number in one) == list(range(10))
        assert all(number in CLIPS[size] for size, number in one)
    assert passes[0] != passes[1] != passes[2]


@pytest.mark.parametrize("group", [2, 3, 4, 16])
def test_all_samples_of_a_step_have_one_size(group):
    order = ClipOrder(CLIPS, group, seed=0)
    for step in range(3 * order.groups):
        assert len({order[step * group + i][0] for i in range(group)}) == 1
    seen = Counter(order[i][1] for i in range(order.groups * group))
    assert set(seen) == set(range(10))
    assert max(seen.values()) - min(seen.values()) <= max(1, group // 4)


def test_the_order_follows_seed_and_number_alone():
    def numbers(seed: int, samples: range) -> list[int]:
        return [ClipOrder(CLIPS, 2, seed)[i][1] for i in samples]

    assert numbers(1, range(7, 29)) == numbers(1, range(29))[7:]
    assert numbers(1, range(29)) != numbers(2, range(29))


def test_what_is_drawn_follows_seed_and_number_alone():
    def draw(seed: int, sample: int) -> torch.Tensor:
        return torch.randn(4, generator=sample_generator(seed, sample))

    assert torch.equal(draw(0, 5), draw(0, 5))
    drawn = [tuple(draw(seed, sample).tolist()) for seed in range(3) for sample in range(20)]
    assert len(set(drawn)) == 60
    draw(2**40, 2**40)  # however long a training is
