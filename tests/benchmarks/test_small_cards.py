"""`benchmarks/small_cards.py`: its stand-ins take what files take, and its tables hold all rows."""

from __future__ import annotations

import small_cards
import torch

from ultragen.hardware import GIB
from ultragen.model.quantised import Quantised, QuantisedEmbedding


def test_stand_ins_take_what_files_take():
    """Bits of a weight: 16, 8 and ComfyUI's words in 16, 8.5, 4.5."""
    for kind, matrix, words in ((None, 16, 16), ("float8_e4m3fn", 8, 16), ("Q8_0", 8.5, 8.5),
                                ("Q4_K", 4.5, 4.5)):  # fmt: skip
        for name, bits in (("encoder.block.0.layer.1.wo.weight", matrix), ("shared.weight", words)):
            found = small_cards.stored(name, (64, 512), kind, "cpu")
            codes = found.codes if isinstance(found, Quantised) else found
            assert codes.nbytes == 64 * 512 * bits / 8
    norm = small_cards.stored("encoder.final_layer_norm.weight", (512,), "Q4_K", "cpu")
    assert isinstance(norm, torch.Tensor)


def test_a_stand_in_reads_a_prompt():
    sizes = {"vocab_size": 16, "d_model": 256, "d_kv": 64, "d_ff": 256, "num_layers": 1,
             "num_heads": 4, "feed_forward_proj": "gated-gelu"}  # fmt: skip
    model = small_cards.text_encoder(sizes, "Q4_K", "cpu")
    assert isinstance(model.shared, QuantisedEmbedding)
    small_cards.read_prompt(model, "cpu")


def test_the_tables():
    rows = [
        {
            "form": "FP8", "bytes": 6 * GIB, "peak_bytes": 7 * GIB, "seconds": 0.1,
            "cards": ["12 GB"],
        },
        {
            "card": "12 GB", "clip": "1088×1920×81", "transformer_fits": True,
            "transformer_peak_bytes": 9 * GIB, "decoding_fits": False, "decoding_peak_bytes": GIB,
        },
        {"card": "16 GB", "resolution": "2k", "frames": 81, "placement": "in turn", "rule": 77},
        {"what": "24 GB, 4k", "left_out": True},
    ]  # fmt: skip
    text = small_cards.table(rows)
    for line in (
        "| FP8 | 6.0 | 7.0 | 0.1 | 12 GB |",
        "| 12 GB | 1088×1920×81 | 9.0 | 1.0, does not fit |",
        "| 2k | – | 81 (in turn); rule 77 | – |",
    ):
        assert line in text.splitlines()
