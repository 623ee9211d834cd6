"""A DICOMweb server as medqa needs it: bounded, and without its words in our logs and errors."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pydicom
import requests
from dicomweb_client.web import DICOMwebClient
from pydicom import Dataset

from medqa.catalogue import MAX_FILES
from medqa.dicom.files import reading
from medqa.errors import UsageError
from medqa.limits import limits

__all__ = ["Series", "Server", "ServerError", "checked", "connect"]

_UID = re.compile(r"(?=.{1,64}$)(0|[1-9]\d*)(\.(0|[1-9]\d*))+")
_TIMEOUT = (10.0, 120.0)  # seconds to connect, and between two parts of an answer
_CHUNK = 2**20
_PAGE = 200  # matches of one query
_STUDIES = 10_000  # of one search
_JSON_BYTES = 2**28  # of metadata: 2000 slices have 20 MB
_ANY = 'multipart/related; type="application/dicom"; transfer-syntax=*'


class ServerError(UsageError):
    """The server does not answer, refuses, or answers what is no DICOMweb."""


@dataclass(frozen=True)
class Series:
    """A series on the server.

    Parameters
    ----------
    study, uid
        Study and Series Instance UID.
    instances
        How many instances the server has of it.
    """

    study: str
    uid: str
    instances: int


class _Budget:
    """Bytes that may still come; `part` of one instance, `whole` of one answer."""

    def __init__(self) -> None:
        self.expect(0, 0)

    def expect(self, part: int, whole: int) -> None:
        """Set both anew, for the next answer."""
        self._each, self._part, self._whole = part, part, whole

    def next_part(self) -> None:
        """Begin an instance."""
        self._part = self._each

    def spend(self, size: int) -> None:
        """Count what came."""
        self._part -= size
        self._whole -= size
        # One more chunk may hold the end of one instance and the beginning of the next.
        if self._part < -_CHUNK or self._whole < 0:
            raise _TooLargeError


class _TooLargeError(Exception):
    pass


class Server:
    """A DICOMweb server; `connect` makes it.

    Parameters
    ----------
    url
        Of the service, without the part that names studies.
    session
        With credentials, if it needs any.
    """

    def __init__(self, url: str, session: requests.Session) -> None:
        self.url = url.rstrip("/")
        self._session = session
        self._budget = _Budget()
        session.max_redirects = 0  # nobody sends us elsewhere
        self._client = DICOMwebClient(self.url, session=session, chunk_size=_CHUNK)
        self._client._timeout = _TIMEOUT
        # The client keeps its own hooks only; without a bound an answer could fill the memory.
        session.hooks["response"] = [self._bound]
        # The next round tries again; and both of them log URLs, with the UIDs in them.
        self._client.set_http_retry_params(retry=False)
        for name in ("dicomweb_client", "retrying"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)

    def series(self, uid: str) -> Series:
        """Find a series by its UID.

        Raises
        ------
        ServerError
            There is none, or more than one.
        """
        found = list(self._series({"SeriesInstanceUID": checked(uid)}))
        if len(found) != 1:
            raise ServerError(
                self.url, f"has {len(found) or 'no'} series of this UID", "check the UID"
            )
        return found[0][1]

    def series_of(self, study: str) -> list[tuple[str, Series]]:
        """Find the series of a study, each with its modality."""
        return list(self._series({"StudyInstanceUID": checked(study)}))

    def studies(self, since: date | None) -> list[str]:
        """Find the studies from a date on, by their UIDs."""
        filters = {} if since is None else {"StudyDate": f"{since:%Y%m%d}-"}
        found: list[str] = []
        for page in range(_STUDIES // _PAGE):
            answer = self._asked(
                partial(
                    self._client.search_for_studies,
                    search_filters=filters,
                    limit=_PAGE,
                    offset=page * _PAGE,
                )
            )
            found += [_text(one, "StudyInstanceUID") for one in self._datasets(answer)]
            if len(answer) < _PAGE:
                return list(dict.fromkeys(map(checked, found)))
        raise ServerError(self.url, f"has more than {_STUDIES} studies", "name a later date")

    def metadata(self, series: Series) -> list[Dataset]:
        """Fetch the headers of a series."""
        answer = self._asked(
            partial(self._client.retrieve_series_metadata, series.study, series.uid)
        )
        return self._datasets(answer)

    def instances(self, series: Series) -> Iterator[bytes]:
        """Fetch the instances of a series as they are stored, one after another.

        Raises
        ------
        ServerError
            They are more, or larger, than may be read.
        """
        if series.instances > MAX_FILES:
            raise ServerError(self.url, f"has more than {MAX_FILES} instances", "use fewer")
        bound = limits()
        with self._asking():
            self._budget.expect(bound.file_bytes, 2 * bound.image_bytes)
            url = f"{self.url}/studies/{checked(series.study)}/series/{checked(series.uid)}"
            answer = self._session.get(url, headers={"Accept": _ANY}, stream=True, timeout=_TIMEOUT)
            answer.raise_for_status()
            # The client's public functions parse every instance, of whatever depth, and write it
            # anew: what is judged are the bytes as they are stored.
            parts = self._client._decode_multipart_message(answer, stream=True)
            for number, part in enumerate(parts, start=1):
                if number > MAX_FILES:
                    raise _TooLargeError
                yield bytes(part)
                self._budget.next_part()

    def store(self, paths: Sequence[Path]) -> bool:
        """Store objects; return whether the server has each of them now.

        Raises
        ------
        ServerError
            The server does not answer.
        """
        objects = [pydicom.dcmread(path) for path in paths]
        answer = self._asked(partial(self._client.store_instances, objects))
        kept = {
            str(one.get("ReferencedSOPInstanceUID"))
            for one in answer.get("ReferencedSOPSequence") or []
        }
        return all(str(one.SOPInstanceUID) in kept for one in objects)

    def _series(self, filters: dict[str, str]) -> Iterator[tuple[str, Series]]:
        answer = self._asked(
            partial(
                self._client.search_for_series,
                search_filters=filters,
                fields=["NumberOfSeriesRelatedInstances"],
                limit=_STUDIES,
            )
        )
        for ds in self._datasets(answer):
            with reading(self.url, ServerError):
                count = int(ds.NumberOfSeriesRelatedInstances)
            study, uid = (checked(_text(ds, f"{of}InstanceUID")) for of in ("Study", "Series"))
            yield _text(ds, "Modality"), Series(study, uid, count)

    def _asked(self, ask: Any) -> Any:
        with self._asking():
            self._budget.expect(_JSON_BYTES, _JSON_BYTES)
            return ask()

    def _datasets(self, answer: Any) -> list[Dataset]:
        """Read an answer in JSON (PS3.18 F.2), without what lies elsewhere."""
        with reading(self.url, ServerError):
            return [Dataset.from_json(one, lambda *_: None) for one in answer]

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn what goes wrong with a server into our error, which repeats none of its words."""
        try:
            yield
        except requests.HTTPError as error:
            status = 0 if error.response is None else error.response.status_code
            mend = (
                "check MEDQA_DICOMWEB_USER and MEDQA_DICOMWEB_PASSWORD, or MEDQA_DICOMWEB_TOKEN"
                if status in (401, 403)
                else "check the URL and the server's log"
            )
            raise ServerError(self.url, f"answers {status}", mend) from None
        except requests.exceptions.SSLError:
            mend = "name the file of its authority in REQUESTS_CA_BUNDLE"
            raise ServerError(self.url, "has a certificate that is not trusted", mend) from None
        except requests.RequestException as error:
            words = f"does not answer ({type(error).__name__})"
            raise ServerError(self.url, words, "check the URL and the network") from None
        except _TooLargeError:
            mend = "raise MEDQA_MAX_FILE_GIB or MEDQA_MAX_IMAGE_GIB where this is meant"
            raise ServerError(self.url, "sends more than is read", mend) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ServerError(self.url, "answers what is no DICOMweb", "check the URL") from None

    def _bound(self, answer: requests.Response, *_: Any, **__: Any) -> None:
        """Count what an answer brings while it is read."""
        read = answer.iter_content

        def counted(*arguments: Any, **options: Any) -> Iterator[Any]:
            with answer:  # closed too where it is too large to be read to its end
                for chunk in read(*arguments, **options):
                    self._budget.spend(len(chunk))
                    yield chunk

        answer.iter_content = counted  # type: ignore[method-assign]


