"""File systems behind URLs: how each is opened, and which of its errors no waiting mends."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from runtime.exits import BadInput

_S3 = ("s3", "s3a")
_MAY_PASS = (408, 409, 425, 429)  # statuses 4xx of what may be asked for again


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system that reads `url`, and the place of `url` in it, without a slash at its end. One of S3
    tries everything once: who asks again says so.

    Raises BadInput where no such kind of URL is known, or the package that reads it is missing.
    """
    import fsspec

    of_s3 = url.partition("://")[0] in _S3
    with _refusals_told(url):
        system, place = fsspec.core.url_to_fs(url, **(_s3_options() if of_s3 else {}))
    if of_s3:
        system.retries = 1
    return system, place.rstrip("/")


def open_file(url: str, mode: str = "rb", **how: Any) -> Any:
    """The file behind `url`, opened as `fsspec.open` does. Raises FileNotFoundError, BadInput where the storage refuses
    it or cannot be spoken to, and whatever else goes wrong as the storage says it."""
    import fsspec

    with _refusals_told(url):
        return fsspec.open(url, mode, **how).open()


def _s3_options() -> dict[str, Any]:
    """What S3 is opened with beside what the user has set for it in fsspec's configuration.

    botocore would try 5 times and s3fs, reading, each of these 25 times: half an hour without a word where a server
    hangs. This file system is shared with nobody, who might rely on that. A small file is one GET: the HEAD that s3fs
    would send before it is not told why it is refused.
    """
    from fsspec.config import conf

    given = {name: value for kind in _S3 for name, value in conf.get(kind, {}).items()}
    once = {"retries": {"total_max_attempts": 1}}
    return {
        "skip_instance_cache": True,
        "max_concurrency": 1,
        "config_kwargs": once | given.get("config_kwargs", {}),
    }


@contextmanager
def _refusals_told(url: str) -> Iterator[None]:
    """Raise BadInput, one line, where the storage refuses what is done inside; let every other error pass."""
    try:
        yield
    except Exception as error:
        if (refused := refusal(error)) is not None:
            raise BadInput(f"{url} cannot be read: {refused}") from error
        raise


def refusal(error: Exception) -> str | None:
    """What a storage says, on one line, where asking again is of no use: refused or missing credentials, a missing
    bucket or package, a setting or request that makes no sense. None for a file that is not there and for what may
    pass."""
    answer: dict[str, Any] = getattr(error.__cause__, "response", None) or {}  # s3fs raises from botocore's errors
    code = answer.get("Error", {}).get("Code")
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return said if code == "NoSuchBucket" else None
    if isinstance(error, TimeoutError):  # S3's has the status of a bad request
        return None
    if code == "AccessDenied":
        return f"{said} (also said of a file that is not there, to who may not list the bucket)"
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", getattr(error, "status", None))
    refused = isinstance(status, int) and 400 <= status < 500 and status not in _MAY_PASS
    return said if refused or isinstance(error, PermissionError) or _makes_no_sense(error) else None


def is_unreachable(error: BaseException | None) -> bool:
    """Whether nothing was ever connected to: the name of the storage does not resolve, or nobody listens there."""
    while error is not None:
        if isinstance(error, socket.gaierror | ConnectionRefusedError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _makes_no_sense(error: Exception) -> bool:
    """Whether a library is missing, or gives up before it asks the storage, for what the user has set."""
    if isinstance(error, ImportError):
        return True
    if isinstance(error, ValueError):
        return not isinstance(error, json.JSONDecodeError | UnicodeError)  # these are of an answer
    botocore = sys.modules.get("botocore.exceptions")
    if botocore is None or not isinstance(error, botocore.BotoCoreError):
        return False
    of_the_way = (botocore.HTTPClientError, botocore.ConnectionError, botocore.IncompleteReadError)
    of_answers = (botocore.ChecksumError, botocore.FlexibleChecksumError)
    of_who_lends = (botocore.CredentialRetrievalError, botocore.MetadataRetrievalError, botocore.TokenRetrievalError)
    return not isinstance(error, of_the_way + of_answers + of_who_lends)
