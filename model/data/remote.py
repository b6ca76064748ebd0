"""Objects of S3, or of any store that speaks like it: what an address names, and its bytes on this disk. Knows no
archives and no images."""

import glob
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from functools import partial
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from model.data.archives import is_inside
from model.data.s3_client import SCHEME, TOGETHER, TornError, answer, client_for, status, told
from model.data.store import cache_root, require_room, write_whole
from model.errors import DataError, Unreachable
from model.progress import Progress, start

log = logging.getLogger(__name__)

RETRIES = 8
"""Times that a download is gone on with before it is given up; counted anew whenever a byte arrives."""
PAUSE_S, LONGEST_S = 0.5, 30.0
"""Before the first of these times; doubled for each, up to the longest."""
CHUNK = 1 << 16
"""Bytes read at a time; what came of a chunk when the connection broke is lost."""
ENVIRONMENT = "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_PROFILE"
"""What one address may mean different things by."""


class Changed(Exception):  # noqa: N818
    """The object is no longer the one that was found."""


class Object(NamedTuple):
    name: str
    """Below the address, or the last part of it where that is the object's own."""
    size: int
    """Bytes."""
    etag: str
    """The store's name for this content, with its quotes."""


class Found(NamedTuple):
    """What an address names: one object, or those of a folder or a pattern, by name."""

    uri: str
    bucket: str
    root: str
    """Key of the object, or what the keys of all objects begin with."""
    single: bool
    objects: tuple[Object, ...]

    @property
    def digest(self) -> str:
        """Of address, names, sizes and contents."""
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()[:24]

    @property
    def path(self) -> Path:
        """Below the folder that it is fetched into, so that names on disk tell where it is from."""
        return Path(self.bucket, self.root)

    def only(self, wanted: Callable[[str], bool]) -> "Found":
        return self._replace(objects=tuple(one for one in self.objects if wanted(one.name)))

    def key(self, one: Object) -> str:
        return self.root if self.single else self.root + one.name


_known: dict[tuple[str | None, ...], Found] = {}


def find(uri: str, *, again: bool = False) -> Found:
    """What `uri` names; asked once by a process, unless `again`. Raises DataError for what is not there or may not be
    read. While the store does not answer, what it said last on this node stands."""
    where = (uri, *map(os.environ.get, ENVIRONMENT))
    if again or where not in _known:
        name = hashlib.sha256(repr(where).encode()).hexdigest()[:24]
        _known[where] = _asked(uri, cache_root() / "s3" / f"{name}.json")
    return _known[where]


def _asked(uri: str, remembered: Path) -> Found:
    try:
        found = _look(uri)
    except Unreachable as error:
        if not remembered.is_file():
            raise
        log.warning("%s What it named last is used.", error)
        uri, bucket, root, single, objects = json.loads(remembered.read_text(encoding="utf-8"))
        return Found(uri, bucket, root, single, tuple(Object(*one) for one in objects))
    write_whole(remembered, json.dumps(found))
    return found


def _look(uri: str) -> Found:
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    client = client_for(uri)
    with told(uri, client):
        head = _head(client, bucket, key) if key and not key.endswith("/") else None
        if head is not None:
            one = Object(PurePosixPath(key).name, head["ContentLength"], head["ETag"])
            return _checked(Found(uri, bucket, key, True, (one,)))
        root, pattern = f"{key.rstrip('/')}/" if key else "", None
        if glob.has_magic(key):
            root = "".join(f"{part}/" for part in takewhile(lambda part: not glob.has_magic(part), key.split("/")))
            pattern = key.removeprefix(root)
        objects = sorted(one for one in _listed(client, bucket, root) if pattern is None or _fits(one.name, pattern))
    if not objects:
        raise DataError(f"`{uri}` must name an object or a folder of some, but there is none; correct bucket and key.")
    return _checked(Found(uri, bucket, root, False, tuple(objects)))


def _head(client: Any, bucket: str, key: str) -> dict[str, Any] | None:
    """None where there is no such object. A refusal, which has no words here, is left to the next request to tell."""
    from botocore.exceptions import ClientError

    try:
        return answer(lambda: client.head_object(Bucket=bucket, Key=key), "ETag", "ContentLength")
    except ClientError as error:
        if status(error) == 404:
            return None
        client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
        raise


def _listed(client: Any, bucket: str, root: str) -> Iterator[Object]:
    ask = partial(client.list_objects_v2, Bucket=bucket, Prefix=root)
    while True:
        page = answer(ask, "IsTruncated")
        for row in page.get("Contents", ()):
            if not row["Key"].endswith("/"):  # what consoles make to show an empty folder
                yield Object(row["Key"].removeprefix(root), row["Size"], row["ETag"])
        if not page["IsTruncated"]:
            return
        ask = partial(ask, ContinuationToken=page["NextContinuationToken"])


