"""Where bases come from. A registry on loopback serves an image that the node must pull, lay out and run.

The other sources (a folder named by the configuration, an interpreter of the machine, Debian's source
package) are each tried by the tests of the crate `shoal-image`.
"""

import gzip
import hashlib
import http.server
import io
import json
import shutil
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def layer(entries: dict[str, bytes | None]) -> bytes:
    """Returns an uncompressed layer with these files; None makes a whiteout of the path."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path, data in entries.items():
            folder, _, name = path.rpartition("/")
            info = tarfile.TarInfo(path if data is not None else f"{folder}/.wh.{name}")
            info.size = len(data or b"")
            tar.addfile(info, io.BytesIO(data or b""))
    return out.getvalue()


class Registry:
    """A registry on a loopback port that serves one image of these layers under every tag; no authorisation."""

    def __init__(self, layers: list[bytes]):
        zipped = [gzip.compress(one, 1) for one in layers]
        config = json.dumps({
            "architecture": "amd64", "os": "linux",
            "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "FROM_REGISTRY=yes"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(one) for one in layers]},
        }).encode()  # fmt: skip
        manifest = json.dumps({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(config), "size": len(config)},
            "layers": [
                {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest(one), "size": len(one)} for one in zipped
            ],
        }).encode()  # fmt: skip
        blobs = {digest(one): one for one in [config, *zipped]}
        self.pulled: list[str] = []
        registry = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
                body, kind = b"{}", "application/json"
                last = self.path.rsplit("/", 1)[1]
                if "/manifests/" in self.path:
                    body, kind = manifest, "application/vnd.oci.image.manifest.v1+json"
                elif last in blobs:
                    body, kind = blobs[last], "application/octet-stream"
                    registry.pulled.append(last)
                elif self.path != "/v2/":
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Docker-Content-Digest", digest(body))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def debian_with_python(tmp_path_factory) -> bytes:
    """A tar of a small Debian with Python, as one layer."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is not installed, and the registry's image is made with it")
    file: Path = tmp_path_factory.mktemp("registry") / "root.tar"
    subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", "--include=python3-minimal,python-is-python3,libpython3-stdlib,ca-certificates",
         "bookworm", str(file)],
        check=True, timeout=600, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return file.read_bytes()


def test_pull_from_a_registry(client, tmp_path, unique, debian_with_python):
    """An image of two layers, one with a whiteout, is pulled without a login and runs a function; a second use pulls nothing."""
    registry = Registry([debian_with_python, layer({"etc/mark.txt": unique.encode(), "etc/debian_version": None})])
    try:
        program = tmp_path / "program.py"
        program.write_text(f"""
import os
import modal
image = modal.Image.from_registry("127.0.0.1:{registry.port}/team/python:{unique}")
app = modal.App("registry")
@app.function(image=image)
def f():
    return [open("/etc/mark.txt").read(), os.path.exists("/etc/debian_version"), os.environ.get("FROM_REGISTRY")]
@app.local_entrypoint()
def main():
    print("RESULT", f.remote())
""")
        expected = f"RESULT {[unique, False, 'yes']}"
        assert expected in client.run(program, cwd=tmp_path).ok(600).text()
        assert len(registry.pulled) == 3, "the configuration and two layers, each once"
        assert expected in client.run(program, cwd=tmp_path).ok(120).text()
        assert len(registry.pulled) == 3, "the second run pulls nothing"
    finally:
        registry.close()


def test_missing_image_says_which_and_where_it_was_looked_for(client, tmp_path, unique):
    """A base that no source has fails the build with its name and what was tried."""
    program = tmp_path / "program.py"
    program.write_text(
        f"import modal\napp = modal.App('none', image=modal.Image.from_registry('127.0.0.1:1/none:{unique}'))\n"
        "@app.function()\ndef f():\n    pass\n"
    )
    running = client.run(program, cwd=tmp_path)
    assert running.wait(300) != 0
    assert f"127.0.0.1:1/none:{unique}" in running.text()
