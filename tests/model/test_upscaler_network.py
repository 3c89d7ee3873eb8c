"""The ×4 network."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ultragen.model.upscaler import UpscalerNetwork


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_fresh_network_interpolates_pictures_of_any_size(stride):
    torch.manual_seed(0)
    images = torch.rand(2, 3, 13, 22)
    network = UpscalerNetwork(channels=8, num_blocks=1, stride=stride)
    wanted = F.interpolate(images, scale_factor=4, mode="bicubic")
    torch.testing.assert_close(network(images), wanted)


@pytest.mark.parametrize("stride", [1, 2])
def test_what_it_adds_stands_where_the_picture_is(stride):
    """A change of one pixel acts around its place, and not beyond what the convolutions see."""
    torch.manual_seed(0)
    network = UpscalerNetwork(channels=8, num_blocks=1, stride=stride)
    torch.nn.init.normal_(network.conv_out.weight)
    images = torch.rand(1, 3, 32, 32)
    other = images.clone()
    other[..., 16, 17] += 1
    changed = (network(other) - network(images)).abs().amax((0, 1)) > 1e-6
    rows, columns = changed.nonzero().unbind(1)
    reach = 4 * (4 * stride + stride)
    for found, place in ((rows, 4 * 16), (columns, 4 * 17)):
        assert place - reach <= found.min() <= place <= found.max() <= place + 3 + reach


def test_sizes_between_strides_are_filled_at_their_ends():
    torch.manual_seed(0)
    network = UpscalerNetwork(channels=8, num_blocks=1, stride=3)
    torch.nn.init.normal_(network.conv_out.weight)
    images = torch.rand(1, 3, 13, 22)
    whole = F.pad(images, (0, 2, 0, 2), "replicate")
    beside = lambda x: network(x) - F.interpolate(x, scale_factor=4, mode="bicubic")  # noqa: E731
    torch.testing.assert_close(beside(images), beside(whole)[..., : 4 * 13, : 4 * 22])


def test_a_network_that_was_saved_before_there_were_strides_has_none(tmp_path):
    network = UpscalerNetwork(channels=8, num_blocks=1)
    network.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('  "stride": 1,\n', "").replace(
        ',\n  "stride": 1\n', "\n"))  # fmt: skip
    assert "stride" not in config.read_text()
    images = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(UpscalerNetwork.from_pretrained(tmp_path)(images), network(images))
