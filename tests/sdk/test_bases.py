"""Where bases come from. A registry on loopback serves an image that the node must pull, lay out and run, to anybody or
to those with a password only; a Python of the machine is added to it.

The other sources (a folder named by the configuration, an interpreter of the machine, Debian's source
package) are each tried by the tests of the crate `shoal-image`.
"""

import base64
import gzip
import hashlib
import http.server
import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest
from harness import Client, Node, wait_for, wait_until_none
from imaging import programs_of_this_machine

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


def programs(files: dict[str, Path]) -> bytes:
    """Returns an uncompressed layer of programs."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path, file in files.items():
            tar.add(file, path)
    return out.getvalue()


class Registry:
    """A registry on a loopback port that serves one image of these layers under every tag: to anybody, or by HTTP's basic
    authentication to one user."""

    def __init__(self, layers: list[bytes], user: str | None = None, password: str = ""):
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
        known = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode() if user else None
        registry = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
                body, kind = b"{}", "application/json"
                if known and self.headers.get("Authorization") != known:
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="a test"')
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
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


def test_a_registry_that_wants_a_password(client, tmp_path, unique):
    """`from_registry(secret=…)` shows the secret's user and password; without them, or with wrong ones, the build says
    which registry refused and which variables the secret needs. The password is in no log and in no image."""
    programs_of_this_machine(tmp_path / "root")
    files = {str(file.relative_to(tmp_path / "root")): file for file in (tmp_path / "root").rglob("*") if file.is_file()}
    registry = Registry([programs(files), layer({"etc/mark.txt": unique.encode()})], "robot", "hush-hush")
    try:
        for number, (secret, good) in enumerate([
            ("None", False),
            ('modal.Secret.from_dict({"REGISTRY_USERNAME": "robot", "REGISTRY_PASSWORD": "wrong-word"})', False),
            ('modal.Secret.from_dict({"REGISTRY_USERNAME": "robot", "REGISTRY_PASSWORD": "hush-hush"})', True),
        ]):  # fmt: skip
            (tmp_path / "program.py").write_text(f"""
import modal
image = modal.Image.from_registry("127.0.0.1:{registry.port}/private/shell:{unique}-{number}", secret={secret})
app = modal.App("private")
with modal.enable_output(), app.run():
    image.run_commands("cat /etc/mark.txt; env").build(app)
""")
            running = client.start("program.py", cwd=tmp_path)
            code, text = running.wait(120), running.text()
            assert "hush-hush" not in text and "wrong-word" not in text.replace("program.py", ""), text
            if good:
                assert code == 0 and f"{unique}" in text and "REGISTRY_PASSWORD" not in text, text
            else:
                assert code != 0 and f"registry 127.0.0.1:{registry.port} does not let" in text, text
                assert "REGISTRY_USERNAME and REGISTRY_PASSWORD" in text, text
    finally:
        registry.close()


def test_add_python(client, tmp_path, unique):
    """`add_python` puts an interpreter of this machine under /usr/local of an image that has none, pip included, and the
    image's own programs are left as they are. One that nobody has is refused with what to do."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is not installed, and the image is made with it")
    for version in ("3.12", "3.15"):
        folder = tmp_path / version
        folder.mkdir()
        (folder / "program.py").write_text(f"""
import modal
image = modal.Image.from_registry("debian:bookworm-slim", add_python="{version}").run_commands("python -m pip --version # {unique}")
app = modal.App("added")
@app.function(image=image)
def f():
    import os, ssl, sqlite3, sys
    return [list(sys.version_info[:2]), sys.prefix, os.path.realpath(sys.executable).startswith("/usr/local/bin/"),
            os.path.exists("/usr/bin/python3"), "/usr/share/terminfo" in os.environ["TERMINFO_DIRS"]]
@app.local_entrypoint()
def main():
    print("RESULT", f.remote())
""")
    out = client.run(tmp_path / "3.12/program.py", cwd=tmp_path / "3.12").ok(600).text()
    assert f"RESULT {[[3, 12], '/usr/local', True, False, True]}" in out
    missing = client.run(tmp_path / "3.15/program.py", cwd=tmp_path / "3.15")
    assert missing.wait(120) != 0
    assert "no Python 3.15 to add" in missing.text() and "images.python_dirs" in missing.text()


def test_what_cannot_be_had_is_refused_with_a_sentence(client, tmp_path):
    """micromamba's image, a GPU in a build, a way of logging in that Shoal does not know: one sentence each, at once."""
    for image, parts in {
        "modal.Image.micromamba()": ["mambaorg/micromamba", "no source has the base image", "made here: only python"],
        'modal.Image.debian_slim().pip_install("six", gpu="H100")': ["H100", "no GPU", "gpu="],
        'modal.Image.from_aws_ecr("127.0.0.1:1/x:1", secret=modal.Secret.from_dict({'
        '"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "c"}))': ["Amazon", "user name AWS"],
    }.items():
        program = tmp_path / "program.py"
        program.write_text(f"import modal\napp = modal.App('refused', image={image})\n@app.function()\ndef f():\n    pass\n")
        running = client.run(program, cwd=tmp_path)
        assert running.wait(120) != 0
        for part in parts:
            assert part in running.text(), running.text()


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


def works_for(folder: Path) -> list[int]:
    """Returns the processes of the machine that make bases in a folder or below."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"SHOAL_WORKS_IN={folder}/".encode() in file.read_bytes():
                found.append(int(file.parent.name))
        except OSError:
            pass  # It has ended.
    return found


def mounts_below(folder: Path) -> list[str]:
    """Returns where something is mounted below a folder."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if point.startswith(f"{folder}/")]


def test_a_node_that_is_killed_while_it_makes_a_base_leaves_nothing_behind(tmp_path):
    """A `kill -9` in the middle of mmdebstrap: the next start ends its processes, takes its mounts away and empties its folder,
    the machine's own /sys and /dev stay as they were, and a build that is stopped leaves as little."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is not installed")
    node = Node(tmp_path / "data", config="[images]\nregistries = false\n")
    folder = node.data / "images" / "bases"
    own = [sorted(os.listdir(place)) for place in ("/sys", "/sys/fs/cgroup", "/dev")]
    node.start()
    client = Client(node, node.create_token(), tmp_path / "home")
    try:
        (tmp_path / "program.py").write_text("""
import modal
app = modal.App(image=modal.Image.debian_slim())
@app.function()
def nothing():
    pass
""")
        client.run(tmp_path / "program.py")
        wait_for("mounts of mmdebstrap", lambda: mounts_below(folder), 500)
        before, old = set(works_for(folder)), set(folder.iterdir())
        assert before and old
        node.wait_reborn(node.kill_child())
        assert not before & set(works_for(folder)) and not old & set(folder.iterdir())
        assert not [point for point in mounts_below(folder) if any(point.startswith(str(former)) for former in old)]
        # Its client still waits, so it is begun anew.
        wait_for("the next mmdebstrap", lambda: works_for(folder), 120)
    finally:
        client.close()
        node.stop()
    wait_until_none("processes of a build that was stopped", lambda: works_for(folder), 10)
    assert not mounts_below(folder) and not list(folder.iterdir())
    assert [sorted(os.listdir(place)) for place in ("/sys", "/sys/fs/cgroup", "/dev")] == own