def _fits(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and PurePosixPath(name).match(pattern)


def _checked(found: Found) -> Found:
    """Keys are any text; those that are no path of a file here are refused."""
    for one in found.objects:
        parts = f"{found.bucket}/{found.key(one)}".split("/")
        if not all(part and part != "." and is_inside(part) for part in parts):
            raise DataError(
                f"`{found.uri}` has a key that is no path of a file: `{found.key(one)}`; rename the object."
            )
    return found


def fetch(found: Found, folder: Path, *, beside: int = 0) -> None:
    """Downloads into `folder` what is not there yet; a file that is there in part is gone on with. Raises Changed when
    the store has something else by now, Unreachable when the connection is lost too often, NoRoom when the disk has no
    room for what is missing and `beside` bytes more."""
    paths = {one: folder / found.bucket / found.key(one) for one in found.objects}
    there = sum(min(one.size, path.stat().st_size) for one, path in paths.items() if path.is_file())
    total = sum(one.size for one in found.objects)
    require_room(total - there + beside, f"downloading `{found.uri}` takes")
    client = client_for(found.uri)
    counting = start(f"downloading {PurePosixPath(found.root).name or found.bucket}", total / 1e6, "MB", there / 1e6)
    try:
        with told(found.uri, client):
            if found.single:
                download = _Download(client, found, found.objects[0], counting)
                download.into(paths[found.objects[0]])
            else:
                _fetch_many(client, found, paths, counting)
    finally:
        counting.close()


def _fetch_many(client: Any, found: Found, paths: dict[Object, Path], counting: Progress) -> None:
    over = threading.Event()
    with ThreadPoolExecutor(TOGETHER) as pool:
        try:
            asked = {
                pool.submit(_Download(client, found, one, over=over).into, path): one
                for one, path in paths.items()
                if not (path.is_file() and path.stat().st_size == one.size)
            }
            for done in as_completed(asked):
                done.result()
                counting.advance(asked[done].size / 1e6)
        finally:
            over.set()
            pool.shutdown(cancel_futures=True)


class _Download:
    """One object on its way."""

    def __init__(
        self,
        client: Any,
        found: Found,
        one: Object,
        counting: Progress | None = None,
        over: threading.Event | None = None,
    ) -> None:
        self._client, self._one, self._counting, self._over = client, one, counting, over
        self._where = {"Bucket": found.bucket, "Key": found.key(one)}
        self._uri = f"{SCHEME}{found.bucket}/{found.key(one)}"
        self._failures = 0

    def into(self, path: Path) -> None:
        from botocore import exceptions as aws
        from urllib3.exceptions import HTTPError

        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            if file.tell() > self._one.size:
                file.truncate(0)
            while (have := os.fstat(file.fileno()).st_size) < self._one.size:
                try:
                    self._go_on(file, have)
                except (
                    aws.HTTPClientError, aws.ConnectionError, aws.IncompleteReadError, HTTPError, ConnectionError,
                    TimeoutError,
                ) as error:  # fmt: skip
                    self._wait(file.tell(), error)
                except aws.FlexibleChecksumError as error:
                    file.truncate(0)
                    self._wait(0, error)
                except aws.ClientError as error:
                    if status(error) in (404, 412):
                        raise Changed from error
                    raise

    def _go_on(self, file: Any, have: int) -> None:
        rest = {"Range": f"bytes={have}-"} if have else {}
        asked = partial(self._client.get_object, **self._where, IfMatch=self._one.etag, **rest)
        found = answer(asked, "ETag", tries=1)
        with closing(found["Body"]) as content:
            if found["ETag"] != self._one.etag:
                raise Changed
            if have and found["ResponseMetadata"]["HTTPStatusCode"] != 206:  # a store that knows no ranges
                file.truncate(0)
            for part in content.iter_chunks(CHUNK):
                if self._over is not None and self._over.is_set():
                    raise Changed  # told to nobody: another download failed, or the user gave up
                file.write(part)
                self._failures = 0
                if self._counting is not None:
                    self._counting.advance(len(part) / 1e6)
        if file.tell() < self._one.size:
            raise TornError("less than all")

    def _wait(self, have: int, error: Exception) -> None:
        """Before the next try. Raises Unreachable when there was one too many."""
        self._failures += 1
        if self._failures > RETRIES:
            raise Unreachable(
                f"`{self._uri}` must be downloaded whole, but the connection was lost {self._failures} times in a row "
                f"({type(error).__name__}) at {have / 1e6:.1f} of {self._one.size / 1e6:.1f} MB; start again when the "
                "store answers: it goes on from there."
            ) from error
        if self._counting is not None:
            self._counting.advance(0, "connection lost, trying again")
        time.sleep(min(LONGEST_S, PAUSE_S * 2 ** (self._failures - 1)))
