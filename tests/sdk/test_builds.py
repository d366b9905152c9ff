"""Builds as such: joined and left, forced, said once; what the node lends them and what files they keep."""

import re
import signal
import textwrap

import pytest
from harness import Client, Node, node_environment
from imaging import outcome, program, programs_of_this_machine, run, steps

pytestmark = pytest.mark.timeout(600)


def test_a_build_goes_on_when_its_client_dies_and_another_joins(client, tmp_path, unique):
    """The second client gets all lines, those included that were said before it came, and the step runs once."""
    image = f'modal.Image.debian_slim().run_commands("echo begin {unique}; date +%N > /when; sleep 8; echo end {unique}")'
    # A build that nobody waits for is left alone for some seconds only: the second client has done by then what takes it long.
    held = """
    if go := os.environ.get("GO"):
        import time
        print("loaded", flush=True)
        while not os.path.exists(go):
            time.sleep(0.02)
    """
    path, go = program(tmp_path / "left", image, 'return open("/when").read()', before=held), tmp_path / "go"
    joining = client.run(path, cwd=path.parent, environment={"GO": str(go)})
    joining.wait_line("^loaded", 60)
    first = client.run(path, cwd=path.parent)
    first.wait_line(f"^begin {unique}", 300)
    first.process.send_signal(signal.SIGKILL)
    first.wait(10)
    go.touch()
    second, out = outcome(joining)
    lines = out.splitlines()
    assert lines.count(f"begin {unique}") == 1 and lines.count(f"end {unique}") == 1
    assert len(steps(out)) == 1, "it is the same build"
    third, out = run(client, path)
    assert third == second and steps(out) == [], "and its result is known"


def test_lines_come_once_to_a_program_that_names_an_image_twice(client, tmp_path, unique):
    """Each function's image is an object of its own, so the client follows one build three times; people read it once."""
    one = f'modal.Image.debian_slim().run_commands("for i in 1 2 3; do echo line $i of {unique}; sleep 1; done")'
    folder = tmp_path / "twice"
    folder.mkdir()
    (folder / "program.py").write_text(
        "import modal\napp = modal.App('twice')\n"
        + "".join(f"@app.function(image={one})\ndef f{n}():\n    return {n}\n" for n in (1, 2, 3))
        + "@app.local_entrypoint()\ndef main():\n    print('RESULT', [f1.remote(), f2.remote(), f3.remote()])\n"
    )
    out = client.run(folder / "program.py", cwd=folder).ok(300).text()
    assert "RESULT [1, 2, 3]" in out
    for number in (1, 2, 3):
        assert out.splitlines().count(f"line {number} of {unique}") == 1, out


def test_force_and_ignore_the_cache(client, tmp_path, unique):
    """`MODAL_FORCE_BUILD` builds again and replaces what is known; `MODAL_IGNORE_CACHE` builds again and leaves it."""
    path = program(
        tmp_path / "force",
        f'modal.Image.from_scratch().dockerfile_commands("COPY --from=python:3.11.12-slim-bookworm / /")'
        f'.run_commands("date +%s%N > /when # {unique}").env({{"PATH": "/usr/local/bin:/usr/bin:/bin"}})',
        'return open("/when").read()',
    )
    first, out = run(client, path)
    assert len(steps(out)) == 1
    ignoring, out = run(client, path, MODAL_IGNORE_CACHE="1")
    assert ignoring != first and len(steps(out)) == 1
    again, out = run(client, path)
    assert again == first and steps(out) == [], "what was known is known as before"
    forced, out = run(client, path, MODAL_FORCE_BUILD="1")
    assert forced not in (first, ignoring) and len(steps(out)) == 1
    again, out = run(client, path)
    assert again == forced and steps(out) == [], "what was known is replaced"


