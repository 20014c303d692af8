"""A file server on 127.0.0.1 that misbehaves on demand; `python server.py FOLDER` starts one.

It answers ranges and gives ETags, as object stores do.
"""
import argparse
import hashlib
import io
import re
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGE = b"<?xml version='1.0'?><Error><Code>BlobNotFound</Code></Error>"


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # the client has gone
            super().handle_error(request, client_address)


class Server:
    """A server of a folder: `with Server(folder) as server` starts and stops it.

    Its behaviour may be changed while it runs. `cut` ends every connection after that many bytes
    of a body. `ranges` False answers ranges with the whole file. `etag` False leaves the ETag out.
    `slow` waits that many seconds for each 64 kB. `first` holds the statuses of the next answers
    (500, ...), after which the server answers normally. `instead` replaces files: bytes by path.
    `soft_404` answers a missing file with a page and status 200. `headers` are added to every
    answer; None removes one. `redirects` sends paths to URLs. `log` has (path, Range header or
    None, status) of every request, and `authorizations` their Authorization headers or None. With a
    `certificate`, a file of PEM with its key, the server speaks https.
    """

    def __init__(self, folder, port=0, certificate=None):
        self.folder = Path(folder)
        self.cut, self.ranges, self.etag, self.slow = None, True, True, 0.0
        self.first, self.instead, self.soft_404, self.headers = [], {}, False, {}
        self.redirects, self.log, self.authorizations = {}, [], []
        self.http = QuietServer(("127.0.0.1", port), self._handler())
        scheme = "http"
        if certificate:
            scheme, context = "https", ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.url = f"{scheme}://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def paths(self):
        """Return the requested paths, in order."""
        return [path for path, _, _ in self.log]

    def _handler(server):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        return Handler

    def answer(self, request):
        path, requested_range = request.path, request.headers.get("Range")
        file = self.folder / path.lstrip("/")
        if path in self.redirects:
            return self.send(request, 302, b"", {"Location": self.redirects[path]})
        if self.first:
            return self.send(request, self.first.pop(0), b"not now", {})
        if path not in self.instead and not file.is_file():
            kind = {"Content-Type": "text/html" if self.soft_404 else "application/xml"}
            return self.send(request, 200 if self.soft_404 else 404, PAGE, kind)
        if path in self.instead:
            size, tag = len(self.instead[path]), f'"{hashlib.md5(self.instead[path]).hexdigest()}"'
            content = io.BytesIO(self.instead[path])
        else:
            size, tag = file.stat().st_size, f'"{file.stat().st_mtime_ns:x}"'
            content = open(file, "rb")  # noqa: SIM115 (closed below)
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        if self.etag:
            headers["ETag"] = tag
        with content:
            version = request.headers.get("If-Range", tag)
            is_same = version in (tag, self.headers.get("Last-Modified"))
            if not (requested_range and self.ranges and is_same):
                return self.send(request, 200, content, headers)
            start = int(re.fullmatch(r"bytes=(\d+)-", requested_range)[1])
            if start >= size:
                return self.send(request, 416, b"", {"Content-Range": f"bytes */{size}"})
            content.seek(start)
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
            headers["Content-Length"] = str(size - start)
            return self.send(request, 206, content, headers)

    def send(self, request, status, body, headers):
        self.log.append((request.path, request.headers.get("Range"), status))
        self.authorizations.append(request.headers.get("Authorization"))
        if isinstance(body, bytes):
            headers = {"Content-Length": str(len(body)), **headers}
            body = io.BytesIO(body)
        headers = {**headers, **self.headers}
        request.send_response(status)
        for name, value in headers.items():
            if value is not None:
                request.send_header(name, value)
        request.end_headers()
        n_left = self.cut
        request.close_connection = n_left is not None or headers["Content-Length"] is None
        try:
            while piece := body.read(2**16 if n_left is None else min(n_left, 2**16)):
                time.sleep(self.slow)
                request.wfile.write(piece)
                n_left = None if n_left is None else n_left - len(piece)
        except OSError:
            request.close_connection = True  # the client has gone


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="the folder to serve")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--cut", type=int, help="end connections after that many bytes of a body")
    parser.add_argument("--no-ranges", action="store_true", help="answer ranges with whole files")
    parser.add_argument("--slow", type=float, default=0.0, help="seconds to wait for each 64 kB")
    options = parser.parse_args()
    with Server(options.folder, options.port) as server:
        server.cut, server.ranges, server.slow = options.cut, not options.no_ranges, options.slow
        print(server.url, flush=True)
        n_printed = 0
        while True:
            time.sleep(0.1)
            for entry in server.log[n_printed:]:
                print(*entry, flush=True)
            n_printed = len(server.log)


if __name__ == "__main__":
    main()
