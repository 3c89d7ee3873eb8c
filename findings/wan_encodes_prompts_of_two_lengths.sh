#!/usr/bin/env bash
# diffusers 0.42.1: encode_prompt of a Wan pipeline pads to 226 tokens, the pipeline itself to 512.
# The padding takes part in the attention to the text: embeddings made by the one give another clip
# than the same prompt given to the other, and of a long prompt the end is missing.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0
"$work/env/bin/pip" install --quiet \
    diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 ftfy==6.3.1

cat > "$work/shown.py" <<'PY'
import sys
from importlib.metadata import version

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

WORDS = ["<pad>", "</s>", "<unk>", "a", "cat", "runs", "through", "snow", "dull", "then", "sleeps"]
splitter = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, "<unk>"))
splitter.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
torch.manual_seed(0)
pipeline = WanPipeline(
    tokenizer=PreTrainedTokenizerFast(
        tokenizer_object=splitter, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ),
    text_encoder=UMT5EncoderModel(
        UMT5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    ).eval(),
    transformer=WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=8, ffn_dim=64, num_layers=2, rope_max_seq_len=32,
    ),
    vae=None, scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
)
pipeline.set_progress_bar_config(disable=True)
NOISE = torch.randn(1, 4, 3, 4, 4)


def clip(**prompts):
    return pipeline(
        **prompts, latents=NOISE.clone(), height=32, width=32, num_frames=9, num_inference_steps=4,
        output_type="latent",
    ).frames


@torch.no_grad()
def encoded(text, **options):
    positive, negative = pipeline.encode_prompt(text, "dull", **options)
    return {"prompt_embeds": positive, "negative_prompt_embeds": negative}


def apart(one, other):
    return (one - other).abs().max().item()


SHORT = "a cat runs through snow"
LONG = " ".join(["a cat runs through snow"] * 50 + ["then"] * 50)
OTHER_END = " ".join(["a cat runs through snow"] * 50 + ["sleeps"] * 50)
given = clip(prompt=SHORT, negative_prompt="dull")
short, exact = encoded(SHORT), encoded(SHORT, max_sequence_length=512)
off, none = apart(given, clip(**short)), apart(given, clip(**exact))
ends = apart(encoded(LONG)["prompt_embeds"], encoded(OTHER_END)["prompt_embeds"])
ends_given = apart(
    clip(prompt=LONG, negative_prompt="dull"), clip(prompt=OTHER_END, negative_prompt="dull")
)

print(", ".join(f"{name} {version(name)}" for name in ("diffusers", "transformers", "torch")))
print(f'Latents of the clip against those of prompt="{SHORT}", at most apart:')
print(f"  encode_prompt(...)                           {off:.6f}  "
      f"({short['prompt_embeds'].shape[1]} tokens)")
print(f"  encode_prompt(..., max_sequence_length=512)  {none:.6f}  "
      f"({exact['prompt_embeds'].shape[1]} tokens)")
print("Two prompts of 300 words that differ in the last 50:")
print(f"  embeddings by encode_prompt(...) are at most {ends:.6f} apart")
print(f"  clips of the prompts themselves are at most {ends_given:.6f} apart")
same = short["prompt_embeds"].shape[1] == 226 and exact["prompt_embeds"].shape[1] == 512
same = same and off > 1e-4 and none < 1e-5 and ends == 0 and ends_given > 0
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