def connect(url: str) -> Server:
    """Connect to a server with the credentials of the environment.

    ``MEDQA_DICOMWEB_USER`` and ``MEDQA_DICOMWEB_PASSWORD`` are for basic authentication,
    ``MEDQA_DICOMWEB_TOKEN`` is for a bearer token. Certificates are always checked, against the
    authorities of the system or of ``REQUESTS_CA_BUNDLE``.

    Raises
    ------
    UsageError
        The URL is none, holds credentials, or would carry them readable over the network.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError("URL", "is no http or https URL", "such as https://pacs/dicom-web")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(
            "URL", "holds credentials or a query", "set MEDQA_DICOMWEB_USER and _PASSWORD"
        )
    names = ("USER", "PASSWORD", "TOKEN")
    user, password, token = (os.environ.get(f"MEDQA_DICOMWEB_{name}") for name in names)
    if bool(user) != bool(password) or (user and token):
        mend = "set a user and a password, or a token"
        raise UsageError("MEDQA_DICOMWEB", "are half set, or twice", mend)
    if (user or token) and parts.scheme == "http" and not _is_here(parts.hostname):
        raise UsageError("URL", "would carry the password readable over the network", "use https")
    session = requests.Session()
    if user and password:
        session.auth = (user, password)
    if token:
        session.auth = _Bearer(token)
    return Server(url, session)


class _Bearer(requests.auth.AuthBase):
    """A token, in place of whatever a .netrc file says."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def checked(uid: str) -> str:
    """Return a UID as PS3.5 9.1 has it, which does no harm in a URL.

    Raises
    ------
    UsageError
        It is none.
    """
    if not _UID.fullmatch(uid):
        raise UsageError("UID", "is no DICOM UID", "give digits and dots, at most 64")
    return uid


def _text(ds: Dataset, keyword: str) -> str:
    return str(ds.get(keyword) or "").strip()
