"""Orthanc's REST API, as far as medqa needs it."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from medqa.errors import UsageError

__all__ = ["Orthanc", "OrthancError"]

_SECONDS = 60.0  # for an answer to begin, as Orthanc's own HttpTimeout
_CHUNK = 2**20


class OrthancError(UsageError):
    """Orthanc cannot be reached, or does not do what it is asked; it may later."""


class Orthanc:
    """An Orthanc server.

    Parameters
    ----------
    url
        Such as ``https://orthanc.hospital.example:8042``; without user and password.
    login
        User and password, where it wants them.
    transport
        What carries the requests; None is the network.

    Raises
    ------
    UsageError
        The address is none.
    """

    def __init__(
        self,
        url: str,
        login: tuple[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            # Not shown: it may hold a password.
            raise UsageError(
                "address of Orthanc",
                "is not http://HOST[:PORT] or https://HOST[:PORT]",
                "user and password come from MEDQA_ORTHANC_USER and MEDQA_ORTHANC_PASSWORD",
            )
        self.url = url.rstrip("/")
        self._client = httpx.Client(
            base_url=self.url, auth=login, timeout=_SECONDS, transport=transport
        )

    def __enter__(self) -> Orthanc:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def get(self, path: str, **parameters: int | str) -> Any:
        """Return the JSON at a path; None where Orthanc has nothing there.

        Raises
        ------
        OrthancError
            It cannot be reached, or refuses.
        """
        answer = self._send("GET", path, params=parameters)
        try:
            return None if answer.status_code == 404 else answer.json()
        except ValueError as error:
            raise OrthancError(
                self.url, "does not answer as Orthanc", "check its address"
            ) from error

    def instance(self, instance: str) -> Iterator[bytes]:
        """Yield the DICOM file of an instance in pieces.

        Raises
        ------
        OrthancError
            It cannot be reached, or has it no more.
        """
        try:
            with self._client.stream("GET", f"/instances/{instance}/file") as answer:
                if answer.status_code != 200:
                    raise self._refused("GET", answer)
                yield from answer.iter_bytes(_CHUNK)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def lookup(self, uid: str, level: Literal["Study", "Instance"] = "Instance") -> str | None:
        """Return Orthanc's id of what has this DICOM UID; None where it has no such.

        Raises
        ------
        OrthancError
            It cannot be reached, or refuses.
        """
        found = self._send("POST", "/tools/lookup", content=uid.encode()).json()
        return next((str(one["ID"]) for one in found if one["Type"] == level), None)

    def upload(self, content: bytes) -> None:
        """Store a DICOM object; one that is there already stays as it is.

        Raises
        ------
        OrthancError
            It cannot be reached, or refuses, as with a full disk.
        """
        answer = self._send("POST", "/instances", content=content)
        if answer.status_code != 200 or answer.json()["Status"] not in ("Success", "AlreadyStored"):
            raise self._refused("POST", answer)

    def mark(self, series: str, number: int, value: str) -> None:
        """Set a metadata of a series, whose earlier value is lost.

        Raises
        ------
        OrthancError
            It cannot be reached, or refuses.
        """
        path = f"/series/{series}/metadata/{number}"
        before = self._send("GET", path)
        if before.status_code == 200 and before.text == value:
            return
        # Where Orthanc checks revisions, it wants to be told which value is replaced.
        headers = {"If-Match": before.headers["ETag"]} if "ETag" in before.headers else {}
        answer = self._send("PUT", path, content=value.encode(), headers=headers)
        if answer.status_code != 200:
            raise self._refused("PUT", answer)

    def label(self, series: str, prefix: str, name: str) -> None:
        """Give a series a label, the only one with its prefix; where this version has labels.

        Raises
        ------
        OrthancError
            It cannot be reached, or refuses.
        """
        if not (self.get("/system") or {}).get("HasLabels"):  # since Orthanc 1.12.0
            return
        path = f"/series/{series}/labels"
        for old in self.get(path) or ():
            if old.startswith(prefix) and old != prefix + name:
                self._send("DELETE", f"{path}/{old}")
        answer = self._send("PUT", f"{path}/{prefix}{name}")
        if answer.status_code != 200:
            raise self._refused("PUT", answer)

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            answer = self._client.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if answer.status_code not in (200, 404):
            raise self._refused(method, answer)
        return answer

    def _unreachable(self, error: httpx.HTTPError) -> OrthancError:
        return OrthancError(
            self.url, f"cannot be reached ({type(error).__name__})", "check that Orthanc runs"
        )

    def _refused(self, method: str, answer: httpx.Response) -> OrthancError:
        kind = answer.request.url.path.split("/")[1]  # what follows are ids
        mend = (
            "set MEDQA_ORTHANC_USER and MEDQA_ORTHANC_PASSWORD"
            if answer.status_code in (401, 403)
            else "see Orthanc's log"
        )
        return OrthancError(self.url, f"answers {answer.status_code} to {method} /{kind}", mend)
