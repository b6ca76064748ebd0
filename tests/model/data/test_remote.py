"""Data in S3, from a real server: what an address names, one download for all, broken and gone on with, and errors."""

import logging
import os
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.data import remote, s3_client, store
from model.data.coco import read_coco
from model.data.sources import annotation_files, local, sizes
from model.errors import DataError, ExtraMissing, NoRoom, Unreachable
from model.progress import heard_by
from model.spec import Source
from tests.conftest import SECRET
from tests.model.data.test_archives import pack, zipped
from tests.store import Store, Wire, until, wire_to

BIG = os.urandom(1 << 20) * 4
PROGRAM = "import sys; from model.data.sources import local; print(local(sys.argv[1]))"


@pytest.fixture
def wire(s3: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    with wire_to(s3) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
        yield made


def start(uri: str) -> "subprocess.Popen[str]":
    """Another process that asks for the same."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, uri], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def left(cache: Path) -> list[str]:
    """Data in the cache, finished or not."""
    return sorted(
        path.relative_to(cache).as_posix()
        for section in store.SECTIONS
        for path in (cache / section).glob("*")
        if path.is_dir()
    )


@pytest.mark.parametrize("name", ["images.tar.gz", "images.tar", "images.tgz", "images.zip"])
def test_an_archive_is_unpacked_and_not_kept(s3: Store, tmp_path: Path, cache: Path, name: str) -> None:
    uri = s3.put("archives", f"train/{name}", pack(tmp_path / name, {"images/a.jpg": b"pixels"}))
    folder = local(uri)
    assert folder.name == "images"
    assert (folder / "a.jpg").read_bytes() == b"pixels"
    assert local(uri) == folder
    assert s3.gets(uri) == [None]
    assert [path.partition("/")[0] for path in left(cache)] == ["archives"]


def test_an_object_is_a_file_of_its_name(s3: Store) -> None:
    uri = s3.put("files", "train/annotations.json", b"{}")
    found = local(uri)
    assert found.read_bytes() == b"{}"
    assert found.parts[-3:] == ("files", "train", "annotations.json")
    assert annotation_files(uri) == [found]


def test_a_folder_comes_with_everything_but_archives(s3: Store) -> None:
    for key in ("a/1.jpg", "a/deep/2.jpg", "a/", "a/images.tar.gz", "ab/3.jpg"):
        s3.put("folders", key, key.encode())
    for uri in ("s3://folders/a", "s3://folders/a/"):
        folder = local(uri)
        there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        assert there == ["1.jpg", "deep/2.jpg"]
        assert (folder / "deep/2.jpg").read_bytes() == b"a/deep/2.jpg"
    assert sizes("s3://folders/a") == [("1.jpg", 7), ("deep/2.jpg", 12), ("images.tar.gz", 15)]
    s3.put("packed", "x/images.tar.gz", b"")
    with pytest.raises(DataError, match=r"archives only; name one of them: s3://packed/x/images\.tar\.gz"):
        local("s3://packed/x")


def test_shards(s3: Store) -> None:
    for key in ("s/1.json", "s/0.json", "s/notes.txt", "s/deep/2.json"):
        s3.put("shards", key, key.encode())
    for uri in ("s3://shards/s", "s3://shards/s/", "s3://shards/s/*", "s3://shards/s/*.json", "s3://shards/?/*.json"):
        assert [path.name for path in annotation_files(uri)] == ["0.json", "1.json"], uri
    assert [path.name for path in annotation_files("s3://shards/s/*/*.json")] == ["2.json"]
    with pytest.raises(DataError, match=r"must match annotation files, but no .json file does"):
        annotation_files("s3://shards/s/*.txt")


def test_a_broken_connection_is_gone_on_from_where_it_broke(wire: Wire, s3: Store, heard: Any) -> None:
    uri = s3.put("broken", "big.bin", BIG)
    wire.cuts = [1_000_000, 1_500_000]
    with heard_by(heard):
        assert local(uri).read_bytes() == BIG
    first, *rest = s3.gets(uri)
    assert first is None
    begins = [int(str(each).removeprefix("bytes=").removesuffix("-")) for each in rest]
    assert len(begins) == 2
    assert 0 < begins[0] < 1_100_000 < begins[1] < 2_700_000
    assert wire.carried < 1.3 * len(BIG)  # what was on its way when the wire broke comes twice, and nothing else
    (work,) = [work for work in heard.ends if work.what == "downloading big.bin"]
    assert (work.unit, round(work.done, 3), work.total) == ("MB", round(len(BIG) / 1e6, 3), len(BIG) / 1e6)
    assert "connection lost, trying again" in [work.note for work in heard.moves]


def test_a_connection_that_is_reset(wire: Wire, s3: Store) -> None:
    uri = s3.put("reset", "big.bin", BIG)
    wire.cuts, wire.resets = [1_500_000, 1_500_000, 100], True
    assert local(uri).read_bytes() == BIG
    assert len(s3.gets(uri)) == 4


@pytest.mark.parametrize("resets", [False, True])
def test_an_answer_that_breaks_off_in_its_head(
    wire: Wire, s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resets: bool
) -> None:
    """Wherever that is, of an object and of a list: Python's HTTP takes half a head for a whole one."""
    wire.resets = resets
    uri = s3.put("torn", "data/a.bin", b"x" * 3000)
    folder = s3.put("torn", "data/b.bin", b"y" * 50).rpartition("/")[0]
    for place, cut in enumerate(range(1, 1800, 101)):
        monkeypatch.setenv("DDETR_CACHE", str(tmp_path / f"cache-{place}"))
        monkeypatch.setattr(remote, "_known", {})
        wire.cuts = [cut]
        assert local(folder if place % 2 else uri)
        wire.cuts = []
        assert (local(folder) / "a.bin").read_bytes() == local(uri).read_bytes() == b"x" * 3000


def test_giving_up_keeps_what_is_there(
    wire: Wire, s3: Store, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3.put("given", "images.tar", pack(tmp_path / "a.tar", {"a.bin": BIG}))
    monkeypatch.setattr(remote, "RETRIES", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    wire.cuts = [1_000_000, 1, 1]
    with pytest.raises(Unreachable, match=r"given/images.tar` must be downloaded whole, but .* lost 2 times in a row"):
        local(uri)
    assert len(left(cache)) == 1
    monkeypatch.setattr(remote, "_known", {})
    assert (local(uri) / "a.bin").read_bytes() == BIG
    last = s3.gets(uri)[-1]
    assert last is not None
    assert 100_000 < int(last[6:-1]) < 1_100_000


def test_a_killed_process_left_what_the_next_one_goes_on_from(wire: Wire, s3: Store, cache: Path) -> None:
    uri = s3.put("killed", "big.bin", BIG)
    wire.hold = 2_000_000
    process = start(uri)
    until(lambda: any(path.stat().st_size > 1_000_000 for path in cache.rglob("big.bin")) or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (part,) = cache.rglob("big.bin")
    size = part.stat().st_size
    wire.go_on()
    assert local(uri).read_bytes() == BIG
    assert s3.gets(uri) == [None, f"bytes={size}-"]
    assert len(left(cache)) == 1


def test_two_processes_download_once(wire: Wire, s3: Store, cache: Path, tmp_path: Path) -> None:
    uri = s3.put("twice", "images.tar.gz", pack(tmp_path / "a.tar.gz", {"images/a.bin": BIG}))
    wire.hold = 1_000_000
    both = [start(uri), start(uri)]
    # Both have found it while the first is at it.
    until(lambda: s3.heads(uri) == 2 or any(process.poll() is not None for process in both))
    wire.go_on()
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert s3.gets(uri) == [None]
    assert len(left(cache)) == 1


def test_what_changes_meanwhile_is_begun_anew(
    wire: Wire, s3: Store, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, other = s3.put("changed", "big.bin", BIG), bytes(reversed(BIG))
    wire.cuts = [1_000_000]
    instead = types.SimpleNamespace(sleep=lambda seconds: s3.put("changed", "big.bin", other))
    monkeypatch.setattr(remote, "time", instead)
    assert local(uri).read_bytes() == other
    assert s3.gets(uri)[-1] is None, "nothing of the old one is in it"


def test_what_has_changed_is_seen_by_the_next_process(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = s3.put("newer", "a.json", b"one")
    first = local(uri)
    s3.put("newer", "a.json", b"two")
    assert local(uri) == first, "a process works on one state"
    monkeypatch.setattr(remote, "_known", {})
    assert local(uri).read_bytes() == b"two"


def test_a_fault_names_the_address(s3: Store) -> None:
    uri = s3.put("faulty", "train/a.json", b"[]")
    s3.put("faulty", "train/images/a.png", b"")
    with pytest.raises(DataError, match=f"^`{uri}` must hold a JSON object"):
        read_coco([Source(image_dir="s3://faulty/train/images", json_file=uri)])


def test_what_is_not_there_is_named(s3: Store) -> None:
    s3.put("there", "a.json", b"{}")
    with pytest.raises(DataError, match=r"`s3://there/b.json` must name an object .* but there is none; correct"):
        local("s3://there/b.json")
    with pytest.raises(DataError, match=r"must be in a bucket that exists, but there is no `absent`"):
        local("s3://absent/b.json")
    with pytest.raises(DataError, match=r"must have the form s3://BUCKET/KEY"):
        local("s3:///b.json")
    with pytest.raises(DataError, match=r"`gs://a/b` must be a local path or begin with s3://"):
        local("gs://a/b")


@pytest.mark.parametrize("key", ["a/../../../outside", "a/..", "a//b", "a/./b", "a/back\\slash", "a/.complete"])
def test_keys_that_leave_the_cache(s3: Store, cache: Path, key: str) -> None:
    bucket = f"keys-{abs(hash(key))}"
    s3.put(bucket, key, b"evil")
    with pytest.raises(DataError, match="has a key that is no path of a file"):
        local(f"s3://{bucket}/a")
    assert left(cache) == []


def test_refusals_and_secrets(s3: Store, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto import settings

    uri = s3.put("closed", "a.json", b"{}")
    monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0.0)
    said = []
    with pytest.raises(
        DataError, match=r"needs credentials, .* \(InvalidAccessKeyId\); set AWS_ACCESS_KEY_ID"
    ) as caught:
        local(uri)
    said.append(str(caught.value))
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DataError, match=r"Partial credentials found in env, missing: AWS_SECRET_ACCESS_KEY") as caught:
        local(uri)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(DataError, match=r"Unable to locate credentials\); set AWS_ACCESS_KEY_ID") as caught:
        local(uri)
    said.append(str(caught.value))
    assert all("\n" not in text and SECRET not in text and "AKIATEST" not in text for text in said)


def test_no_secret_is_written(s3: Store, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="model"):
        local(s3.put("plain", "a/b.json", b"{}"))
    for path in cache.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()
    assert SECRET not in caplog.text


def test_denied_is_told_apart_from_wrong_credentials() -> None:
    from botocore.exceptions import ClientError

    def answer(code: str, status: int) -> Exception:
        row = {"Error": {"Code": code, "Message": "said so."}, "ResponseMetadata": {"HTTPStatusCode": status}}
        return s3_client.of_answer("s3://b/k", ClientError(row, "GetObject"))

    assert "give them s3:GetObject and s3:ListBucket" in str(answer("AccessDenied", 403))
    assert "set AWS_ACCESS_KEY_ID" in str(answer("ExpiredToken", 400))
    assert isinstance(answer("SlowDown", 503), Unreachable)
    assert "answers InvalidObjectState (said so)" in str(answer("InvalidObjectState", 400))


def test_without_an_answer_the_copy_stands(
    s3: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://user:password@127.0.0.1:{free.getsockname()[1]}"
    uri = s3.put("away", "a.json", b"{}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(remote, "ENVIRONMENT", ())  # the store itself went away, not the variable
    found = local(uri)
    monkeypatch.setenv("AWS_ENDPOINT_URL", nobody)
    monkeypatch.setattr(remote, "_known", {})
    assert local(uri) == found
    assert "What it named last is used" in caplog.text
    with pytest.raises(Unreachable, match=r"must be reached, but 127\.0\.0\.1:\d+ does not answer") as caught:
        local("s3://away/other.json")
    assert "password" not in str(caught.value) + caplog.text
    monkeypatch.setenv("AWS_ENDPOINT_URL", "store.example:9000")
    with pytest.raises(DataError, match=r"`AWS_ENDPOINT_URL` must be an address such as"):
        local("s3://away/other.json")


def test_disk_and_limit_are_looked_at_first(
    s3: Store, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3.put("full", "images.tar", pack(tmp_path / "a.tar", {"a.bin": BIG}))
    monkeypatch.setenv("DDETR_CACHE_GB", "0.005")
    with pytest.raises(NoRoom, match=r"takes 8\.4 MB in the cache .* `DDETR_CACHE_GB=0.005` leaves 5 MB .*raise"):
        local(uri)
    monkeypatch.delenv("DDETR_CACHE_GB")
    usage = types.SimpleNamespace(free=6_000_000)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(NoRoom, match=r"takes 8\.4 MB in the cache .* its disk has 6 MB free; free some, or set DDETR"):
        local(uri)
    assert s3.gets(uri) == []
    usage.free = 9_000_000
    assert (local(uri) / "a.bin").read_bytes() == BIG


def test_a_malicious_object_leaves_nothing_behind(s3: Store, tmp_path: Path, cache: Path) -> None:
    uri = s3.put("evil", "images.zip", zipped(tmp_path / "a.zip", {"../outside": b"evil"}))
    with pytest.raises(DataError, match=r"`s3://evil/images.zip` has an entry that leaves its folder: `\.\./outside`"):
        local(uri)
    assert left(cache) == []
    assert not list(cache.rglob("outside"))


def test_boto3_is_an_extra(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    s3_client._made_client.cache_clear()
    with pytest.raises(
        ExtraMissing, match=r"needs boto3, which is not installed here: pip install 'ddetr-automl\[s3\]'"
    ):
        local("s3://b/a.json")
