"""Processes of one clip on one machine: each sees a GPU of its own."""

from __future__ import annotations

import os

import pytest
import torch
from commands import PROMPT, one_line, ultragen

from ultragen.runs.process_group import joined, lost_another, processes, see_own_gpu

STARTED = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize("visible, own", [(None, "1"), ("", "1"), ("4,7", "7")])
def test_a_process_sees_its_own_gpu(monkeypatch, visible, own):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if visible is None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # which is put back as it was
        del os.environ["CUDA_VISIBLE_DEVICES"]
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    see_own_gpu(1, 2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="3 processes are too many for 2 GPUs"):
        see_own_gpu(0, 3)


def test_one_process_joins_nothing(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")  # not torchrun's, which says more
    assert processes() == 1
    with joined() as rank:
        assert rank == 0
    assert not torch.distributed.is_initialized()


def test_guidance_on_a_second_gpu_is_for_one_process(monkeypatch, tmp_path, capsys):
    for name, value in STARTED.items():
        monkeypatch.setenv(name, value)
    assert processes() == 2
    out = ("--guidance-device", "cuda:1", "--out", tmp_path / "lake.mp4")
    assert ultragen("generate", "--prompt", PROMPT, *out) == 2
    assert "leave it out, and 2 share both passes" in one_line(capsys)


def test_what_tells_that_another_process_is_gone():
    assert lost_another(RuntimeError("Connection closed by peer [127.0.0.1]:1"))
    assert lost_another(torch.distributed.DistBackendError("NCCL error"))
    assert not lost_another(RuntimeError("CUDA out of memory."))
