"""Images: what each method of the client does to a container, what a failing step says, what is cached.

Each test makes a program of its own (imaging.py), runs it in a process of its own and looks at the output.
A unique marker in a command makes an image that no run has seen.
"""

import re

import pytest
from imaging import outcome, program, run, steps

pytestmark = pytest.mark.timeout(600)


@pytest.mark.slow
def test_debian_slim(client, tmp_path):
    """`debian_slim` is a Debian with the asked-for Python, pip, and no trace of the machine that built it."""
    body = """
    import platform, subprocess, sys
    pip = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, text=True)
    return [platform.python_version(), open("/etc/os-release").read(), pip.stdout, sys.prefix]
    """
    (version, release, pip, prefix), _ = run(client, program(tmp_path / "slim", 'modal.Image.debian_slim("3.11")', body))
    assert version.startswith("3.11.") and prefix == "/usr/local"
    assert "Debian" in release and pip.startswith("pip ")


@pytest.mark.slow
def test_apt_install(client, tmp_path):
    """`apt_install` installs Debian packages with what they need."""
    path = program(
        tmp_path / "apt",
        'modal.Image.debian_slim().apt_install("jq")',
        "import subprocess; return subprocess.run(['jq', '-n', '1+1'], capture_output=True, text=True).stdout.strip()",
    )
    assert run(client, path)[0] == "2"


def test_run_commands_env_and_workdir(client, tmp_path):
    """`run_commands` changes files; `env` and `workdir` hold for later steps and for the function; quoting survives."""
    image = (
        'modal.Image.debian_slim().env({"FRUIT": "a pear", "PRICE": "$HOME/it\'s"}).workdir("/data/deep er")'
        '.run_commands("echo \\"$FRUIT\\" > here.txt", "cat here.txt | tr a-z A-Z >> here.txt; ln -s here.txt link")'
    )
    body = 'return [os.getcwd(), os.environ["FRUIT"], os.environ["PRICE"], open("link").read()]'
    (folder, fruit, price, text), _ = run(client, program(tmp_path / "commands", image, body))
    assert (folder, fruit, price) == ("/data/deep er", "a pear", "$HOME/it's")
    assert text == "a pear\nA PEAR\n"


def test_files_of_a_step_keep_all_that_is_said_of_them(client, tmp_path):
    """A RUN's layer keeps modes, owners, setuid bits, links, times to the nanosecond, extended attributes and names of any
    bytes, and its deletions."""
    attributes = {"user.text": b"text", "user.bytes": bytes(range(256)), "user.none": b"", "user.line": b"a\nb=c"}
    setting = f"""
import os
for name, value in {attributes!r}.items():
    os.setxattr("/kept/a", name, value)
open(b"/kept/\\xff\\xfe \\n", "w").close()
os.utime("/kept/a", ns=(1, 981173106_123456789))
os.utime("/kept/c", ns=(1, 1_000_000_001), follow_symlinks=False)
"""
    # In one command: a link to a file of an earlier layer is cut by a change, here as in any overlay.
    image = (
        "modal.Image.debian_slim().run_commands("
        '"mkdir /kept && cd /kept && echo x > a && ln a b && ln -s a c && chown 1234:4321 a && chmod 4711 a '
        f"&& python -c 'exec(bytes.fromhex(\\\"{setting.encode().hex()}\\\"))'\", "
        '"touch /kept/gone && rm -r /usr/local/include", "rm /kept/gone", "touch -d @-1 /kept")'
    )
    body = """
    s = os.stat("/kept/a")
    times = [os.lstat(path).st_mtime_ns for path in ("/kept/a", "/kept/c", "/kept")]
    attributes = {name: os.getxattr("/kept/a", name).hex() for name in os.listxattr("/kept/a")}
    return [oct(s.st_mode), s.st_uid, s.st_gid, s.st_nlink, s.st_ino == os.stat("/kept/b").st_ino, os.readlink("/kept/c"),
            [name.hex() for name in sorted(os.listdir(b"/kept"))], os.path.exists("/usr/local/include"), times, attributes]
    """
    result, _ = run(client, program(tmp_path / "attributes", image, body))
    names = [name.hex() for name in (b"a", b"b", b"c", b"\xff\xfe \n")]
    assert result[:8] == ["0o104711", 1234, 4321, 2, True, "a", names, False]
    assert result[8] == [981173106_123456789, 1_000_000_001, -1_000_000_000]
    assert result[9] == {name: value.hex() for name, value in attributes.items()}


