"""What a unit of work takes, in seconds, on the machines where it was measured."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

PROCESSOR = {"lanczos", "encode"}  # coefficients of what no GPU does
ZERO_GPU = 4.0
"""Times that ZeroGPU's `large` takes as long as the H100 whose coefficients are below: half of an
RTX PRO 6000 Blackwell has 252 of an H100's 989 TFLOP/s in bfloat16 (NVIDIA's data sheets, dense).
Counted, not measured: a Space's finished and stopped runs correct it."""


@dataclass(frozen=True)
class Coefficients:
    """Seconds that a unit of work takes on one device.

    Attributes:
        device: Kind of device, `cpu` or `cuda`.
        probe: Seconds of `probe` on the machine that was measured, to scale to another one.
        text: For each run, once: encoding the prompts.
        token: For each token of one native forward pass.
        pair: For each query-key pair of one native forward pass (mean over the layers).
        base_token: For each token of one forward pass of the base model.
        base_pair: For each query-key pair of one forward pass of the base model.
        decode: For each pixel decoded.
        lanczos: For each pixel that Lanczos resampling makes.
        network: For each pixel that the upscaling network is given.
        encode: For each pixel written to a video file.
        dtype: What the probe's matrices hold.
    """

    device: str
    probe: float
    text: float
    token: float
    pair: float
    base_token: float
    base_pair: float
    decode: float
    lanczos: float
    network: float
    encode: float
    dtype: str = "float32"

    def scaled(self, factor: float) -> Coefficients:
        """The same coefficients for a device that takes `factor` times as long. What the processor
        beside a GPU does stays as it is."""
        kept = {"device", "dtype"} | (PROCESSOR if self.device == "cuda" else set())
        names = [f.name for f in fields(self) if f.name not in kept]
        return replace(self, **{name: getattr(self, name) * factor for name in names})


CPU = Coefficients(  # the embedded model on two cores, float32
    device="cpu",
    probe=0.0113,
    text=0.03,
    token=3.0e-4,
    pair=1.1e-7,
    base_token=2.1e-4,
    base_pair=1.0e-7,
    decode=2.7e-7,
    lanczos=2.0e-8,
    network=3.2e-6,
    encode=2.2e-8,
)
CPU_BFLOAT16_AMX = Coefficients(  # the same with AMX: Intel Xeon, torch 2.13.0, 2026-11-26
    device="cpu",
    probe=0.00147,
    text=0.02,
    token=8.2e-5,
    pair=1.4e-8,
    base_token=9.9e-5,
    base_pair=1.4e-8,
    decode=7.1e-8,
    lanczos=1.2e-8,
    network=9.9e-7,
    encode=3.3e-8,
    dtype="bfloat16",
)
CPU_BFLOAT16_AVX512 = Coefficients(  # without AMX: AMD EPYC, torch 2.13.0, 2026-11-27
    device="cpu",
    probe=0.00483,
    text=0.02,
    token=1.67e-4,
    pair=3.1e-8,
    base_token=2.04e-4,
    base_pair=6.6e-8,
    decode=1.17e-7,
    lanczos=1.7e-8,
    network=1.78e-6,
    encode=3.3e-8,
    dtype="bfloat16",
)
# The embedded model on an H100 80GB HBM3, torch 2.11.0, 2026-11-28 (`runs.calibrate.measure`).
# Passes are so short that launching kernels is what takes time: pairs cost nothing yet.
CUDA = Coefficients(
    device="cuda",
    probe=3.58e-3,
    text=0.018,
    token=2.1e-5,
    pair=0.0,
    base_token=8.4e-6,
    base_pair=0.0,
    decode=9.7e-9,
    lanczos=3.4e-8,
    network=3.0e-7,
    encode=2.0e-8,
    dtype="bfloat16",
)
# The 1.3B model on an H100 80GB HBM3 with torch 2.11.0 and diffusers 0.42.1, bfloat16, random
# weights. Native passes: nine of docs/benchmarks.md (1.53 to 41.8 s, with and without full layers,
# K = 4 and 8), 2026-11-27 and 28; all lie within 3 %. Dense passes of 32,760 to 685,440 tokens lie
# within 7 % of 30 layers × (2.6e-7 s a token + 1.07e-11 s a pair), 2026-11-23 to 27. Text and
# decoding are the slower ones of two whole runs (docs/hardware.md), the probe the median of three,
# 2026-11-28. The rest is what `runs.calibrate.measure` found, 2026-11-27: there as well, with what
# it found for passes, and why that is not taken.
WAN_CUDA = replace(
    CUDA,
    probe=3.69e-3,
    text=0.86,
    token=5.4e-6,
    pair=3.13e-10,
    base_token=7.8e-6,
    base_pair=3.2e-10,
    decode=6.0e-8,
    lanczos=2.1e-8,
    network=3.2e-7,
    encode=3.3e-8,
)
# Operations counted on the layers' widths, at the 100 GFLOP/s that two cores were measured to keep
# up. Decoding is a lower bound: what a far narrower autoencoder of the same layout took.
WAN_CPU = replace(
    CPU,
    text=10.0,
    token=2.6e-2,
    pair=1.84e-6,
    base_token=2.6e-2,
    base_pair=1.84e-6,
    decode=7e-6,
)
COEFFICIENTS = {
    "embedded": {
        "cpu": CPU,
        "cpu bfloat16": CPU_BFLOAT16_AVX512,
        "cpu bfloat16 AMX": CPU_BFLOAT16_AMX,
        "cuda": CUDA,
    },
    "wan": {"cpu": WAN_CPU, "cuda": WAN_CUDA},
    # Counted, not measured: the same layers, whose pairs are others'.
    "t3-4k": {"cpu": WAN_CPU, "cuda": WAN_CUDA},
}


def coefficients(
    preset: str, device: str, dtype: str = "float32", amx: bool = False
) -> Coefficients:
    """What a unit of work of a preset's model takes on a kind of device, in the type that is
    computed in, with a CPU's units for that (AMX) or without, where that was measured."""
    kinds = COEFFICIENTS[preset]
    known = kinds.get(f"{device} {dtype}", kinds[device])
    return kinds.get(f"{device} {dtype} AMX", known) if amx else known
