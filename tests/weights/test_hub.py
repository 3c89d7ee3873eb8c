"""Where a model's files are found, and what is said when they can't be had. No network is used:
what the Hub answers is made up, its cache and its offline mode are huggingface_hub's own."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from string import hexdigits
from types import SimpleNamespace

import httpx2
import pytest
from huggingface_hub import HfApi, constants
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
    close_session,
    disable_progress_bars,
    enable_progress_bars,
    set_client_factory,
)
from huggingface_hub.utils._http import default_client_factory
from transformers.utils.logging import disable_progress_bar

from ultragen.presets import ULTRAGEN_SOURCE, WAN_SOURCE
from ultragen.weights import hub, wan
from ultragen.weights.hub import Preview, find_local, locate, origin, preview
from ultragen.weights.wan import locate_encoders, locate_wan

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
    """Lets downloads succeed; returns what was asked of them. Nothing is here before."""
    calls: list[dict] = []

    def download(repository, **options):
        if options["local_files_only"]:
            raise LocalEntryNotFoundError("not there")
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
        if options["local_files_only"]:
            raise LocalEntryNotFoundError("not there")
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


def test_what_was_first_downloaded_of_a_branch_stays(cache, monkeypatch):
    """Clips of one machine are made with one version, whatever is pushed to the branch."""
    snapshot = fill_cache(cache, ULTRAGEN_SOURCE.repository, ULTRAGEN_SOURCE.files)
    newer = cache / "newer"
    newer.mkdir()
    (newer / "ultragen_1080p.ckpt").touch()
    own, downloads = hub.snapshot_download, []

    def download(repository, **options):
        if options["local_files_only"]:
            return own(repository, **options)
        downloads.append((repository, options["revision"]))
        return str(newer)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert locate(None, ULTRAGEN_SOURCE) == snapshot / "ultragen_1080p.ckpt"
    assert downloads == []
    named = f"{ULTRAGEN_SOURCE.repository}@main"
    assert locate(named, ULTRAGEN_SOURCE) == newer / "ultragen_1080p.ckpt"
    assert downloads == [(ULTRAGEN_SOURCE.repository, "main")]
    # Of folders, a part may be here, and a download completes it.
    fill_cache(cache, WAN_SOURCE.repository, BASE, WAN_SOURCE.revision)
    with pytest.raises(FileNotFoundError):
        locate(None, WAN_SOURCE)
    assert downloads[1:] == [(WAN_SOURCE.repository, WAN_SOURCE.revision)]


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


@pytest.fixture
def online(monkeypatch):
    """As with a network, which nothing here uses."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize(
    ("source", "half"),
    [(WAN_SOURCE, False), (ULTRAGEN_SOURCE, False), (ULTRAGEN_SOURCE, True)],
    ids=["base", "weights", "half a download"],
)
@pytest.mark.parametrize(
    ("status", "says"),
    [
        (429, "the Hub answered 429, too many requests): wait some minutes, or run `hf auth"),
        (502, "the Hub answered 502, it has trouble of its own): try again later"),
    ],
)
def test_what_the_hub_answered_is_told(source, status, says, half, cache, monkeypatch):
    """huggingface_hub itself looks into its cache then, and tells only what it finds there."""

    def refuse(*arguments, **options):
        raise http(HfHubHTTPError, status)

    for name in ("repo_info", "list_repo_tree"):
        monkeypatch.setattr(HfApi, name, refuse)
    if half:
        folder = fill_cache(cache, source.repository, ("README.md",))
        listing = {"format_version": 1, "files": {source.files[0]: {"size": 1, "blob_id": "0"}}}
        (folder.parents[1] / "trees").mkdir()
        (folder.parents[1] / "trees" / f"{COMMIT}.json").write_text(json.dumps(listing))
    with pytest.raises(OSError) as caught:
        locate(None, source)
    assert says in str(caught.value)
    assert "network" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("ask", [locate, preview])
@pytest.mark.parametrize("source", [WAN_SOURCE, ULTRAGEN_SOURCE], ids=lambda source: source.name)
def test_a_login_page_between_here_and_the_hub(source, ask):
    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.host == "login":
            return httpx2.Response(200, html="<html>Welcome to our network</html>")
        return httpx2.Response(302, headers={"location": "http://login/"})

    transport = httpx2.MockTransport(answer)
    set_client_factory(lambda: httpx2.Client(transport=transport, follow_redirects=True))
    try:
        with pytest.raises(OSError) as caught:
            ask(None, source)
    finally:
        set_client_factory(default_client_factory)
        close_session()
    assert "not the Hub, but perhaps a proxy or a login page: open https://" in str(caught.value)
    assert "check HTTPS_PROXY" in str(caught.value)


