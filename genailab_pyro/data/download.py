"""Files from the network, kept in a cache folder and held to their checksums."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import pooch
import requests

from genailab_pyro.__about__ import __version__
from genailab_pyro.files import write_whole

FOLDER_VARIABLE = "GENAILAB_PYRO_DATA"


class DownloadError(OSError):
    """A file could not be had, or is not the file that it should be; the message is one line."""


def cache_folder() -> Path:
    """Where downloads are kept: ``$GENAILAB_PYRO_DATA``, or else the user's cache folder."""
    return Path(os.environ.get(FOLDER_VARIABLE) or pooch.os_cache("genailab_pyro")).expanduser()


def download(
    url: str,
    sha256: str | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    filename: str | None = None,
    timeout: float = 30.0,
    progress: bool = True,
) -> Path:
    """Fetch a file once, and hold it to its checksum ever after.

    The file is written under another name until it is complete and checked, so that the folder never holds a
    part of one. Beside it, ``<filename>.record.json`` keeps its address, size and checksum: without
    ``sha256``, the checksum of the first download is the one that every later use has to match. A second call
    reads the file that is there and does not touch the network. Nothing is unpacked or unpickled.

    Args:
        url: Address, http or https.
        sha256: Expected SHA-256 checksum, 64 hexadecimal digits; it overrules the recorded one.
        folder: Where to keep the file; None: ``$GENAILAB_PYRO_DATA``, or else the user's cache folder.
        filename: Name in the folder; None: the last part of the address.
        timeout: Seconds to wait for the connection, and for each next piece of the file.
        progress: Show a progress bar (on standard error).

    Returns:
        Path of the file.

    Raises:
        DownloadError: If the server cannot be reached, answers with an error, is too slow, or sends fewer
            bytes than it declared; if the file has another checksum than expected; or if the name is taken
            by a file from another address.
        ValueError: If the address, the checksum or the file name is not of the form described.

    Examples:
        >>> download("ftp://example.org/counts.h5ad")
        Traceback (most recent call last):
        ...
        ValueError: url should start with http:// or https://, but is 'ftp://example.org/counts.h5ad'
    """
    address = urlsplit(url)
    if address.scheme not in {"http", "https"} or not address.hostname:
        raise ValueError(f"url should start with http:// or https://, but is {url!r}")
    if sha256 is not None and (len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef")):
        raise ValueError(f"sha256 should be 64 hexadecimal digits, but is {sha256!r}")
    name = filename or PurePosixPath(unquote(address.path)).name
    if name in {"", ".", ".."} or Path(name).name != name:
        raise ValueError(f'filename should be a plain name such as "counts.h5ad", but is {name!r}: pass filename=')
    path = (cache_folder() if folder is None else Path(folder).expanduser()) / name
    record = _read_record(path)
    if record and record["url"] != url:
        raise DownloadError(f"{path} was downloaded from {record['url']}, not from {url}: pass another filename=")
    expected = sha256.lower() if sha256 else record.get("sha256")
    if not path.exists():
        _fetch(url, path, expected, timeout, progress)
    actual = pooch.file_hash(str(path), alg="sha256")
    if expected is not None and actual != expected:
        raise DownloadError(_mismatch(path, expected, actual, "delete that file to download it again"))
    if record.get("sha256") != actual:
        _write_record(path, {"url": url, "sha256": actual, "size": path.stat().st_size})
    return path


def _fetch(url: str, path: Path, expected: str | None, timeout: float, progress: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)

    def save(address: str, output: str, _pooch: object) -> None:
        _save(address, output, timeout, progress)
        actual = pooch.file_hash(output, alg="sha256")
        if expected is not None and actual != expected:
            raise DownloadError(_mismatch(path, expected, actual, f"nothing was kept of what {url} sent"))

    with _quiet():
        pooch.retrieve(url, None, fname=path.name, path=path.parent, downloader=save)


def _save(url: str, output: str, timeout: float, progress: bool) -> None:
    responses: list[requests.Response] = []
    fetch = pooch.HTTPDownloader(
        progressbar=progress,
        timeout=timeout,
        # What is checked is the file as it lies on the server, not a version compressed for the way.
        headers={"User-Agent": f"genailab-pyro/{__version__}", "Accept-Encoding": "identity"},
        hooks={"response": lambda response, *args, **kwargs: responses.append(response)},
    )
    try:
        fetch(url, output, None)
    except requests.RequestException as error:
        # The stack below is that of the network library: the message says all that a reader can act on.
        raise DownloadError(f"{url} could not be downloaded: {_reason(error, responses, timeout)}") from None
    finally:
        for response in responses:
            response.close()
    declared, received = _sizes(responses[-1])
    if declared is not None and received != declared:
        raise DownloadError(f"{url} could not be downloaded: {_cut(declared, received)}")


def _reason(error: requests.RequestException, responses: list[requests.Response], timeout: float) -> str:
    cause = error.args[0] if error.args else error
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}; check the address"
    # A time-out amid the file reaches us as a ConnectionError.
    if isinstance(error, requests.Timeout) or "timed out" in str(cause):
        return f"nothing came for {timeout:g} seconds; try again later or raise timeout="
    if isinstance(error, requests.exceptions.ChunkedEncodingError) and responses:
        return _cut(*_sizes(responses[-1]))
    if isinstance(error, requests.ConnectionError):
        kind = type(getattr(cause, "reason", cause)).__name__
        return f"the server could not be reached ({kind}); is there a network?"
    return " ".join(str(error).split())


def _sizes(response: requests.Response) -> tuple[int | None, int]:
    declared = response.headers.get("Content-Length")
    return None if declared is None else int(declared), response.raw.tell()


def _cut(declared: int | None, received: int) -> str:
    of = "" if declared is None else f" of {declared}"
    return f"the connection ended after {received}{of} bytes; try again"


def _mismatch(path: Path, expected: str, actual: str, state: str) -> str:
    return (
        f"{path} should have SHA-256 {expected}, but it is {actual}: {state}, or, if you trust the changed "
        f'file, accept it with sha256="{actual}"'
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what pooch says about hashes, which are kept here."""
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.record.json")


def _read_record(path: Path) -> dict[str, Any]:
    record_path = _record_path(path)
    if not record_path.exists():
        return {}
    try:
        record = json.loads(record_path.read_text(encoding="utf-8"))
        return {"url": str(record["url"]), "sha256": str(record["sha256"])}
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError(
            f"{record_path} should hold the address and checksum of {path.name} as JSON, but does not "
            f"({type(error).__name__}): delete it to record them anew"
        ) from None


def _write_record(path: Path, record: dict[str, Any]) -> None:
    write_whole(_record_path(path), json.dumps(record, indent=2))
