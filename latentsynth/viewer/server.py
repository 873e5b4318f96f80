"""A server on this machine alone that gives out one page and the files of the cases it shows, and nothing else.

Loopback, a port that the system chooses, a secret in every address, and requests of other pages refused: their ``Origin`` is
foreign, and a name that was pointed here has another ``Host``.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from latentsynth.viewer.collection import Entry

_STATIC = Path(__file__).parent / "static"
_PAGE = {
    "": ("index.html", "text/html; charset=utf-8"),
    "viewer.js": ("viewer.js", "text/javascript; charset=utf-8"),
    "viewer.css": ("viewer.css", "text/css; charset=utf-8"),
    "niivue.umd.js": ("niivue.umd.js", "text/javascript; charset=utf-8"),
}
# NiiVue compiles WebAssembly, runs workers from blobs, and reads its fonts from data addresses.
_POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval' blob:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'"
)


class Viewer(ThreadingHTTPServer):
    """The server; :attr:`address` is what to open.

    Args:
        cases: What it shows.
    """

    daemon_threads = True

    def __init__(self, cases: Sequence[Entry]):
        self.token = secrets.token_urlsafe(16)
        self.files = [entry.files for entry in cases]
        self.listing = json.dumps([_told(n, entry) for n, entry in enumerate(cases)]).encode()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        """Of the page."""
        return f"http://127.0.0.1:{self.server_address[1]}/{self.token}/"


def _told(number: int, entry: Entry) -> dict[str, object]:
    """What the page is told of a case: no path of this machine."""
    ends = [f"files/{number}/{n}/{_plain(file)}" for n, file in enumerate(entry.files)]
    return {
        "name": entry.name,
        "group": entry.group,
        "synthetic": entry.synthetic,
        "channels": list(entry.channels),
        "images": ends[: len(entry.images)],
        "mask": ends[-1] if entry.mask else None,
        "labels": [list(label) for label in entry.labels],
        "beside": entry.beside,
    }


def _plain(file: Path) -> str:
    """A name from which NiiVue knows the format."""
    return "volume.nii.gz" if file.name.endswith(".gz") else "volume.nii"


class _Handler(BaseHTTPRequestHandler):
    server: Viewer

    def do_GET(self) -> None:
        """Answers a request for the page, the list of cases, or a file of one."""
        port = self.server.server_address[1]
        hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        origin = self.headers.get("Origin")
        own = origin is None or origin in {f"http://{host}" for host in hosts}
        _, token, *rest = [*self.path.partition("?")[0].split("/"), ""]
        if self.headers.get("Host") not in hosts or not own or not secrets.compare_digest(token, self.server.token):
            return self._refuse(HTTPStatus.FORBIDDEN)
        rest = [part for part in rest if part]
        asked = "/".join(rest)
        if asked in _PAGE:
            name, kind = _PAGE[asked]
            return self._send((_STATIC / name).read_bytes(), kind)
        if asked == "cases.json":
            return self._send(self.server.listing, "application/json")
        file = self._file(rest)
        if file is None:
            return self._refuse(HTTPStatus.NOT_FOUND)
        try:
            return self._send(file.read_bytes(), "application/octet-stream")
        except OSError:
            return self._refuse(HTTPStatus.NOT_FOUND)

    def _file(self, rest: list[str]) -> Path | None:
        """The file of ``files/CASE/NUMBER/NAME``: found by its numbers, never by a path."""
        if len(rest) != 4 or rest[0] != "files" or not (rest[1].isdecimal() and rest[2].isdecimal()):
            return None
        case, number = int(rest[1]), int(rest[2])
        if case >= len(self.server.files) or number >= len(self.server.files[case]):
            return None
        return self.server.files[case][number]

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: HTTPStatus) -> None:
        self.send_error(status)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (as the base class calls it)
        """Nothing: every slice that is looked at would be a line."""
