"""Networks that grow: at first they do what they did before."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import inputs, tiny_ultragen
from training_stages import steps

from ultragen.model.autoencoder import CompactAutoencoder
from ultragen.model.coordinates import CHANNELS, add_coordinates
from ultragen.training.build import (
    TINY_SIZE,
    build_autoencoder,
    build_base_transformer,
    build_pipeline,
)
from ultragen.training.growth import grow_channels, grown_autoencoder
from ultragen.training.stage_order import STAGES, Sources, train
from ultragen.training.tiny import TINY


def test_an_autoencoder_copies_as_before():
    torch.manual_seed(0)
    vae = build_autoencoder(TINY_SIZE)
    vae.register_to_config(latents_mean=[0.5] * 8, latents_std=[2.0] * 8)
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    grown = grown_autoencoder(vae, 12, encoder_blocks=(1, 2, 1), decoder_blocks=(2, 1, 3))
    video = torch.rand(1, 3, 9, 32, 48) * 2 - 1
    with torch.no_grad():
        before, after = vae.encode(video).latent_dist.mode(), grown.encode(video).latent_dist.mode()
        torch.testing.assert_close(after[:, :8], before)
        assert after.shape[1] == 12
        assert after[:, 8:].std() > 0  # something to learn from
        torch.testing.assert_close(grown(video), vae(video))
    assert grown.config.latents_mean == [*[0.5] * 8, *[0.0] * 4]
    assert grown.config.latents_std == [2.0] * 12


def test_new_channels_and_blocks_are_trained():
    torch.manual_seed(0)
    grown = grown_autoencoder(build_autoencoder(TINY_SIZE), 12, decoder_blocks=(2, 1, 1))
    optimizer = torch.optim.SGD(grown.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in grown.state_dict().items()}
    video = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    for _ in range(2):  # reading weights first, then what makes the channels
        (grown(video) - video).square().mean().backward()
        optimizer.step()
    moved = {name for name, value in grown.state_dict().items() if not value.equal(before[name])}
    assert {"encoder.7.weight", "decoder.0.weight", "decoder.1.1.conv2.weight"} <= moved
    new = (grown.encoder[-1].weight - before["encoder.7.weight"])[8:]
    assert new.abs().max() > 0


def test_fewer_of_anything_leave_what_there_is():
    vae = build_autoencoder(TINY_SIZE)
    same = grown_autoencoder(vae, 4, encoder_blocks=(0, 1, 1))
    shape = ("z_dim", "encoder_blocks", "decoder_blocks")
    assert [same.config[name] for name in shape] == [vae.config[name] for name in shape]
    for name, value in vae.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], value)


@pytest.mark.parametrize("coordinates", [False, True])
def test_a_transformer_gives_what_it_gave_and_zeros(coordinates):
    torch.manual_seed(0)
    model = tiny_ultragen().eval()
    if coordinates:
        add_coordinates(model)
    given, z_dim = inputs((1, 4, 6)), model.config.out_channels
    latents = given.pop("hidden_states")
    torch.nn.init.normal_(model.patch_embedding.weight, std=0.1)
    torch.nn.init.normal_(model.proj_out.weight, std=0.1)
    places = torch.rand(latents.shape[0], CHANNELS * coordinates, *latents.shape[2:])
    more = torch.rand(latents.shape[0], 3, *latents.shape[2:])
    with torch.no_grad():
        before = model(hidden_states=torch.cat([latents, places], 1), **given, windows=2).sample
        grow_channels(model, z_dim + 3)
        after = model(
            hidden_states=torch.cat([latents, more, places], 1), **given, windows=2
        ).sample
    torch.testing.assert_close(after[:, :z_dim], before)
    assert (after[:, z_dim:] == 0).all() and after.shape[1] == z_dim + 3
    assert model.config.out_channels == z_dim + 3
    assert model.config.in_channels == z_dim + 3 + CHANNELS * coordinates


def test_a_transformer_of_more_channels_is_refused():
    with pytest.raises(ValueError, match="8 latent channels and the autoencoder 6"):
        grow_channels(build_base_transformer(TINY_SIZE), 6)


def test_other_than_three_numbers_of_blocks_are_refused():
    with pytest.raises(ValueError, match="decoder_blocks has three numbers"):
        grown_autoencoder(build_autoencoder(TINY_SIZE), decoder_blocks=(4, 4))


def test_a_training_that_was_begun_smaller_goes_on_so(tmp_path):
    train("autoencoder", steps(tmp_path, 2), TINY)
    shape = (*TINY.size.autoencoder, ("decoder_blocks", (2, 1, 1)))
    larger = replace(TINY, size=replace(TINY.size, z_dim=12, autoencoder=shape))
    out = train("autoencoder", steps(tmp_path, 3), larger)
    config = CompactAutoencoder.load_config(out / "vae")
    assert config["z_dim"] == 8 and tuple(config["decoder_blocks"]) == (1, 1, 1)


def test_transformers_grow_where_they_are_trained_and_not_as_teachers(tmp_path):
    start, model = tmp_path / "start", tmp_path / "model"
    pipe = build_pipeline(TINY_SIZE, ["a", "lake"])
    pipe.save_pretrained(start)
    grown_autoencoder(pipe.vae, 12).save_pretrained(model / "vae")
    sources = Sources(model, start)
    for name in ("base", "ultragen"):
        trained = STAGES[name](sources, TINY, 0).pipeline
        assert trained.transformer.config.out_channels == 12
    for name in ("base-distill", "distill"):
        with pytest.raises(ValueError, match="8 latent channels and the autoencoder 12"):
            STAGES[name](sources, TINY, 0)