def test_dockerfile_commands(client, tmp_path):
    """COPY, ARG, ENV with variables, a heredoc and the exec form, by the same interpreter."""
    folder = tmp_path / "dockerfile"
    (folder / "tree/sub").mkdir(parents=True)
    (folder / "tree/sub/file.txt").write_text("from the context\n")
    image = (
        "modal.Image.debian_slim().dockerfile_commands("
        '"ENV A=1 B=two", "ENV C=${A}-$B", "COPY tree /copied", "RUN [\\"sh\\", \\"-c\\", \\"echo exec $C > /exec.txt\\"]", '
        '"RUN <<EOF", "echo one > /heredoc.txt", "echo two >> /heredoc.txt", "EOF", context_dir=".")'
    )
    body = 'return [open(p).read() for p in ("/copied/sub/file.txt", "/exec.txt", "/heredoc.txt")] + [os.environ["C"]]'
    result, _ = run(client, program(folder, image, body))
    assert result == ["from the context\n", "exec 1-two\n", "one\ntwo\n", "1-two"]


@pytest.mark.parametrize("copy", [False, True])
def test_add_local(client, tmp_path, copy):
    """`add_local_file`, `_dir` and `_python_source`, mounted at the start (copy=False) or built in (copy=True)."""
    folder = tmp_path / f"local-{copy}"
    (folder / "data/sub").mkdir(parents=True)
    (folder / "data/a.txt").write_text("A")
    (folder / "data/sub/b.txt").write_text("B")
    (folder / "one.txt").write_text("1")
    (folder / "mine").mkdir()
    (folder / "mine/__init__.py").write_text("COLOUR = 'teal'\n")
    image = (
        f'modal.Image.debian_slim().add_local_file("one.txt", "/etc/one.txt", copy={copy})'
        f'.add_local_dir("data", "/root/data", copy={copy}).add_local_python_source("mine", copy={copy})'
    )
    body = """
    import mine
    return [open(p).read() for p in ("/etc/one.txt", "/root/data/a.txt", "/root/data/sub/b.txt")] + [
        mine.COLOUR, os.path.exists("/etc/passwd")]
    """
    assert run(client, program(folder, image, body))[0] == ["1", "A", "B", "teal", True]


def test_failing_step_says_which_why_and_what_it_printed(client, tmp_path, unique):
    """A failing RUN ends the program; the message has the command, its exit code and its last lines."""
    path = program(tmp_path / "failing", f'modal.Image.debian_slim().run_commands("echo some words of {unique}; exit 23")')
    running = client.run(path, cwd=path.parent)
    assert running.wait(300) != 0
    error = running.text("stderr") + running.text("stdout")
    assert f"some words of {unique}" in error and "23" in error and "exit 23" in error
    assert "ImageBuildError" in error or "Image build" in error, error


def test_failing_step_by_the_api(token, sdk, unique):
    """The exception is ImageBuildError and its text alone says all three."""
    app = sdk.App(unique)
    image = sdk.Image.debian_slim().run_commands(f"echo words of {unique}; false; exit 7")
    with app.run(), pytest.raises(sdk.exception.ImageBuildError) as caught:
        image.build(app)
    text = str(caught.value)
    assert f"words of {unique}" in text and "exit 7" in text and re.search(r"\b7\b", text)


def test_same_program_runs_no_step_again(client, tmp_path, unique):
    """From another folder, another app and another process, with a `from_dict` secret: no RUN at all."""
    image = (
        f'modal.Image.debian_slim().run_commands("echo first {unique}")'
        '.run_commands("echo second $WORD > /second", secrets=[modal.Secret.from_dict({"WORD": "fish"})])'
        '.add_local_dir("tree", "/tree", copy=True).run_commands("cp /tree/a /third")'
    )
    body = 'return [open("/second").read(), open("/third").read()]'
    for name in ("one", "another"):
        tree = tmp_path / name / "tree"
        tree.mkdir(parents=True)
        # Many files: the client names them in another order each time.
        for letter in "abcdefghij":
            (tree / letter).write_text(f"{letter} {unique}")
    first, out = run(client, program(tmp_path / "one", image, body))
    assert first == ["second fish\n", f"a {unique}"]
    assert [one.split()[0:2] for one in steps(out)] == [["echo", "first"], ["echo", "second"], ["cp", "/tree/a"]]
    second, out = run(client, program(tmp_path / "another", image, body, name="renamed.py"))
    assert second == first
    assert steps(out) == [], "nothing was built the second time"