@pytest.mark.usefixtures("online")
def test_an_unreachable_hub_is_told_with_the_reason(cache, monkeypatch):
    def fail(*arguments, **options):
        raise httpx2.ConnectError("Name or service not known")

    for name in ("repo_info", "model_info", "list_repo_tree"):
        monkeypatch.setattr(HfApi, name, fail)
    with pytest.raises(OSError, match=r"reached \(Name or service not known\): check the network"):
        locate(None, ULTRAGEN_SOURCE)
    fill_cache(cache, WAN_SOURCE.repository, ("model_index.json",))
    way_out = f"set ULTRAGEN_WAN={WAN_SOURCE.repository}@main to take the version that is there"
    for ask in (locate, preview):
        with pytest.raises(OSError) as caught:
            ask(None, WAN_SOURCE)
        assert "(Name or service not known): check the network" in str(caught.value)
        assert way_out in str(caught.value)


# Before a download


class Offers:
    """A Hub with some repositories; notes what is downloaded of them."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.folder = folder
        self.downloads: list[tuple[str, list[str]]] = []
        self.gated, self.asked = False, 0
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "HfApi", lambda: self)
        monkeypatch.setattr(hub, "snapshot_download", self.download)

    def model_info(self, repository, revision, files_metadata):
        self.asked += 1
        folder = self.folder / repository
        if not folder.exists():
            raise http(RepositoryNotFoundError, 404)
        files = [
            SimpleNamespace(rfilename=path.relative_to(folder).as_posix(), size=1)
            for path in folder.rglob("*")
            if path.is_file()
        ]
        return SimpleNamespace(siblings=files, gated=self.gated, sha=COMMIT)

    def auth_check(self, repository):
        raise http(GatedRepoError)

    def download(self, repository, revision, allow_patterns, local_files_only=False):
        if local_files_only:
            raise LocalEntryNotFoundError("not there")
        self.downloads.append((repository, allow_patterns))
        return str(self.folder / repository)


BASE = tuple(name.replace("*", "file") for name in WAN_SOURCE.files)
RELEASED = ("README.md", "ultragen_1080p.ckpt")


@pytest.fixture
def offers(monkeypatch, tmp_path) -> Offers:
    """Both models, and another one in the base model's layout."""
    for repository, kind, names in (
        (WAN_SOURCE.repository, "WanPipeline", BASE),
        (ULTRAGEN_SOURCE.repository, None, RELEASED),
        ("someone/flux", "FluxPipeline", BASE),
    ):
        for name in names:
            path = tmp_path / "hub" / repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"_class_name": kind}))
    return Offers(monkeypatch, tmp_path / "hub")


def test_both_models_are_looked_up_before_either_is_downloaded(offers):
    base, weights = locate_wan()
    assert base == offers.folder / WAN_SOURCE.repository
    assert weights == offers.folder / ULTRAGEN_SOURCE.repository / "ultragen_1080p.ckpt"
    assert offers.asked == 2
    assert offers.downloads == [
        (WAN_SOURCE.repository, ["model_index.json"]),
        (WAN_SOURCE.repository, list(WAN_SOURCE.files)),
        (ULTRAGEN_SOURCE.repository, list(ULTRAGEN_SOURCE.files)),
    ]


