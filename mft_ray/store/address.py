"""Addresses of run folders in object stores, such as ``s3://bucket/runs/mine``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from mft_ray.errors import UserError

# Options behind ``?``, by scheme.
OPTIONS = {"s3": ("endpoint_override", "region", "scheme"), "gs": ("anonymous", "endpoint_override", "scheme")}
# A library's own tries are few: they are made again here, and said.
_CONNECT_S, _REQUEST_S, _RETRY_S, _TRIES = 10.0, 60.0, 2.0, 2
_SECRET = re.compile(r"key|secret|token|password|credential", re.IGNORECASE)


@dataclass(frozen=True)
class Address:
    """Where a run folder lies.

    Attributes:
        scheme: ``s3`` or ``gs``.
        bucket: name of the bucket.
        path: name of the folder in it, without a slash at either end.
        options: what stands behind ``?``, by name.
    """

    scheme: str
    bucket: str
    path: str
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str, setting: str = "run.dir") -> Address:
        """Read an address.

        Args:
            text: as a person gives it.
            setting: that names it.

        Raises:
            UserError: it is none, or has a key or a secret in it.
        """
        parts = urlsplit(text)
        allowed = OPTIONS.get(parts.scheme)
        if allowed is None:
            raise UserError(
                f"{setting} is {_shown(text)}, and {parts.scheme}:// is no object store that is known here. Give "
                f"{' or '.join(f'{scheme}://BUCKET/FOLDER' for scheme in OPTIONS)}, or a folder."
            )
        given = parse_qsl(parts.query, keep_blank_values=True)
        if "@" in parts.netloc or any(_SECRET.search(name) for name, _ in given):
            raise UserError(
                f"{setting} is {_shown(text)}, with a key or a secret in it, which would be saved in config.yaml and "
                "printed. Give the address alone, and credentials as the store's own tools have them: for s3 in "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile (AWS_PROFILE); for gs in the file that "
                "GOOGLE_APPLICATION_CREDENTIALS names."
            )
        names = [name for name, _ in given]
        wrong = [name for name in names if name not in allowed or names.count(name) > 1]
        folder = parts.path.strip("/")
        steps = folder.split("/")
        if wrong or parts.fragment or not parts.netloc or not folder or {"", ".", ".."} & set(steps):
            reason = f"{wrong[0]} is no option of it, or given twice" if wrong else "it names no folder of a bucket"
            raise UserError(
                f"{setting} is {_shown(text)}, and {reason}. Give {parts.scheme}://BUCKET/FOLDER, and behind a ? at "
                f"its end nothing but {', '.join(allowed)}."
            )
        return cls(parts.scheme, parts.netloc, folder, tuple(sorted(given)))

    def __str__(self) -> str:
        options = f"?{urlencode(self.options, safe=':/')}" if self.options else ""
        return f"{self.scheme}://{self.bucket}/{self.path}{options}"

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]

    @property
    def place(self) -> str:
        """Bucket and folder, as file systems of pyarrow name it."""
        return f"{self.bucket}/{self.path}"

    def filesystem(self, environment: Mapping[str, str] = os.environ) -> Any:
        """Return the store as a file system of pyarrow; nothing is asked of it yet, but a bucket's region.

        Args:
            environment: of which the endpoint and the region are taken, where the address has none.
        """
        from pyarrow import fs  # half a second, which who has no store need not wait

        options: dict[str, Any] = dict(self.options)
        if self.scheme == "gs":
            options["anonymous"] = options.get("anonymous", "false").lower() == "true"
            return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=_RETRY_S), **options)
        endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
        if endpoint:
            options.setdefault("endpoint_override", endpoint.rstrip("/"))
        region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
        if region:
            options.setdefault("region", region)
        if not options.keys() & {"region", "endpoint_override"}:
            with suppress(OSError):  # what is wrong is told by the first request
                options["region"] = fs.resolve_s3_region(self.bucket)
        return fs.S3FileSystem(
            connect_timeout=_CONNECT_S,
            request_timeout=_REQUEST_S,
            allow_delayed_open=True,  # a small file is then one request
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_TRIES),
            **options,
        )


def is_address(given: object) -> bool:
    """Say whether a text is meant as an address, of whatever kind, and not as a path.

    Args:
        given: text or path.
    """
    return isinstance(given, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", given) is not None


def _shown(text: str) -> str:
    """Return an address as it may be printed."""
    parts = urlsplit(text)
    host = parts.netloc.rpartition("@")[2]
    query = "&".join(
        f"{name}={'***' if _SECRET.search(name) else value}"
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
    )
    return f"{parts.scheme}://{'***@' if '@' in parts.netloc else ''}{host}{parts.path}{'?' if query else ''}{query}"