def test_one_byte_changed_runs_exactly_the_later_steps(client, tmp_path, unique):
    """A changed byte of a copied file runs the steps behind the copy again and none before it."""
    folder = tmp_path / "changed"
    folder.mkdir()
    image = (
        f'modal.Image.debian_slim().run_commands("echo before {unique}").add_local_file("a.txt", "/a.txt", copy=True)'
        '.run_commands("wc -c /a.txt > /count").run_commands("cp /a.txt /b.txt")'
    )
    body = 'return open("/b.txt").read()'
    (folder / "a.txt").write_text("x")
    assert run(client, program(folder, image, body))[0] == "x"
    (folder / "a.txt").write_text("y")
    result, out = run(client, program(folder, image, body))
    assert result == "y"
    assert steps(out) == ["wc -c /a.txt > /count", "cp /a.txt /b.txt"]


def test_changed_secret_value_builds_again(client, tmp_path, unique):
    """A `from_dict` secret counts by its contents: another value is another image."""
    for word in ("fish", "fowl"):
        image = (
            f'modal.Image.debian_slim().run_commands("echo {unique} $WORD > /word", '
            f'secrets=[modal.Secret.from_dict({{"WORD": "{word}"}})])'
        )
        result, out = run(client, program(tmp_path / word, image, 'return open("/word").read()'))
        assert result == f"{unique} {word}\n" and len(steps(out)) == 1


def test_force_build_builds_again(client, tmp_path, unique):
    """`force_build=True` runs its step although the image is known."""
    for turn in range(2):
        image = f'modal.Image.debian_slim().run_commands("echo forced {unique}", force_build=True)'
        _, out = run(client, program(tmp_path / f"force-{turn}", image))
        assert len(steps(out)) == 1, f"turn {turn}"


def test_two_programs_build_one_image_once(client, tmp_path, unique):
    """Two clients that ask for the same image at once get one build, and both see its lines."""
    image = f'modal.Image.debian_slim().run_commands("echo begin {unique}; sleep 6; echo end {unique}; date +%N > /when")'
    paths = [program(tmp_path / f"pair-{n}", image, 'return open("/when").read()') for n in (1, 2)]
    both = [client.run(path, cwd=path.parent) for path in paths]
    (one, said), (other, also_said) = [outcome(running, 400) for running in both]
    assert one == other
    assert f"end {unique}" in said and f"end {unique}" in also_said


def test_secrets_of_a_build_are_not_in_the_image(client, tmp_path, unique):
    """What a build step got as a secret, and the node's own certificates for it, are not there when the function runs."""
    image = (
        f'modal.Image.debian_slim().run_commands("echo {unique} ${{#PASSWORD}} > /length", '
        'secrets=[modal.Secret.from_dict({"PASSWORD": "hush-hush"})])'
    )
    body = 'return [open("/length").read(), "PASSWORD" in os.environ]'
    assert run(client, program(tmp_path / "secret", image, body))[0] == [f"{unique} 9\n", False]


def test_client_is_there_without_being_installed(client, tmp_path):
    """An image has no package of the client, yet the function imports it: the node brings it, precompiled."""
    body = """
    import importlib.metadata as m
    import sysconfig
    listed = [d.metadata["Name"] for d in m.distributions(path=[sysconfig.get_path("purelib")])]
    cached = modal.__cached__
    return [modal.__version__, modal.__file__, os.path.exists(cached), "modal" in listed]
    """
    (version, file, compiled, listed), _ = run(client, program(tmp_path / "bare", "modal.Image.debian_slim()", body))
    assert version == "1.6.4" and file.startswith("/pkg/") and compiled and not listed


def test_image_logs_can_be_read_later(client, tmp_path, unique):
    """`modal image logs ID` shows the lines of a build that is over, also of one that failed."""
    path = program(tmp_path / "later", f'modal.Image.debian_slim().run_commands("echo remembered {unique}; exit 1")')
    running = client.run(path, cwd=path.parent)
    running.wait(300)
    found = re.search(r"im-[0-9A-Za-z]{22}", running.text())
    assert found, running.text()
    assert f"remembered {unique}" in client.modal("image", "logs", found.group()).ok(60).text()
