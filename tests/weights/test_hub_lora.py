"""LoRAs on the Hub: which file is taken, and what is said when it can't be had. No network is
used: what the Hub answers is made up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ultragen.weights import hub_lora
from ultragen.weights.lora_files import find_lora


@pytest.fixture(autouse=True)
def online(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A repository with these files; notes what is asked of it."""
    asked: list[dict] = []
    made = SimpleNamespace(files=("README.md", "style.safetensors"), asked=asked)

    def model_info(self, repository, revision):
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in made.files])

    def download(repository, **options):
        asked.append({"repository": repository, **options})
        for name in made.files:
            path = tmp_path / "snapshot" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(HfApi, "model_info", model_info)
    monkeypatch.setattr(hub_lora, "snapshot_download", download)
    return made


@pytest.mark.parametrize(
    ("place", "options", "file", "revision"),
    [
        ("me/style", {}, "style.safetensors", "main"),
        ("me/style@v2", {}, "style.safetensors", "v2"),
        ("me/style@refs/pr/1", {}, "style.safetensors", "refs/pr/1"),
        ("me/style", {"revision": "v3"}, "style.safetensors", "v3"),
        ("me/style/style.safetensors", {}, "style.safetensors", "main"),
        ("me/style/style.safetensors@v2", {}, "style.safetensors", "v2"),
        ("me/style", {"weight_name": "style.safetensors"}, "style.safetensors", "main"),
    ],
)
def test_a_repository_or_one_of_its_files_is_downloaded(place, options, file, revision, hub):
    assert find_lora(place, **options).name == file
    [asked] = hub.asked
    assert (asked["repository"], asked["revision"]) == ("me/style", revision)
    assert asked["allow_patterns"] == [file, "adapter_config.json"]


def test_a_file_in_a_folder_of_a_repository(hub):
    hub.files = ("a/style.safetensors", "b/style.safetensors")
    assert find_lora("me/style/b/style.safetensors").parent.name == "b"
    assert find_lora("me/style", "style.safetensors", subfolder="a").parent.name == "a"
    assert find_lora("me/style", subfolder="b").parent.name == "b"


def test_several_files_are_named_with_the_way_out(hub):
    hub.files = ("one.safetensors", "other.safetensors", "optimizer.bin")
    says = r"several LoRAs \(one.safetensors, other.safetensors\): name one, as me/style/one\.safe"
    with pytest.raises(ValueError, match=says):
        find_lora("me/style")
    assert hub.asked == []
    hub.files = ("README.md",)
    with pytest.raises(FileNotFoundError, match=r"me/style holds no LoRA: it has README\.md"):
        find_lora("me/style")


def test_a_file_that_the_repository_lacks(hub):
    with pytest.raises(FileNotFoundError, match=r"repository me/style has no gone\.safetensors"):
        find_lora("me/style/gone.safetensors")


def answer(kind, status: int):
    request = httpx2.Request("GET", "https://huggingface.co/api/models/me/style")
    return kind("no", response=httpx2.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (answer(GatedRepoError, 403), "me/style, is gated: accept its terms on .*hf auth login"),
        (answer(RepositoryNotFoundError, 404), "is not on the Hub, has moved, or is private"),
        (answer(RevisionNotFoundError, 404), "has no revision main"),
        (ConnectionError("Network is unreachable"), "can't be downloaded .*: check the network"),
    ],
    ids=["gated", "gone", "revision", "network"],
)
@pytest.mark.parametrize("when", ["listing", "download"])
def test_what_goes_wrong_is_one_line(error, says, when, hub, monkeypatch):
    def fail(*arguments, **options):
        raise error

    place = "me/style"
    if when == "listing":
        monkeypatch.setattr(HfApi, "model_info", fail)
    else:
        monkeypatch.setattr(hub_lora, "snapshot_download", fail)
        place = "me/style/style.safetensors"
    with pytest.raises(OSError, match=says) as raised:
        find_lora(place)
    assert str(raised.value).startswith("The LoRA, me/style, ")
    assert str(raised.value).endswith("set the LoRA's path to a local copy or another repository.")
    assert "\n" not in str(raised.value)


def test_without_a_network_what_is_there_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    stored = tmp_path / "cache" / "models--me--style"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text(commit)
    file = stored / "snapshots" / commit / "style.safetensors"
    file.parent.mkdir(parents=True)
    file.touch()
    assert find_lora("me/style") == file
    assert find_lora("me/style/style.safetensors") == file
    with pytest.raises(OSError, match="downloads are switched off: unset HF_HUB_OFFLINE") as raised:
        find_lora("me/other")
    assert isinstance(raised.value.__cause__, LocalEntryNotFoundError)


@pytest.mark.parametrize("place", ["gone.safetensors", "./me/style", "a", "me/style.pt", "~/x/y"])
def test_what_is_no_repository_is_a_path_that_is_not_there(place, hub):
    with pytest.raises(FileNotFoundError, match=r"There is no LoRA .*: give an existing file"):
        find_lora(Path(place) if place == "a" else place)
    assert hub.asked == []