# Makes files of every kind below a folder, and describes them. Both run in the image's own Python.
FILES = r'''
import os, socket, stat, struct, sys

def make(top):
    at = lambda name: os.path.join(os.fsencode(top), name)
    os.makedirs(at(b"dir"))
    def file(name, data=b"x"):
        with open(at(name), "wb") as out:
            out.write(data)
    for mode in range(0o10000):
        if mode % 1093 == 7 or mode in (0, 0o777, 0o4755, 0o2755, 0o1777, 0o7777):
            file(b"mode-%04o" % mode); os.chmod(at(b"mode-%04o" % mode), mode)
    for mode in (0o1777, 0o2750, 0o500, 0o0):
        os.mkdir(at(b"dir-%04o" % mode)); os.chmod(at(b"dir-%04o" % mode), mode)
    for uid, gid in ((1, 2), (65534, 65534), (4000000000, 3000000000)):
        file(b"owner-%d" % uid); os.lchown(at(b"owner-%d" % uid), uid, gid)
    for name in (b"\xff\xfe\x80", b"new\nline", b"  blank ", b"-dash", b"a\\b", b"\xc3\xa9", b"'\"$*", b".hidden", b"\x01\x7f", b"n" * 255):
        file(b"name-" [: 5 * (len(name) < 250)] + name, name)
    deep = b"/".join([b"d" * 100] * 6)
    os.makedirs(at(deep)); file(deep + b"/leaf")
    file(b"one"); os.link(at(b"one"), at(b"two")); os.link(at(b"one"), at(b"dir/three"))
    os.symlink(b"one", at(b"link")); os.symlink(b"/no\xff/such", at(b"dangling")); os.symlink(b"l" * 4000, at(b"long")); os.symlink(b".", at(b"self"))
    os.lchown(at(b"link"), 7, 8)
    os.mkfifo(at(b"fifo"), 0o620)
    for number, ns in enumerate((0, 1, 999999999, 981173106123456789, 4_000_000_000_000_000_005)):
        file(b"time-%d" % number); os.utime(at(b"time-%d" % number), ns=(ns, ns))
    os.utime(at(b"link"), ns=(5, 1234567890123456789), follow_symlinks=False)
    file(b"empty", b""); file(b"large", bytes(range(256)) * 9000)
    with open(at(b"sparse"), "wb") as out:
        out.truncate(3 << 20); out.seek(1 << 20); out.write(b"middle")
    # Text alone: the sandbox's archive leaves out attributes of other bytes.
    for name, value in (("user.colour", b"teal"), ("user.pair", b"a=b c")):
        os.setxattr(at(b"one"), name, value)
    os.utime(at(b"dir"), ns=(0, 1111111111000000222))

def describe(top):
    found, numbers = [], {}
    for folder, folders, files in os.walk(os.fsencode(top)):
        for name in folders + files:
            path = os.path.join(folder, name); s = os.lstat(path)
            kind = stat.S_IFMT(s.st_mode)
            # Times are kept to the nearest second.
            row = [path[len(os.fsencode(top)):].hex(), oct(s.st_mode), s.st_uid, s.st_gid, (s.st_mtime_ns + 500_000_000) // 10**9]
            if kind == stat.S_IFLNK:
                row.append(os.readlink(path).hex()[:200])
            if kind == stat.S_IFREG:
                import hashlib
                row += [s.st_size, s.st_nlink, hashlib.sha256(open(path, "rb").read()).hexdigest()[:16]]
                row.append(sorted((n, os.getxattr(path, n).hex()) for n in os.listxattr(path) if n.startswith("user.")))
                numbers.setdefault(s.st_ino, []).append(row[0])
            found.append(row)
    return sorted(found) + sorted(sorted(names) for names in numbers.values() if len(names) > 1)
'''


def test_files_come_out_as_they_went_in(client, tmp_path):
    """Every mode, owner, kind, link, time (to the second) and attribute (of text), in names of any bytes: as a step saw them,
    so do the function, a function of the build, and who reads a COPY of them."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "files.py").write_text(FILES)
    script = "import json, files; files.make('/kept'); json.dump(files.describe('/kept'), open('/seen.json', 'w'))"
    image = f"""(
        modal.Image.debian_slim().add_local_file("files.py", "/root/files.py", copy=True)
        .run_commands({("cd /root && python -c " + chr(34) + script + chr(34))!r})
        .run_function(again)
        .dockerfile_commands("COPY --from=base /kept /copied/kept")
    )"""
    before = """
    def again():
        import sys
        sys.path.insert(0, "/root")
        import files
        json.dump(files.describe("/kept"), open("/again.json", "w"))
    """
    body = """
    import sys
    sys.path.insert(0, "/root")
    import files
    seen, here = json.load(open("/seen.json")), json.loads(json.dumps(files.describe("/kept")))
    copied = json.loads(json.dumps(files.describe("/copied/kept")))
    differ = lambda other: [pair for pair in zip(seen, other) if pair[0] != pair[1]][:5] + [len(seen) - len(other)]
    return [len(seen), differ(here), differ(json.load(open("/again.json"))), differ(copied)]
    """
    (count, here, again, copied), _ = run(client, program(folder, image, body, before=before))
    assert count > 50
    assert (here, again, copied) == ([0], [0], [0])


def test_what_was_compiled_in_a_build_is_good_in_a_container(client, tmp_path, unique):
    """Python takes a compiled file only when it names its source's very second: else each start would compile anew."""
    script = "import os, time, py_compile; os.makedirs('/lib/mine'); os.chdir('/lib/mine'); " + (
        f"[(open(f'm{{n}}.py', 'w').write(f'x = {{n}}  # {unique}'), py_compile.compile(f'm{{n}}.py'), time.sleep(0.07)) for n in range(20)]"
    )
    image = f"modal.Image.debian_slim().run_commands({('python -c ' + chr(34) + script + chr(34))!r})"
    body = """
    import glob, struct
    stale = []
    for compiled in glob.glob("/lib/mine/__pycache__/*.pyc"):
        source = compiled.replace("__pycache__/", "").split(".")[0] + ".py"
        flags, second, size = struct.unpack("<III", open(compiled, "rb").read(16)[4:])
        if (flags, second, size) != (0, int(os.stat(source).st_mtime), os.stat(source).st_size):
            stale.append(source)
    return [len(glob.glob("/lib/mine/__pycache__/*.pyc")), stale]
    """
    assert run(client, program(tmp_path / "compiled", image, body))[0] == [20, []]


