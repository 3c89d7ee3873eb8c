"""Shards: what is written is read back, a kill leaves what is whole, other models are refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from ultragen.dataset.shard_files import (
    DatasetSettings,
    EncodedClip,
    EncodedSource,
    ShardWriter,
    create_settings,
    forget,
    latents_digest,
    open_dataset,
    read_sources,
    remove_leftovers,
)
from ultragen.dataset.shards import LatentDataset

WAN = DatasetSettings("wan", "a" * 64, "b" * 64, 15.0, ("32x32x5", "32x32x1"))
SIZES = ((32, 32, 5), (32, 32, 1), (48, 32, 5))


def latents(number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn((4, 2, 4, 4), generator=generator).bfloat16()


def source(number: int, left_out: str | None = None) -> tuple[EncodedSource, dict]:
    z = latents(number)
    clip = EncodedClip(0.5 * number, *SIZES[number % 3], f"clip{number}", latents_digest(z))
    clips = () if left_out else (clip,)
    captions = (f"caption {number}", "two clips have this")
    name = f"part/{number}.mp4"
    return (
        EncodedSource(name, 100 + number, 7, captions, clips, left_out),
        {} if left_out else {clip.tensor: z},
    )


def write(folder: Path, numbers: range, step: int = 1, settings: DatasetSettings = WAN) -> None:
    create_settings(folder, settings)
    for first in range(step):
        writer = ShardWriter(folder, "latents", most_bytes=200)
        text = ShardWriter(folder, "text")
        for number in numbers[first::step]:
            entry, tensors = source(number)
            writer.add_source(entry, tensors)
            for length, caption in enumerate(entry.captions, 1):
                text.add_text(caption, torch.full((length, 8), float(len(caption))).bfloat16())
        text.add_text("", torch.ones(1, 8).bfloat16())
        writer.flush()
        text.flush()


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write(tmp_path, range(5))
    # The workers of a data loader get a copy.
    dataset = pickle.loads(pickle.dumps(LatentDataset(tmp_path)))
    assert dataset.settings == WAN and len(dataset) == 5
    assert len({clip.shard for clip in dataset.clips}) > 1
    for number, clip in enumerate(dataset.clips):
        assert clip.name == f"part/{number}.mp4"
        assert clip.start == 0.5 * number and clip.frame_rate == 15
        assert clip.size == SIZES[number % 3]
        assert torch.equal(dataset.latents(number), latents(number))
        assert dataset.text(number).shape == (1, 8)
        assert dataset.text(number, 1).tolist() == [[19.0] * 8] * 2
    assert dataset.empty_text().tolist() == [[1.0] * 8]
    assert dataset.by_size()[SIZES[0]] == [0, 3]


def test_the_fingerprint_is_that_of_the_clips(tmp_path: Path) -> None:
    write(tmp_path / "one", range(5))
    write(tmp_path / "two", range(5), step=2)
    first = LatentDataset(tmp_path / "one")
    assert first.fingerprint() == LatentDataset(tmp_path / "two").fingerprint()
    write(tmp_path / "two", range(5, 6))
    assert first.fingerprint() != LatentDataset(tmp_path / "two").fingerprint()
    found = {first.fingerprint()}
    for path in (tmp_path / "one/latents").glob("*.json"):
        content = json.loads(path.read_text())
        content["entries"][0]["captions"][0] += ", in other words"
        path.write_text(json.dumps(content))
        found.add(LatentDataset(tmp_path / "one").fingerprint())
    assert len(found) > 2


def test_a_shard_counts_once_it_is_whole(tmp_path: Path) -> None:
    write(tmp_path, range(4))
    for kind in ("latents", "text"):
        (tmp_path / kind / ".0123.partial.safetensors").write_bytes(b"half")
        (tmp_path / kind / "0123.safetensors").write_bytes(b"killed before its JSON was written")
        (tmp_path / kind / ".0123.partial.json").write_text("{")
    assert len(LatentDataset(tmp_path)) == 4
    remove_leftovers(tmp_path)
    assert not [path for path in tmp_path.rglob("*0123*")]
    assert len(LatentDataset(tmp_path)) == 4


def test_files_left_out_are_remembered(tmp_path: Path) -> None:
    create_settings(tmp_path, WAN)
    writer = ShardWriter(tmp_path, "latents")
    writer.add_source(*source(0, left_out="damaged from frame 3 of 9"))
    writer.flush()
    [(_, found)] = read_sources(tmp_path)
    assert found.left_out == "damaged from frame 3 of 9" and found.clips == ()
    with pytest.raises(ValueError, match="no clips yet"):
        LatentDataset(tmp_path)


def test_a_file_that_was_encoded_twice_counts_once(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    write(tmp_path, range(2))
    assert [clip.name for clip in LatentDataset(tmp_path).clips] == [
        f"part/{number}.mp4" for number in range(3)
    ]


def test_a_shard_is_written_after_a_while(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "latents", most_seconds=0)
    writer.add_source(*source(0))
    assert len(list(read_sources(tmp_path))) == 1 and writer.written > latents(0).nbytes


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vae": "c" * 64}, "vae aaaaaaaaaaaa, not cccccccccccc"),
        ({"frame_rate": 16.0}, "frame_rate 15.0, not 16.0"),
        ({"buckets": ("64x32x5",)}, "buckets 32x32x5, 32x32x1, not 64x32x5"),
        ({"enlarge": True}, "enlarge False, not True"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, changes: dict, says: str) -> None:
    create_settings(tmp_path, WAN)
    create_settings(tmp_path, WAN)
    with pytest.raises(ValueError, match=f"{says}: .*--out.*--overwrite"):
        create_settings(tmp_path, DatasetSettings(**{**WAN.__dict__, **changes}))


def test_another_model_or_size_is_refused(tmp_path: Path) -> None:
    write(tmp_path, range(2))
    dataset = LatentDataset(tmp_path)
    dataset.check("wan", WAN.vae, [SIZES[0]], WAN.text_encoder)
    for arguments, says in (
        (("embedded", WAN.vae), "of the wan model, not of embedded"),
        (("wan", "d" * 64), "latents of another VAE .aaaaaaaaaaaa. than the model's .dddddddddddd"),
        (("wan", WAN.vae, (), "d" * 64), "embeddings of another text encoder"),
        (("wan", WAN.vae, [(1088, 1920, 81)]), "no clips of 1088x1920x81 .* but of 32x32x5, 32x32"),
    ):
        with pytest.raises(ValueError, match=says):
            dataset.check(*arguments)


def test_captions_without_embeddings(tmp_path: Path) -> None:
    write(tmp_path, range(1), settings=DatasetSettings("embedded", "a" * 64, None, 12.0, ()))
    with pytest.raises(ValueError, match="captions without embeddings"):
        LatentDataset(tmp_path).text(0)
    with pytest.raises(ValueError, match="captions without embeddings"):
        LatentDataset(tmp_path).empty_text()


def test_what_is_no_dataset_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no dataset"):
        LatentDataset(tmp_path)
    write(tmp_path, range(3))
    dataset = LatentDataset(tmp_path)
    [text] = (tmp_path / "text").glob("*.json")
    text.unlink()
    with pytest.raises(OSError, match="lacks the embedding of 'caption 0'"):
        dataset.text(0)
    shard = tmp_path / dataset.clips[0].shard
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(OSError, match=r"is incomplete: .* remove \w+\.json"):
        LatentDataset(tmp_path)
    with pytest.raises(OSError, match="is missing or damaged"):
        dataset.latents(0)
    shard.unlink()
    with pytest.raises(OSError, match="is missing: copy it again"):
        LatentDataset(tmp_path)
    shard.with_suffix(".json").write_text("{")
    with pytest.raises(OSError, match="is damaged: "):
        LatentDataset(tmp_path)
    for content, says in (("[]", "is damaged"), ('{"version": 1}', "is damaged")):
        (tmp_path / "dataset.json").write_text(content)
        with pytest.raises(OSError, match=says):
            LatentDataset(tmp_path)
    (tmp_path / "dataset.json").write_text('{"version": 2}')
    with pytest.raises(ValueError, match="has version 2"):
        LatentDataset(tmp_path)


def test_only_the_dataset_is_forgotten(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    (tmp_path / "notes.txt").write_text("mine")
    forget(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "notes.txt"]


def test_what_is_no_dataset_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "latents").mkdir()
    theirs = tmp_path / "latents" / "theirs.safetensors"
    theirs.write_bytes(b"of another program")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="no dataset, but has files in latents: choose"):
            open_dataset(tmp_path, WAN, overwrite)
    assert theirs.exists() and not (tmp_path / "dataset.json").exists()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"can't be written to \(.*\): choose another --out"):
        open_dataset(tmp_path / "file" / "out", WAN)


def test_a_dataset_is_opened_again_or_anew(tmp_path: Path) -> None:
    write(tmp_path, range(2))
    (tmp_path / "latents" / ".0123.partial.safetensors").write_bytes(b"half")
    open_dataset(tmp_path, WAN)
    assert len(LatentDataset(tmp_path)) == 2 and not list(tmp_path.rglob("*.partial*"))
    open_dataset(tmp_path, WAN, overwrite=True)
    assert list(read_sources(tmp_path)) == []
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(OSError, match="is damaged"):
        open_dataset(tmp_path, WAN)
