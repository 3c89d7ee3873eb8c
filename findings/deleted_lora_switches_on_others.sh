#!/usr/bin/env bash
# diffusers 0.42.1 with peft 0.21.2: delete_adapters of the one active LoRA switches on others that
# were loaded and off: in each layer the first that it has left. Several may act at once, and
# get_active_adapters may name none of them.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0
"$work/env/bin/pip" install --quiet \
    diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 peft==0.21.2 ftfy==6.3.1

cat > "$work/shown.py" <<'PY'
import sys
import warnings
from importlib.metadata import version

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

LAYERS = {"a": "to_q", "b": "to_k", "c": "to_v"}
INPUTS = torch.eye(32)
diffusers.utils.logging.set_verbosity_error()
warnings.simplefilter("ignore")


class Loaded:
    """A pipeline with LoRAs a, b and c, each in one layer of its own; only a is on."""

    def __init__(self):
        torch.manual_seed(0)
        self.pipeline = WanPipeline(
            tokenizer=None, text_encoder=None, vae=None,
            scheduler=FlowMatchEulerDiscreteScheduler(),
            transformer=WanTransformer3DModel(
                num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
                text_dim=8, freq_dim=8, ffn_dim=64, num_layers=1, rope_max_seq_len=32,
            ),
        )
        self.plain = self.products()
        for name, layer in LAYERS.items():
            start = f"transformer.blocks.0.attn1.{layer}.lora_"
            lora = {start + "A.weight": torch.ones(4, 32), start + "B.weight": torch.ones(32, 4)}
            self.pipeline.load_lora_weights(lora, adapter_name=name)
        self.pipeline.set_adapters("a")

    @torch.no_grad()
    def products(self):
        attention = self.pipeline.transformer.blocks[0].attn1
        return [getattr(attention, layer)(INPUTS) for layer in LAYERS.values()]

    def state(self):
        """What is said to be on, and what is."""
        pairs = zip(LAYERS, self.products(), self.plain)
        acting = [name for name, now, plain in pairs if (now - plain).abs().max() > 1]
        return self.pipeline.get_active_adapters(), acting


loaded = Loaded()
before = loaded.state()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    loaded.pipeline.delete_adapters("a")
said = sorted({str(each.message) for each in caught if "Setting active" in str(each.message)})
after = loaded.state()
switched_off = Loaded()
switched_off.pipeline.delete_adapters("a")
switched_off.pipeline.disable_lora()
off = switched_off.state()

print(", ".join(f"{library} {version(library)}" for library in ("torch", "diffusers", "peft")))
print("                                             get_active_adapters()  LoRAs that act")
for title, (named, acting) in (
    ('set_adapters("a")', before),
    ('delete_adapters("a")', after),
    ('delete_adapters("a"), then disable_lora()', off),
):
    print(f"  {title:44} {named!s:21} {acting}")
print("Warnings while deleting:", *said, sep="\n  ")
same = before == (["a"], ["a"]) and after == ([], ["b", "c"]) and off == ([], [])
print("The behaviour is as described." if same else "THE BEHAVIOUR HAS CHANGED.")
sys.exit(not same)
PY
"$work/env/bin/python" "$work/shown.py"
