"""Where a model's files are found, and what is said when they can't be had. No network is used:
what the Hub answers is made up, its cache and its offline mode are huggingface_hub's own."""

from __future__ import annotations

import errno
from pathlib import Path
from string import hexdigits

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from transformers.utils.logging import disable_progress_bar

from ultragen import hub
from ultragen.hub import find_local, locate, origin
from ultragen.presets import ULTRAGEN_SOURCE, WAN_SOURCE

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and no settings of the machine's own."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    for source in (WAN_SOURCE, ULTRAGEN_SOURCE):
        monkeypatch.delenv(source.variable, raising=False)
    return folder


def fill_cache(cache: Path, repository: str, files: tuple[str, ...], commit: str = COMMIT):
    """What a finished download leaves."""
    stored = cache / f"models--{repository.replace('/', '--')}"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text(commit)
    for name in files:
        path = stored / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return stored / "snapshots" / commit


# Sources


def test_a_path_is_taken_as_it_is(tmp_path, monkeypatch):
    file = tmp_path / "ultragen.ckpt"
    file.touch()
    for given in (file, str(file)):
        assert locate(given, ULTRAGEN_SOURCE) == file
    monkeypatch.setenv("ULTRAGEN_WEIGHTS", str(file))
    assert locate(None, ULTRAGEN_SOURCE) == file
    # The argument goes before the variable.
    assert locate(tmp_path, ULTRAGEN_SOURCE) == tmp_path


def asked(monkeypatch, folder: Path) -> list[dict]:
    """Lets downloads succeed; returns what was asked of them."""
    calls: list[dict] = []

    def download(repository, **options):
        calls.append({"repository": repository, **options})
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", download)
    return calls


@pytest.mark.parametrize(
    ("given", "repository", "revision"),
    [
        (None, "JTUplayer/Ultragen", "main"),
        ("me/mirror", "me/mirror", "main"),
        (f"me/mirror@{COMMIT}", "me/mirror", COMMIT),
        ("me/mirror@refs/pr/1", "me/mirror", "refs/pr/1"),
    ],
)
@pytest.mark.parametrize("by", ["argument", "variable"])
def test_a_repository_is_downloaded(given, repository, revision, by, monkeypatch, tmp_path):
    (tmp_path / "ultragen_1080p.ckpt").touch()
    calls = asked(monkeypatch, tmp_path)
    if given and by == "variable":
        monkeypatch.setenv("ULTRAGEN_WEIGHTS", given)
        given = None
    assert locate(given, ULTRAGEN_SOURCE) == tmp_path / "ultragen_1080p.ckpt"
    assert calls == [
        {
            "repository": repository,
            "revision": revision,
            "allow_patterns": ["ultragen_1080p.ckpt"],
            "local_files_only": False,
        }
    ]


@pytest.mark.parametrize(
    ("given", "revision"),
    [
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", WAN_SOURCE.revision),
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers@main", "main"),
        ("me/mirror", "main"),
    ],
)
def test_a_mirror_has_commits_of_its_own(given, revision, monkeypatch, tmp_path):
    for name in WAN_SOURCE.files:
        (tmp_path / name.replace("*", "file")).parent.mkdir(exist_ok=True)
        (tmp_path / name.replace("*", "file")).touch()
    calls = asked(monkeypatch, tmp_path)
    locate(given, WAN_SOURCE)
    assert calls[0]["revision"] == revision