def test_encoders_are_downloaded_without_the_transformer(offers, monkeypatch):
    monkeypatch.setattr(wan, "check_base", lambda folder, without: None)  # these hold no weights
    assert locate_encoders() == offers.folder / WAN_SOURCE.repository
    _, (repository, patterns) = offers.downloads
    assert repository == WAN_SOURCE.repository
    assert patterns == ["model_index.json", "tokenizer/*", "text_encoder/*", "vae/*"]
    with pytest.raises(ValueError, match="looks like FluxPipeline"):
        locate_encoders("someone/flux")
    assert len(offers.downloads) == 3  # what it is, and no more
    monkeypatch.setattr(hub, "disk_usage", lambda folder: SimpleNamespace(free=0))
    with pytest.raises(OSError, match="does not fit on the disk"):
        locate_encoders()


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("ULTRAGEN_WEIGHTS", "nobody/nothing", "nobody/nothing, is not on the Hub, has moved, or"),
        ("ULTRAGEN_WEIGHTS", "someone/flux", "it has no ultragen_1080p.ckpt. Take JTUplayer/Ultra"),
        ("ULTRAGEN_WEIGHTS", "/no/such.ckpt", "There is no /no/such.ckpt: set ULTRAGEN_WEIGHTS to"),
        ("ULTRAGEN_WAN", "nobody/nothing", "nobody/nothing, is not on the Hub, has moved, or is"),
        (
            "ULTRAGEN_WAN",
            "JTUplayer/Ultragen",
            "it has no model_index.json, scheduler/*, token",
        ),
        (
            "ULTRAGEN_WAN",
            "someone/flux",
            "looks like FluxPipeline, not text-to-video Wan: take",
        ),
    ],
)
def test_a_wrong_repository_shows_before_a_download(offers, variable, value, says, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises((OSError, ValueError)) as caught:
        locate_wan()
    assert says in str(caught.value)
    assert {tuple(patterns) for _, patterns in offers.downloads} <= {("model_index.json",)}


def test_wrong_weights_of_ones_own_show_before_a_download(offers, files, tmp_path):
    shutil.copy(files.ultragen, tmp_path / "half.ckpt")
    with (tmp_path / "half.ckpt").open("r+b") as file:
        file.truncate(files.ultragen.stat().st_size // 2)
    with pytest.raises(OSError, match=r"half\.ckpt is incomplete or damaged"):
        locate_wan(None, tmp_path / "half.ckpt")
    assert offers.downloads == [(WAN_SOURCE.repository, ["model_index.json"])]
    assert locate_wan(None, files.ultragen)[1] == files.ultragen


def test_who_has_the_files_or_no_network_asks_nothing(offers, files, cache, monkeypatch):
    assert locate_wan(files.base, files.ultragen) == (files.base, files.ultragen)
    with pytest.raises(OSError, match="downloads are switched off"):
        locate_wan(local_files_only=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert preview(None, WAN_SOURCE) == Preview(None)
    assert (offers.asked, offers.downloads) == (0, [])


def test_downloaded_models_are_taken_without_a_network(cache):
    """With huggingface_hub itself, as in the tests of its cache above."""
    base = fill_cache(cache, WAN_SOURCE.repository, BASE, WAN_SOURCE.revision)
    released = fill_cache(cache, ULTRAGEN_SOURCE.repository, RELEASED)
    assert locate_wan() == (base, released / "ultragen_1080p.ckpt")


def test_a_mirror_that_tells_nothing_is_downloaded_from(offers, monkeypatch):
    def nothing(*question, **options):
        raise http(HfHubHTTPError, 404)

    monkeypatch.setattr(offers, "model_info", nothing)
    assert preview(None, WAN_SOURCE) == Preview(None)
    locate_wan()
    assert [patterns for _, patterns in offers.downloads] == [
        list(WAN_SOURCE.files),
        list(ULTRAGEN_SOURCE.files),
    ]
    monkeypatch.setattr(offers, "model_info", lambda *question, **options: silent)
    silent = SimpleNamespace(siblings=None, gated=False, sha=COMMIT)
    assert preview(None, ULTRAGEN_SOURCE) == Preview(None)


def test_gated_mirrors_and_full_disks_show_before_a_download(offers, cache, monkeypatch):
    bytes_of_both = len(BASE) + 1  # each file has one, and of UltraGen's one is taken
    monkeypatch.setattr(hub, "disk_usage", lambda folder: SimpleNamespace(free=bytes_of_both - 1))
    with pytest.raises(OSError, match=r"What is missing of the model, .*, does not fit on the d"):
        locate_wan()
    assert {tuple(patterns) for _, patterns in offers.downloads} == {("model_index.json",)}
    monkeypatch.setattr(hub, "disk_usage", lambda folder: SimpleNamespace(free=bytes_of_both))
    locate_wan()
    folder = offers.folder / WAN_SOURCE.repository
    assert preview(None, WAN_SOURCE) == Preview(folder, len(BASE))
    # What half a download has taken is not needed again.
    snapshot = fill_cache(cache, WAN_SOURCE.repository, ("vae/file",))
    assert preview(None, WAN_SOURCE) == Preview(folder, len(BASE) - 1)
    (snapshot / "vae" / "file").unlink()
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir()
    (blobs / "0.incomplete").write_bytes(b"0")
    assert preview(None, WAN_SOURCE) == Preview(folder, len(BASE) - 1)
    offers.gated = True
    with pytest.raises(OSError, match="is gated: accept its terms on"):
        preview(None, ULTRAGEN_SOURCE)
