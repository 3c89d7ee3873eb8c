#!/usr/bin/env bash
# diffusers 0.42.1 with peft 0.21.2: a Wan LoRA that changes the biases (diff_b) of some of its
# layers gives all of them one; those that the file lacks stay on the meta device, with a warning,
# and the next forward pass or pipe.to(...) raises. low_cpu_mem_usage=False loads it well.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0
"$work/env/bin/pip" install --quiet \
    diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 peft==0.21.2 ftfy==6.3.1

cat > "$work/shown.py" <<'PY'
import sys
from importlib.metadata import version

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

LAYERS = "qkvo"


def lora(biased):
    """A LoRA of the four projections of one block; these change their bias too."""
    tensors = {}
    for layer in LAYERS:
        prefix = f"diffusion_model.blocks.0.self_attn.{layer}"
        tensors[f"{prefix}.lora_down.weight"] = torch.randn(4, 32)
        tensors[f"{prefix}.lora_up.weight"] = torch.randn(32, 4)
        if layer in biased:
            tensors[f"{prefix}.diff_b"] = torch.randn(32)
    return tensors


def outcome(action):
    """Says that the action works, or which error it ends in."""
    try:
        action()
    except RuntimeError as error:  # NotImplementedError is one
        return f"{type(error).__name__}: {str(error).split('!')[0]}"
    return "works"


@torch.no_grad()
def loaded(biased, **options):
    """How many parameters are on the meta device after loading, and what a pass and a move do."""
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=8, ffn_dim=32, num_layers=1, rope_max_seq_len=32,
    )
    pipeline = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    pipeline.load_lora_weights(lora(biased), **options)
    latents, timestep, text = torch.randn(1, 4, 1, 4, 4), torch.tensor([500]), torch.randn(1, 3, 8)
    return (
        sum(parameter.is_meta for parameter in transformer.parameters()),
        outcome(lambda: transformer(latents, timestep, text)),
        outcome(lambda: pipeline.to("cpu")),
    )


found = {
    "diff_b in no layer": loaded(""),
    "diff_b in all four layers": loaded(LAYERS),
    "diff_b in one layer": loaded("q"),
    "the same, low_cpu_mem_usage=False": loaded("q", low_cpu_mem_usage=False),
}
names = ("torch", "diffusers", "peft")
print(", ".join(f"{name} {version(name)}" for name in names))
print("A LoRA of four layers after load_lora_weights():")
for case, (meta, forward, move) in found.items():
    print(f"  {case}\n    parameters on the meta device: {meta}")
    print(f"    forward pass:   {forward}\n    pipe.to('cpu'): {move}")
same = [meta for meta, _, _ in found.values()] == [0, 0, 3, 0]
failed = [result != "works" for _, *results in found.values() for result in results]
same = same and failed == [False, False, False, False, True, True, False, False]
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
