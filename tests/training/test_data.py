"""Training data: streams of scenes, pools, captions and clips."""

from __future__ import annotations

import itertools
from math import nan

import torch
from torch import Tensor

from ultragen.training import data
from ultragen.training.build import TINY_SIZE, build_pipeline
from ultragen.training.data import ClipMaker, Pool, SceneStream, caption_variants, tokenize
from ultragen.training.vocabulary import build_tokenizer
from ultragen.world.captions import WEATHERS
from ultragen.world.heldout import named_attributes
from ultragen.world.renderer import render
from ultragen.world.scene import HELD_OUT_SEEDS, make_scene, sample_scene


def test_streams_never_meet():
    """Neither each other, nor the scenes that are held out."""
    starts = [(rank, start) for rank in (0, 1, 63) for start in (0, 1, 4000)]
    seeds = [[s.seed for s in SceneStream(*start).take(20)] for start in starts]
    flat = list(itertools.chain.from_iterable(seeds))
    assert len(set(flat)) == len(flat)
    assert not any(seed in HELD_OUT_SEEDS for seed in flat)


def test_a_stream_goes_on():
    stream = SceneStream(0, 0)
    first = [scene.seed for scene in stream.take(3) + stream.take(2)]
    assert first == [scene.seed for scene in SceneStream(0, 0).take(5)]


def test_a_pool_keeps_the_newest():
    numbers = itertools.count()

    def make() -> tuple[Tensor, Tensor]:
        values = torch.tensor([next(numbers) for _ in range(3)])
        return values, -values

    pool = Pool(make, capacity=4, share=0.0, first=3)
    pool.refresh()
    made = pool.made
    assert len(pool) == min(made, 4)
    while pool.made < made + 9:
        pool.put(make())
    values, negatives = pool.sample(200)
    assert set(values.tolist()) == set(range(pool.made - 4, pool.made))
    assert torch.equal(negatives, -values)


def test_a_pool_counts_instead_of_looking_at_the_clock(monkeypatch):
    monkeypatch.setattr(data.time, "monotonic", iter([0.0]).__next__)  # asked when it is made
    pool = Pool(lambda: (torch.zeros(2),), capacity=100, share=0.9, first=4, every=3)
    made = []
    for _ in range(7):
        pool.refresh()
        made.append(pool.made)
    assert made == [4, 4, 6, 6, 6, 8, 8]


def test_a_pool_that_is_not_full_gives_only_what_was_made():
    pool = Pool(None, capacity=100, share=0.0, first=3)
    pool.put((torch.full((3,), 5.0),))
    pool.rings[0][3:] = nan
    assert torch.equal(pool.sample(50)[0], torch.full((50,), 5.0))


def test_captions_vary_and_some_say_less():
    scene = sample_scene(3)
    texts = caption_variants(scene, 6)
    assert len(texts) == 6 and all(texts)
    assert texts == caption_variants(scene, 6)
    assert len(set(texts)) > 1


def test_every_second_wording_names_the_side_of_the_sun_or_moon():
    """Of those that lack no clauses."""
    scenes = [make_scene(seed, celestial=body) for seed in range(60) for body in ("sun", "moon")]
    shares = []
    for number in range(5):
        texts = [(caption_variants(scene, 6)[number], scene.attributes) for scene in scenes]
        shares.append(sum("celestial_side" in named_attributes(a, text) for text, a in texts))
    assert shares[1] == shares[3] == len(scenes)
    assert max(shares[0], shares[2], shares[4]) < 0.7 * len(scenes)


def test_foul_weather_is_never_left_unsaid():
    """Who does not name the weather is shown fair weather."""
    scenes = [make_scene(seed, weather=weather) for seed in range(40) for weather in WEATHERS]
    for scene in scenes:
        weather = scene.attributes.weather
        unsaid = [
            text
            for text in caption_variants(scene, 6)
            if not any(clause in text for clause in WEATHERS[weather])
        ]
        assert not unsaid or weather in ("clear", "scattered"), (weather, unsaid)


def test_tokens_have_one_length():
    tokenizer = build_tokenizer(["a", "lake"], 8)
    ids = tokenize(tokenizer, ["a lake", "", "A lake, a Zorgon.", "lake " * 50])
    assert ids.shape == (4, 8)
    names = [tokenizer.convert_ids_to_tokens(row) for row in ids.tolist()]
    assert names[0][:4] == ["a", "lake", "</s>", "<pad>"]
    assert names[1][:2] == ["</s>", "<pad>"]
    assert names[2][:7] == ["a", "lake", ",", "a", "<unk>", ".", "</s>"]


def test_clips_are_normalised_latents_with_their_captions():
    pipe = build_pipeline(TINY_SIZE, ["a"])
    pipe.vae.register_to_config(latents_mean=[0.5] * 8, latents_std=[2.0] * 8)
    make = ClipMaker(SceneStream(0, 0), pipe.vae, pipe.tokenizer, 64, 96, 5, number=2, wordings=3)
    latents, ids = make()
    assert latents.shape == (2, 8, 2, 4, 6) and ids.shape == (2, 3, TINY_SIZE.text_length)
    video = render(SceneStream(0, 0).take(2), 64, 96, 5)
    with torch.no_grad():
        expected = (pipe.vae.encode(2 * video - 1).latent_dist.mode() - 0.5) / 2
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-5)
