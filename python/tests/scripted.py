"""A master that does what a test tells it to: well-formed answers, and hostile ones."""

import http.server
import json
import ssl
import threading
import time
import urllib.parse


class Answer:
    """An answer to `POST /update`."""

    def __init__(self, status=200, code=None, headers=None, delay_s=0.0):
        self.status, self.code, self.headers, self.delay_s = status, code, headers or {}, delay_s


class ScriptedMaster:
    """Serves one model and answers updates by a script; once it is used up, the task is "stop".

    Attributes:
        calls: (time, method, path, headers) of each request.
        updates: the bodies of updates.
        held: whether `/task` keeps its reader waiting, as a master without work does.
    """

    def __init__(self, model, answers, tasks=None, token=None, tls=None, hang_up=False):
        self.model, self.answers, self.tasks = model, list(answers), tasks
        self.token, self.hang_up = token, hang_up
        self.calls, self.updates, self.evaluations = [], [], []
        self.held = False
        self.released = threading.Event()
        self.in_upload = threading.Event()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.server.daemon_threads = True
        scheme = "http"
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls / "server.pem")
            if (tls / "ca.pem").exists():
                context.load_verify_locations(tls / "ca.pem")
                context.verify_mode = ssl.CERT_REQUIRED
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def paths(self, method="POST"):
        return [urllib.parse.urlsplit(path).path for _, name, path, _ in self.calls if name == method]

    @property
    def round(self):
        return len(self.updates)

    def task(self):
        if self.tasks:
            return self.tasks.pop(0)
        action = "train" if self.answers else "stop"
        return {"action": action, "round": self.round, "etag": f'"{self.round}"', "bits": 4}

    def handler(master):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def begin(self):
                master.calls.append((time.monotonic(), self.command, self.path, dict(self.headers)))
                if master.token and self.headers.get("Authorization") != f"Bearer {master.token}":
                    self.problem(401, "unauthorized")
                    return False
                return True

            def reply(self, status, body, headers=None, kind="application/json"):
                body = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
                # Without a word: the client finds out at its next request.
                self.close_connection |= master.hang_up

            def problem(self, status, code, headers=None):
                body = {"status": "error", "code": code, "msg": f"a test says {code}", "global_round": master.round}
                self.reply(status, body, headers)

            def do_GET(self):
                if not self.begin():
                    return
                path = urllib.parse.urlsplit(self.path)
                if path.path == "/task":
                    if master.held:
                        master.released.wait(30)
                    self.reply(200, master.task())
                elif path.path == "/global" and "min_round" not in path.query:
                    file = master.model.replace(b'"round":"0"', b'"round":"%d"' % min(master.round, 9))
                    self.reply(200, file, {"FL-Round": str(min(master.round, 9))}, "application/octet-stream")
                elif path.path == "/global":
                    self.problem(503, "overloaded")
                else:
                    self.problem(404, "not_found")

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if not self.begin():
                    return
                if self.path == "/evaluation":
                    master.evaluations.append(json.loads(body))
                    self.reply(200, {"status": "ok"})
                    return
                answer = master.answers.pop(0) if master.answers else Answer(503, "overloaded")
                master.updates.append(body)
                master.in_upload.set()
                time.sleep(answer.delay_s)
                if answer.status == 200:
                    ack = {"status": "ok", "aggregated": True, "global_round": master.round, "duplicate": False}
                    self.reply(200, ack, answer.headers)
                else:
                    self.problem(answer.status, answer.code, answer.headers)

        return Handler
