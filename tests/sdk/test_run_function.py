"""`Image.run_function`: a function runs in a container of the image, and what it leaves there is the next image."""

import re

import pytest
from imaging import program, run

pytestmark = pytest.mark.timeout(600)

RAN = re.compile(r"^=> Step 0: running function '(.*)'$", re.MULTILINE)


def test_its_files_become_the_image(client, tmp_path, unique):
    """Arguments, secrets and globals reach the function; its files, links, modes and deletions are in the image, and what
    it only needed to run (its source, the client, its secret) is not. A second function goes on from the first."""
    before = f"""
    WORD = "{unique}"

    def first(name, count=1):
        import sys
        os.makedirs("/model/deep", mode=0o751)
        with open("/model/weights", "w") as file:
            file.write(f"{{name}} {{count}} {{WORD}} {{len(os.environ['KEY'])}}")
        os.chmod("/model/weights", 0o640)
        os.chown("/model/weights", 12, 34)
        os.symlink("weights", "/model/link")
        os.link("/model/weights", "/model/again")
        os.remove("/etc/issue")
        with open("/model/where", "w") as file:
            json.dump([os.getcwd(), sys.argv[0].rsplit("/", 1)[-1], os.environ["MODAL_TASK_ID"][:3], modal.is_local()], file)
        print("said by the first")

    def second():
        open("/model/deep/second", "w").write(open("/model/weights").read().upper())
    """
    image = (
        'modal.Image.debian_slim().env({"KEPT": "yes"}).run_commands("ls -a / /root > /before.txt")'
        '.run_function(first, args=("big",), kwargs={"count": 3}, secrets=[modal.Secret.from_dict({"KEY": "12345"})])'
        '.run_function(second).run_commands("ls -a / /root > /after.txt")'
    )
    body = """
    at = os.stat("/model/weights")
    return {
        "weights": open("/model/weights").read(), "second": open("/model/deep/second").read(), "where": json.load(open("/model/where")),
        "attributes": [oct(at.st_mode), at.st_uid, at.st_gid, at.st_nlink, os.readlink("/model/link"), oct(os.stat("/model/deep").st_mode)],
        "gone": not os.path.exists("/etc/issue"), "env": [os.environ.get("KEY"), os.environ["KEPT"]],
        "new": sorted(set(open("/after.txt").read().split()) - set(open("/before.txt").read().split())),
    }
    """
    folder = tmp_path / "files"
    result, out = run(client, program(folder, image, body, before=before))
    assert RAN.findall(out) == ["first", "second"] and "said by the first" in out
    assert result["weights"] == f"big 3 {unique} 5" and result["second"] == f"BIG 3 {unique.upper()} 5"
    assert result["where"][0] == "/root" and result["where"][2:] == ["ta-", False]
    assert result["attributes"] == ["0o100640", 12, 34, 2, "weights", "0o40751"]
    assert result["gone"] and result["env"] == [None, "yes"]
    assert set(result["new"]) <= {"model", "after.txt", "before.txt", "__pycache__", ".cache"}, result["new"]

    # Nothing runs again for the same function, also when the file around it has changed, and the file's new text counts.
    changed = body.replace('"gone":', '"changed": 1, "gone":')
    result, out = run(client, program(folder, image, changed, before=before))
    assert RAN.findall(out) == [] and result["changed"] == 1
    # A global that it uses is a part of it.
    _, out = run(client, program(folder, image, body, before=before.replace(f'"{unique}"', f'"{unique}+"')))
    assert RAN.findall(out) == ["first", "second"]


def test_a_changed_program_of_the_same_length_is_the_one_that_runs(client, tmp_path, unique):
    """Python caches what it compiles by a file's time and length, and mounted files have no times: what the build's
    container compiled of the program must not stay in the image, or the old program would run."""
    before = f"def build():\n        open('/mark', 'w').write('{unique}')\n"
    for word in ("AAAA", "BBBB"):
        path = program(tmp_path / "cached", "modal.Image.debian_slim().run_function(build)", f'return "{word}"', before=before)
        assert run(client, path)[0] == word


@pytest.mark.parametrize(
    ("options", "lines", "expected"),
    [
        ("", "raise ValueError('no such model: %s')", ["ValueError", "no such model: %s", "Traceback"]),
        (", timeout=5", "import time; time.sleep(100)  # %s", ["did not end within 5 s", "timeout="]),
        ("", "os._exit(9)  # %s", ["ended with exit code 9"]),
        (", memory=(64, 128)", "x = [b'%s' * 1000 for _ in range(10**6)]", ["ran out of memory", "memory="]),
    ],
    ids=["exception", "timeout", "exit", "memory"],
)
def test_a_function_that_fails_fails_the_build(client, tmp_path, unique, options, lines, expected):
    """The client's error has the function's name and what went wrong; what it printed is in the log."""
    before = f"def broken():\n        {lines.replace('%s', unique)}\n"
    path = program(tmp_path / "broken", f"modal.Image.debian_slim().run_function(broken{options})", before=before)
    running = client.run(path, cwd=path.parent)
    assert running.wait(300) != 0
    text = running.text()
    for part in ["Image build for im-", "failed with the exception", "the function broken", *(one.replace("%s", unique) for one in expected)]:
        assert part in text, f"{part!r} is not in:\n{text}"


def test_a_function_needs_a_python(client, tmp_path, unique):
    """On an image without one the build says how to get one."""
    before = f"def build():\n        open('/{unique}', 'w')\n"
    path = program(tmp_path / "none", "modal.Image.from_scratch().run_function(build)", before=before)
    running = client.run(path, cwd=path.parent)
    assert running.wait(120) != 0
    assert "has no python" in running.text() and "add_python=" in running.text()
