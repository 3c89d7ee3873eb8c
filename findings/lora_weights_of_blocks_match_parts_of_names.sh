#!/usr/bin/env bash
# diffusers 0.42.1 with peft 0.21.2: set_adapters("style", {"transformer": {"blocks.1": 0.0}}) also
# switches blocks 10, 11 and so on off, as it asks whether a name contains the key; and where the
# LoRA has a layer outside the blocks that no key names, it ends in an IndexError.
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

BLOCKS = 12
torch.manual_seed(0)


def loaded(*layers):
    """A pipeline with a LoRA in these layers."""
    pipeline = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None,
        transformer=WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=8, out_channels=8,
            text_dim=8, freq_dim=8, ffn_dim=32, num_layers=BLOCKS, rope_max_seq_len=32,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    lora = {}
    for layer in layers:
        lora[f"transformer.{layer}.lora_A.weight"] = torch.ones(4, 32)
        lora[f"transformer.{layer}.lora_B.weight"] = torch.ones(32, 4)
    pipeline.load_lora_weights(lora, adapter_name="style")
    return pipeline


def weights(pipeline, given):
    """The weight of the LoRA in each block after set_adapters, or the error."""
    try:
        pipeline.set_adapters("style", {"transformer": given})
    except IndexError as error:
        return f"IndexError: {error}"
    return [block.attn1.to_q.scaling["style"] for block in pipeline.transformer.blocks]


def zeros(given):
    return [i for i in range(BLOCKS) if given[i] == 0] if isinstance(given, list) else given


queries = [f"blocks.{i}.attn1.to_q" for i in range(BLOCKS)]
inside, beyond = loaded(*queries), loaded(*queries, "proj_out")
found = {
    ("in the blocks", '{"blocks.1": 0}'): zeros(weights(inside, {"blocks.1": 0.0})),
    ("in the blocks", '{"blocks.1.": 0}'): zeros(weights(inside, {"blocks.1.": 0.0})),
    ("in the blocks", '{"blocks.1": 1, "blocks.11": 0}'): zeros(
        weights(inside, {"blocks.1": 1.0, "blocks.11": 0.0})
    ),
    ("in proj_out too", '{"blocks.1.": 0}'): zeros(weights(beyond, {"blocks.1.": 0.0})),
    ("in proj_out too", '{"blocks.1.": 0, "proj_out": 1}'): zeros(
        weights(beyond, {"blocks.1.": 0.0, "proj_out": 1.0})
    ),
}

print(", ".join(f"{library} {version(library)}" for library in ("torch", "diffusers", "peft")))
print(f"Which of {BLOCKS} blocks have a weight of 0 after set_adapters:")
for (where, given), answer in found.items():
    print(f"  LoRA {where:16} {given:32} {answer}")
same = list(found.values()) == [
    [1, 10, 11], [1], [], "IndexError: list index out of range", [1],
]
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