def test_what_the_node_lends_to_builds(tmp_path, unique):
    """Certificates, DNS, proxies, mirrors and variables of the node's configuration reach the commands of a build and are
    not in the image; a base that the configuration names is taken from the machine's own folder."""
    programs_of_this_machine(tmp_path / "base")
    (tmp_path / "bundle.pem").write_text(f"# certificates of {unique}\n")
    node = Node(
        tmp_path / "data",
        config=textwrap.dedent(f"""
        dns = ["192.0.2.53"]
        [images]
        ca_bundle = "{tmp_path}/bundle.pem"
        registries = false
        bases = {{ "local/*" = "{tmp_path}/base" }}
        [images.build.egress]
        http_proxy = "http://proxy.example:3128"
        no_proxy = "localhost,.example"
        apt_proxy = "http://cache.example:3142"
        python_index = "https://index.example/simple"
        npm = "https://npm.example"
        conda = "https://conda.example"
        env = {{ GOPROXY = "https://go.example" }}
        """),
        environment={"SHOAL_IMAGES__CA_BUNDLE": str(tmp_path / "bundle.pem")},
    )
    node.start()
    client = Client(node, node.create_token(), tmp_path / "home")
    try:
        (tmp_path / "program.py").write_text(f"""
import modal
image = (
    modal.Image.from_registry("local/{unique}:1")
    .run_commands("env | sort; cat $SSL_CERT_FILE $WGETRC $APT_CONFIG /etc/resolv.conf")
    .dockerfile_commands("RUN --network=none echo then; ls -a / /etc; env | sort > /env")
)
app = modal.App("lent")
with modal.enable_output(), app.run():
    image.build(app)
""")
        out = client.start("program.py", cwd=tmp_path).ok(120).text()
        for part in [
            f"# certificates of {unique}", "ca_certificate = /__shoal/ca.pem", 'Acquire::http::Proxy "http://cache.example:3142";',
            "nameserver 192.0.2.53", "http_proxy=http://proxy.example:3128", "HTTP_PROXY=http://proxy.example:3128",
            "no_proxy=localhost,.example", "PIP_INDEX_URL=https://index.example/simple", "UV_DEFAULT_INDEX=https://index.example/simple",
            "NPM_CONFIG_REGISTRY=https://npm.example", "CONDA_CHANNEL_ALIAS=https://conda.example", "GOPROXY=https://go.example",
            "PIP_CERT=/__shoal/ca.pem", "GIT_SSL_CAINFO=/__shoal/ca.pem",
        ]:  # fmt: skip
            assert part in out, f"{part!r} is not in:\n{out}"
        assert "no source has" not in out
    finally:
        client.close()
        node.stop()


def test_functions_trust_what_the_node_trusts(client, node, tmp_path):
    """The node's certificates reach a function's container, as a file that is not the image's."""
    if "SHOAL_IMAGES__CA_BUNDLE" not in node_environment():
        pytest.skip("this machine trusts nothing but what its images trust")
    body = """
    return [os.environ["SSL_CERT_FILE"], "BEGIN CERTIFICATE" in open(os.environ["SSL_CERT_FILE"]).read(), os.path.exists("/image/ca")]
    """
    image = 'modal.Image.debian_slim().run_commands("mkdir /image; test ! -e /__shoal/ca.pem || cp -r /__shoal /image/seen; rm -rf /image/seen")'
    assert run(client, program(tmp_path / "trust", image, body))[0] == ["/__shoal/ca.pem", True, False]
