#!/usr/bin/env bash
# diffusers 0.42.1: enable_tiling(tile_sample_min_height=128, tile_sample_min_width=128) of Wan's
# autoencoder leaves the stride at 192, so that what lies between the tiles is left out: 384 x 384
# becomes 256 x 256. The stride's description calls it the overlap of the tiles.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0
"$work/env/bin/pip" install --quiet diffusers==0.42.1

cat > "$work/shown.py" <<'PY'
import sys
from importlib.metadata import version

import torch
from diffusers import AutoencoderKLWan

torch.manual_seed(0)
VAE = AutoencoderKLWan(
    base_dim=8, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1, latents_mean=[0.0] * 4,
    latents_std=[1.0] * 4,
).eval()
PLAIN = dict(VAE.__dict__)
PICTURE = torch.rand(1, 3, 1, 384, 384) * 2 - 1
LATENTS = torch.randn(1, 4, 1, 48, 48)


@torch.no_grad()
def sizes(size=None, stride=None):
    """Sizes of the decoded picture and of the latents with such tiles, without tiles if None."""
    VAE.__dict__.update(PLAIN)
    if size:
        VAE.enable_tiling(size, size, stride, stride)
    picture = VAE.decode(LATENTS).sample.shape[-2:]
    return tuple(picture), tuple(VAE.encode(PICTURE).latent_dist.mode().shape[-2:])


found = {
    "no tiles": sizes(),
    "tiles of 256, as they are by themselves": sizes(256),
    "tiles of 128": sizes(128),
    "tiles of 128, stride 32 for an overlap of 32": sizes(128, 32),
    "tiles of 128, stride 96 for an overlap of 32": sizes(128, 96),
    "tiles of 96": sizes(96),
}

print(f"diffusers {version('diffusers')}, torch {version('torch')}")
print("Decoded from latents of 48 x 48; latents of a picture of 384 x 384:")
for title, (picture, latents) in found.items():
    print(f"  {title:46} {picture}  {latents}")
whole = (384, 384), (48, 48)
same = [kind == whole for kind in found.values()] == [True, True, False, True, True, False]
same = same and found["tiles of 128"] == ((256, 256), (32, 32))
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
