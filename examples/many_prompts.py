"""Many prompts over several GPUs, one process each: a clip and a seed for every line of a file.

python examples/many_prompts.py prompts.txt
accelerate launch --num_processes 2 examples/many_prompts.py prompts.txt --out clips

A prompt's seed is its number in the file, so the clips are the same for any number of processes.
"""

import argparse
from pathlib import Path

import torch
from accelerate import PartialState

from ultragen.pipeline import UltraGenPipeline
from ultragen.presets import EMBEDDED_MODEL
from ultragen.video import encode_video

SIZE = {"height": 544, "width": 960, "num_frames": 17}


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes a clip for every line of a file.")
    parser.add_argument("prompts", type=Path, help="A text file, one prompt a line.")
    parser.add_argument("--out", type=Path, default=Path("clips"), help="Folder of the clips.")
    arguments = parser.parse_args()
    lines = arguments.prompts.read_text(encoding="utf-8").splitlines()
    numbered = list(enumerate(line.strip() for line in lines if line.strip()))
    arguments.out.mkdir(parents=True, exist_ok=True)

    state = PartialState(cpu=not torch.cuda.is_available())
    pipe = UltraGenPipeline.from_pretrained(EMBEDDED_MODEL).to(state.device)
    with state.split_between_processes(numbered) as mine:
        for number, prompt in mine:
            generator = torch.Generator().manual_seed(number)
            clip = pipe(prompt, generator=generator, output_type="uint8", **SIZE)
            path = encode_video(clip.frames[0], arguments.out / f"{number:04}.mp4", fps=12)
            print(f"{path}: {prompt}", flush=True)
    state.destroy_process_group()


if __name__ == "__main__":
    main()
