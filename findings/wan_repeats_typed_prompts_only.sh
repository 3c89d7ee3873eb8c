#!/usr/bin/env bash
# diffusers 0.42.1: WanPipeline's num_videos_per_prompt repeats typed prompts, not embeddings that
# are given: with one embedding two clips come all the same, with two there is an error of sizes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0
"$work/env/bin/pip" install --quiet diffusers==0.42.1 transformers==5.23.0 ftfy==6.3.1

cat > "$work/shown.py" <<'PY'
import sys
from importlib.metadata import version

import torch
from diffusers import (
    AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "sea": 2, "sky": 3}, "[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
pipe = WanPipeline(
    tokenizer=PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]"
    ),
    text_encoder=UMT5EncoderModel(
        UMT5Config(vocab_size=4, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    ).eval(),
    vae=AutoencoderKLWan(
        base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    ),
    transformer=WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=8, ffn_dim=32, num_layers=1, rope_max_seq_len=32,
    ),
    scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
)
pipe.set_progress_bar_config(disable=True)


def clips(number, **text):
    """How many clips come, or the error."""
    try:
        return len(pipe(
            **text, num_videos_per_prompt=number, height=32, width=32, num_frames=5,
            num_inference_steps=2, guidance_scale=1.0, max_sequence_length=8,
        ).frames)
    except RuntimeError as error:
        return f"RuntimeError: {error}"


prompts = ["sea", "sky"]
with torch.no_grad():
    given, _ = pipe.encode_prompt(prompts, None, False, max_sequence_length=8)
found = {
    "two prompts, typed, 2 clips each": clips(2, prompt=prompts),
    "one embedding, 2 clips each": clips(2, prompt_embeds=given[:1]),
    "two embeddings, 2 clips each": clips(2, prompt_embeds=given),
    "two embeddings, repeated by hand": clips(1, prompt_embeds=given.repeat_interleave(2, dim=0)),
}
print(f"torch {version('torch')}, diffusers {version('diffusers')}")
for what, answer in found.items():
    print(f"  {what:34}{answer}")
answers = list(found.values())
same = answers[:2] == [4, 2] and "must match" in str(answers[2]) and answers[3] == 4
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
