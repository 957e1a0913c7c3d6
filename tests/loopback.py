"""A web server on this machine that serves one file, as well or badly as a test wants."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """An HTTP server; its fields say how it behaves, `requests` lists the ranges asked for and bytes sent."""

    def __init__(self):
        self.payload = b""
        self.supports_range = True
        self.says_length = True
        self.cuts = []  # bytes to send before cutting, request by request; then no more cuts
        self.statuses = []  # errors to answer with, request by request; then none
        self.hang_s = 0.0
        self.shift = 0  # a broken server: begins its ranges this many bytes too late
        self.requests = []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def _handler(server):  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        return Handler

    def answer(self, handler):
        wanted = handler.headers.get("Range")
        time.sleep(self.hang_s)
        if self.statuses:
            self.requests.append((wanted, 0))
            handler.send_error(self.statuses.pop(0))
            return
        start, size = 0, len(self.payload)
        if wanted and self.supports_range:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= size:
                self.requests.append((wanted, 0))
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{size}")
                handler.end_headers()
                return
            start += self.shift
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        else:
            handler.send_response(200)
        if self.says_length:
            handler.send_header("Content-Length", str(size - start))
        handler.end_headers()
        body = self.payload[start:]
        body = body[: self.cuts.pop(0)] if self.cuts else body
        self.requests.append((wanted, len(body)))
        handler.wfile.write(body)
