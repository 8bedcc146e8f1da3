"""One connection to the master that is kept open, and one request at a time. The standard library alone."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from typing import NamedTuple, Optional

from . import _native
from ._settings import Settings
from .errors import NotAMaster, SettingError, Unreachable

CONNECT_TIMEOUT_S = 10
#: Longest silence within a transfer.
TRANSFER_TIMEOUT_S = 120
#: Largest JSON answer that is read.
MAX_JSON_BYTES = 1 << 20
#: Largest answer with a model.
MAX_MODEL_BYTES = 4 * _native.MAX_PARAMETERS + _native.MAX_HEADER_BYTES


class Answer(NamedTuple):
    """Status, headers and body of a response."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> object:
        """The body as JSON, None if it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    @property
    def retry_after(self) -> float:
        """Seconds that the server asks to wait; 0 if it does not."""
        try:
            return max(0.0, float(self.headers.get("Retry-After") or 0))
        except ValueError:
            return 0.0


class Link:
    """A connection to one master. Not for several threads at a time."""

    def __init__(self, settings: Settings):
        self._address = settings.address
        self._headers = {"User-Agent": "fl-client", "Accept": "application/json"}
        if settings.token:
            self._headers["Authorization"] = f"Bearer {settings.token}"
        self._context = _tls(settings) if settings.address.https else None
        self._connection: Optional[http.client.HTTPConnection] = None
        #: Whether any answer was one of a master.
        self.is_known = False

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def abort(self) -> None:
        """Ends the request in flight; may be called from another thread."""
        connection = self._connection
        if connection is not None and connection.sock is not None:
            try:
                connection.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def request(self, method, path, body=None, headers=None, timeout=TRANSFER_TIMEOUT_S, limit=MAX_JSON_BYTES) -> Answer:
        """Sends a request and reads the whole answer, of at most `limit` bytes.

        A connection that the master closed while it was idle is replaced once without a word: every call may be
        repeated, since an update counts once.

        Raises:
            Unreachable: no answer, or one that breaks off.
            NotAMaster: an answer that is not HTTP.
        """
        is_fresh = self._connection is None
        try:
            return self._request(method, path, body, headers, timeout, limit)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
            self.close()
            if is_fresh:
                raise self._unreachable(error) from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._unreachable(error) from error
        except BaseException:
            # The rest of an answer must not be taken for that of the next request.
            self.close()
            raise
        try:
            return self._request(method, path, body, headers, timeout, limit)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._unreachable(error) from error
        except BaseException:
            self.close()
            raise

    def _request(self, method, path, body, headers, timeout, limit) -> Answer:
        if self._connection is None:
            self._connection = self._connect()
        connection = self._connection
        connection.sock.settimeout(timeout)
        sent = {**self._headers, **(headers or {})}
        connection.request(method, self._address.path + path, body=body, headers=sent)
        response = connection.getresponse()
        if (response.length or 0) > limit:
            raise NotAMaster(f"{self._address.url}{path} answers with {response.length} bytes, {limit} are expected at most")
        content = response.read(limit + 1) if response.length is None else response.read()
        if len(content) > limit:
            raise NotAMaster(f"{self._address.url}{path} answers with more than {limit} bytes")
        if response.will_close:
            self.close()
        return Answer(response.status, response.headers, content)

    def _connect(self):
        kind = http.client.HTTPSConnection if self._context else http.client.HTTPConnection
        options = {"context": self._context} if self._context else {}
        connection = kind(self._address.host, self._address.port, timeout=CONNECT_TIMEOUT_S, **options)
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        # A vanished master is noticed in a transfer.
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connection

    def _unreachable(self, error):
        url = self._address.url
        if isinstance(error, ssl.SSLCertVerificationError):
            return Unreachable(f"{url}: {error.verify_message}: give the authority that signed it as ca_cert")
        if isinstance(error, ssl.SSLError):
            return Unreachable(f"{url}: no TLS connection ({error.reason or error}): is it http://, or is client_cert needed?")
        if isinstance(error, http.client.BadStatusLine) and not isinstance(error, http.client.RemoteDisconnected):
            if not self.is_known:
                return NotAMaster(f"{url} does not speak HTTP: check the address and port of the master")
        reason = str(error) or type(error).__name__
        return Unreachable(f"no answer from {url} ({reason}): check the address and that the master runs")


def _tls(settings: Settings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca_cert)
    except (OSError, ssl.SSLError) as error:
        raise SettingError(f"ca_cert={settings.ca_cert!r} has no certificates in PEM: {error}") from None
    if settings.ca_cert:
        # On from Python 3.13; an authority of one's own mostly lacks extensions that it asks for. The Rust worker does not.
        context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
    if settings.client_cert:
        try:
            context.load_cert_chain(settings.client_cert)
        except (OSError, ssl.SSLError) as error:
            raise SettingError(
                f"client_cert={settings.client_cert!r} is no certificate and key in PEM: {error}"
            ) from None
    return context