def test_downloads_show_how_far_they_are(monkeypatch, tmp_path):
    """Also after the loaders' own bars have been switched off, as the page and the commands do."""
    seen = []

    def download(repository, **options):
        seen.append(are_progress_bars_disabled())
        return str(tmp_path)

    (tmp_path / "ultragen_1080p.ckpt").touch()
    monkeypatch.setattr(hub, "snapshot_download", download)
    disable_progress_bar()
    assert are_progress_bars_disabled()
    try:
        locate(None, ULTRAGEN_SOURCE)
        assert seen == [False]
        disable_progress_bars()
        monkeypatch.setattr(hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        locate(None, ULTRAGEN_SOURCE)  # who asks for none gets none
        assert seen == [False, True]
    finally:
        monkeypatch.undo()
        enable_progress_bars()


def test_only_the_parts_that_are_used_are_downloaded(monkeypatch, tmp_path):
    for name in WAN_SOURCE.files:
        (tmp_path / name.replace("*", "file")).parent.mkdir(exist_ok=True)
        (tmp_path / name.replace("*", "file")).touch()
    calls = asked(monkeypatch, tmp_path)
    assert locate(None, WAN_SOURCE) == tmp_path
    assert calls[0]["repository"] == "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    assert len(calls[0]["revision"]) == 40 and set(calls[0]["revision"]) <= set(hexdigits)
    parts = ("scheduler", "tokenizer", "text_encoder", "transformer", "vae")
    assert calls[0]["allow_patterns"] == ["model_index.json", *(f"{part}/*" for part in parts)]


@pytest.mark.parametrize(
    "given",
    ["nowhere", "./a/b", "/no/such/folder", "~/none/at-all", "weights/x.ckpt", "a/b/c", "@"],
)
def test_a_path_that_is_not_there(given, monkeypatch):
    monkeypatch.setattr(hub, "snapshot_download", None)
    with pytest.raises(FileNotFoundError) as caught:
        locate(given, ULTRAGEN_SOURCE)
    assert f"There is no {given}: set ULTRAGEN_WEIGHTS to" in str(caught.value)


# The cache, with huggingface_hub itself


def test_what_was_downloaded_is_found_without_a_network(cache):
    folder = fill_cache(cache, "JTUplayer/Ultragen", ("ultragen_1080p.ckpt",))
    for found in (
        locate(None, ULTRAGEN_SOURCE),  # HF_HUB_OFFLINE is set for all tests
        locate(None, ULTRAGEN_SOURCE, local_files_only=True),
        find_local(None, ULTRAGEN_SOURCE),
        locate(f"JTUplayer/Ultragen@{COMMIT}", ULTRAGEN_SOURCE),
    ):
        assert found == folder / "ultragen_1080p.ckpt"
    assert origin(found) == f"JTUplayer/Ultragen@{COMMIT}"
    assert origin(Path("/somewhere/my.ckpt")) == "my.ckpt"


def test_another_commit_than_the_pinned_one_is_not_taken(cache):
    files = tuple(name.replace("*", "file") for name in WAN_SOURCE.files)
    fill_cache(cache, WAN_SOURCE.repository, files)
    assert find_local(None, WAN_SOURCE) is None
    assert find_local(f"{WAN_SOURCE.repository}@main", WAN_SOURCE).name == COMMIT
    with pytest.raises(OSError) as caught:
        locate(None, WAN_SOURCE)
    way_out = f"set ULTRAGEN_WAN={WAN_SOURCE.repository}@main to take the version that is there"
    assert way_out in str(caught.value)


def test_offline_says_where_it_looked(cache):
    assert find_local(None, WAN_SOURCE) is None
    with pytest.raises(OSError) as caught:
        locate(None, WAN_SOURCE)
    text = str(caught.value)
    assert text.startswith("The Wan base model, Wan-AI/Wan2.1-T2V-1.3B-Diffusers, is not in ")
    for part in (str(cache), "unset HF_HUB_OFFLINE", "or set ULTRAGEN_WAN to a local copy"):
        assert part in text
    assert "\n" not in text


def test_half_a_download_in_the_cache(cache):
    files = "model_index.json", "vae/config.json"
    fill_cache(cache, WAN_SOURCE.repository, files, WAN_SOURCE.revision)
    assert find_local(None, WAN_SOURCE) is None
    with pytest.raises(OSError, match=r"it has no scheduler/\*, tokenizer/\*, text_en"):
        locate(None, WAN_SOURCE)


def test_a_repository_of_other_things(monkeypatch, tmp_path):
    (tmp_path / "README.md").touch()
    asked(monkeypatch, tmp_path)
    with pytest.raises(OSError) as caught:
        locate("someone/flux", ULTRAGEN_SOURCE)
    assert "someone/flux is not the released UltraGen weights" in str(caught.value)
    assert "it has no ultragen_1080p.ckpt. Take JTUplayer/Ultragen" in str(caught.value)


# What the Hub may answer


class Answer:
    """A response as huggingface_hub's errors keep it."""

    def __init__(self, status_code: int) -> None:
        self.status_code = status_code
        self.headers: dict[str, str] = {}
        self.request = None


def http(kind: type[HfHubHTTPError], status: int = 403) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, "the Hub's own text\nin lines")
    error.response = Answer(status)
    return error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (http(GatedRepoError), ["is gated: accept its terms on https://", "hf auth login"]),
        (http(RepositoryNotFoundError), ["is not on the Hub, has moved, or is private"]),
        (http(DisabledRepoError), ["has been disabled"]),
        (http(RevisionNotFoundError), ["has no revision main", "/commits"]),
        (http(HfHubHTTPError, 307), ["has moved", "new name"]),
        (http(HfHubHTTPError, 401), ["asks for a login"]),
        (http(HfHubHTTPError, 503), ["the Hub answered 503", "try again later"]),
        (IncompleteSnapshotError("x", "y"), ["half a download", "goes on from there"]),
        (OSError(errno.ENOSPC, "No space left"), ["does not fit on the disk", "HF_HOME"]),
        (ConnectionError("no route\nto host"), ["can't be downloaded (no route)", "the network"]),
        (TimeoutError(), ["can't be downloaded (TimeoutError)"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_went_wrong_is_one_line_with_the_way_out(error, says, monkeypatch):
    def download(*arguments, **options):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(OSError) as caught:
        locate(None, ULTRAGEN_SOURCE)
    text = str(caught.value)
    assert text.startswith("The released UltraGen weights, JTUplayer/Ultragen, ")
    assert text.endswith("or set ULTRAGEN_WEIGHTS to a local copy or another repository.")
    assert all(part in text for part in says), text
    assert "\n" not in text
    assert caught.value.__cause__ is error


def test_no_network_says_so(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    error = hub.explained(LocalEntryNotFoundError("x"), "a/b", "main", WAN_SOURCE)
    assert "is not on this machine, and the Hub can't be reached: check the network" in str(error)
