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
_KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
# NiiVue compiles WebAssembly, runs workers from blobs, and reads its fonts from data addresses.
_POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval' blob:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'"
)


class LocalServer(ThreadingHTTPServer):
    """A server of one page; :attr:`address` is what to open.

    Args:
        handler: Answers requests.
        page: The page's file among the static ones, and the other ones that it may ask for.
    """

    daemon_threads = True

    def __init__(self, handler: type[LocalHandler], page: Sequence[str]):
        self.token = secrets.token_urlsafe(16)
        self.page = {"": page[0], **{name: name for name in page[1:]}}
        super().__init__(("127.0.0.1", 0), handler)

    @property
    def address(self) -> str:
        """Of the page."""
        return f"http://127.0.0.1:{self.server_address[1]}/{self.token}/"


class LocalHandler(BaseHTTPRequestHandler):
    """Refuses whoever is not the page, and gives out the page."""

    server: LocalServer

    def asked(self) -> list[str] | None:
        """The parts of the address below the secret; None where the request is of somebody else, and was refused."""
        port = self.server.server_address[1]
        hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        origin = self.headers.get("Origin")
        own = origin is None or origin in {f"http://{host}" for host in hosts}
        _, token, *rest = [*self.path.partition("?")[0].split("/"), ""]
        if self.headers.get("Host") not in hosts or not own or not secrets.compare_digest(token, self.server.token):
            self.refuse(HTTPStatus.FORBIDDEN)
            return None
        return [part for part in rest if part]

    def sent_page(self, parts: Sequence[str]) -> bool:
        """Whether a file of the page was asked for, which was sent."""
        name = self.server.page.get("/".join(parts))
        if name is None:
            return False
        self.send((_STATIC / name).read_bytes(), f"{_KINDS[Path(name).suffix]}; charset=utf-8")
        return True

    def send_file(self, file: Path | None) -> None:
        """A volume, or that there is none."""
        try:
            body = None if file is None else file.read_bytes()
        except OSError:
            body = None
        if body is None:
            self.refuse(HTTPStatus.NOT_FOUND)
        else:
            self.send(body, "application/octet-stream")

    def send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        """An answer."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: HTTPStatus) -> None:
        """An answer that there is none."""
        self.send_error(status)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (as the base class calls it)
        """Nothing: every slice that is looked at would be a line."""


class Viewer(LocalServer):
    """The server of ``latentsynth view``.

    Args:
        cases: What it shows.
    """

    def __init__(self, cases: Sequence[Entry]):
        self.files = [entry.files for entry in cases]
        self.listing = json.dumps([_told(n, entry) for n, entry in enumerate(cases)]).encode()
        super().__init__(_Handler, ("index.html", "viewer.js", "viewer.css", "niivue.umd.js"))


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
        "why": entry.why,
    }


def _plain(file: Path) -> str:
    """A name from which NiiVue knows the format."""
    return "volume.nii.gz" if file.name.endswith(".gz") else "volume.nii"


class _Handler(LocalHandler):
    server: Viewer

    def do_GET(self) -> None:
        """Answers a request for the page, the list of cases, or a file of one."""
        parts = self.asked()
        if parts is None or self.sent_page(parts):
            return
        if parts == ["cases.json"]:
            self.send(self.server.listing, "application/json")
        else:
            self.send_file(self._file(parts))

    def _file(self, parts: list[str]) -> Path | None:
        """The file of ``files/CASE/NUMBER/NAME``: found by its numbers, never by a path."""
        if len(parts) != 4 or parts[0] != "files" or not (parts[1].isdecimal() and parts[2].isdecimal()):
            return None
        case, number = int(parts[1]), int(parts[2])
        if case >= len(self.server.files) or number >= len(self.server.files[case]):
            return None
        return self.server.files[case][number]
