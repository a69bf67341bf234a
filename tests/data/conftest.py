"""A Grocery Store of 18 photos in the layout of the real one, and a server, a disk and a clock that misbehave."""

from __future__ import annotations

import errno
import io
import multiprocessing
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval_utils.datasets import download

BODY = np.random.default_rng(0).bytes(300_000)

PRODUCE, PACKAGES = ("Fruit/Apple", "Vegetables/Leek"), ("Milk/Oat", "Juice/Plum", "Milk/Soy", "Juice/Pear")


@pytest.fixture
def draw_grocery_store():
    """Writes GroceryStoreDataset below a folder and returns it; every list names one photo of each of six kinds.

    Kinds 0 and 1 are produce, 2 to 5 packages: so 2 and 4 are for learning, 3 and 5 for the test.
    """

    def draw(root):
        folder = root / "GroceryStoreDataset"
        rng = np.random.default_rng(0)
        for split in ("train", "val", "test"):
            lines = []
            for number, kind in enumerate((*PRODUCE, *(f"Packages/{name}" for name in PACKAGES))):
                path = f"{split}/{kind}/{kind.split('/')[-1]}_001.jpg"
                (folder / "dataset" / path).parent.mkdir(parents=True)
                Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8)).save(folder / "dataset" / path)
                lines.append(f"{path}, {number}, {number // 2}\n")
            (folder / "dataset" / f"{split}.txt").write_text("".join(lines))
        return folder

    return draw


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`; how badly is up to the attributes of `server`, set by each test."""

    def do_GET(self):
        server = self.server
        server.seen.append({**self.headers, "path": self.path})
        body = server.files.get(self.path)
        if body is None or server.statuses:
            return self.send_error(server.statuses.pop(0) if server.statuses else 404)
        etag = self.headers.get("If-Range")
        start = int(self.headers.get("Range", "bytes=0-")[len("bytes=") : -1])
        if not server.ranges or (etag and etag != server.etag):
            start = 0
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if server.length:
            self.send_header("Content-Length", str(len(body) - start + server.lie))
        for name, value in (("ETag", server.etag), ("Content-Encoding", server.encoding)):
            if value:
                self.send_header(name, value)
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else server.always_cut
        self.wfile.write(body[start:cut])
        if cut is not None:
            self.wfile.flush()
            server.stall.wait(60)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def running():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def behave(server):
    server.files, server.seen, server.statuses, server.cuts = {"/file": BODY}, [], [], []
    server.ranges, server.length, server.always_cut, server.etag, server.encoding = True, True, None, '"v1"', None
    server.lie = 0  # bytes that the announced length is beside the true one
    server.stall = threading.Event()
    server.stall.set()
    server.url = f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def server(running, monkeypatch):
    """`server.files` at `server.url`; `server.seen` are the headers and paths that were asked for."""
    behave(running)
    running.behave = lambda: behave(running)
    monkeypatch.setattr(download, "PAUSE", 0)
    return running


@pytest.fixture
def fill_disk():
    return filling


@pytest.fixture
def kill():
    return kill_when


def filling(monkeypatch, room):
    """Makes the disk full after `room` bytes."""
    real_open, left = Path.open, [room]

    def full_open(path, mode="r", *args, **kwargs):
        file = real_open(path, mode, *args, **kwargs)
        if "b" not in mode or mode == "rb":
            return file

        class Full(io.BufferedIOBase):
            def write(self, chunk):
                left[0] -= len(chunk)
                if left[0] < 0:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return file.write(chunk)

            def close(self):
                file.close()

        return Full()

    monkeypatch.setattr(Path, "open", full_open)


def kill_when(condition, call):
    """Runs `call` in a process of its own and kills it as soon as `condition()` holds."""
    child = multiprocessing.get_context("fork").Process(target=call)  # forked: importing torch anew would take seconds
    child.start()
    end = time.monotonic() + 50
    while not condition() and child.is_alive() and time.monotonic() < end:
        time.sleep(0.01)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
