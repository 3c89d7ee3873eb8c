#!/usr/bin/env bash
# diffusers 0.42.1: a pipeline's save_pretrained tells its parts of max_shard_size and variant only
# if the signature of their save_pretrained names these: a subclass of a Wan transformer that hands
# its options on as **options gets neither, without a word.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0
"$work/env/bin/pip" install --quiet diffusers==0.42.1 transformers==5.23.0 ftfy==6.3.1

cat > "$work/shown.py" <<'PY'
import sys
from functools import wraps
from importlib.metadata import version
from pathlib import Path

from diffusers import (
    AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, ModelMixin, WanPipeline,
    WanTransformer3DModel,
)


class Plain(WanTransformer3DModel):
    """Looks at what is saved first, and hands all options on."""

    def save_pretrained(self, folder, **options):
        return super().save_pretrained(folder, **options)


class Wrapped(WanTransformer3DModel):
    """The same with the signature of what it calls."""

    @wraps(ModelMixin.save_pretrained)
    def save_pretrained(self, folder, **options):
        return super().save_pretrained(folder, **options)


def saved(kind, folder):
    """How many files a transformer has, and how many of them carry the variant's name."""
    transformer = kind(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=8, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    )
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=AutoencoderKLWan(
            base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
        ),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
    )
    pipe.save_pretrained(folder, max_shard_size="40KB", variant="fp16")
    files = [path.name for path in (folder / "transformer").glob("*.safetensors")]
    return len(files), sum(".fp16" in name for name in files)


found = {
    kind.__name__: saved(kind, Path(sys.argv[1]) / kind.__name__)
    for kind in (WanTransformer3DModel, Plain, Wrapped)
}
print(f"diffusers {version('diffusers')}, saved with max_shard_size='40KB', variant='fp16'")
for name, (files, named) in found.items():
    print(f"  {name:24}files of the transformer: {files}, called fp16: {named}")
own, plain, wrapped = found.values()
same = own[0] > 1 and own[1] == own[0] and plain == (1, 0) and wrapped == own
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py" "$work/saved"
