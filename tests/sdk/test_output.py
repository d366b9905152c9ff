"""What functions print reaches the terminal: at once, in order, on its own stream, and all of it."""

import re

import pytest
from harness import wait_for

# A line is at the client this long after its print, if the machine has nothing else to do.
LIVE_SECONDS = 0.3


def numbered(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("line ")]


def expected(n: int) -> list[str]:
    return [f"line {i:06d}" for i in range(n)]


@pytest.mark.timeout(120)
def test_lines_come_while_the_function_runs(client):
    """Lines are at the client soon after their print, each by itself. Client and container read the same clock. On a busy machine some
    are late, so what counts is the one in the middle."""
    running = client.run("output.py::live", "--n", "31", "--every", "0.1").ok(100)
    delays = {}
    for line in running.lines:
        if found := re.search(r"tick (\d+) printed at ([\d.]+)", line.text):
            delays[int(found.group(1))] = line.at - float(found.group(2))
    assert sorted(delays) == list(range(31)), running.text()
    assert sorted(delays.values())[15] < LIVE_SECONDS, delays


@pytest.mark.timeout(120)
def test_streams_stay_apart_and_in_order(client):
    """stdout and stderr are told apart in the log, each in its own order, none lost."""
    running = client.run("output.py::streams", "--n", "200").ok(100)
    seen = running.text().splitlines()
    assert [line for line in seen if line.startswith("out ")] == [f"out {i:04d}" for i in range(200)]
    assert [line for line in seen if line.startswith("err ")] == [f"err {i:04d}" for i in range(200)]
    app_id = running.app_id()
    for source, word in (("stdout", "out"), ("stderr", "err")):
        lines = [line for line in client.logs(app_id, "--source", source, "--tail", "1000") if line]
        assert lines == [f"{word} {i:04d}" for i in range(200)], source


@pytest.mark.timeout(120)
def test_text_of_every_kind(client):
    """A line printed in pieces, letters of several bytes, bytes that are no text and an end without newline arrive."""
    out = client.run("output.py::odd").ok(100).text()
    assert "first second" in out
    assert "naïve 🐟 läuft" in out
    assert re.search(r"raw .* end", out)
    assert "the end without a newline" in out


@pytest.mark.timeout(120)
def test_a_progress_bar_moves(client):
    """A line that is written over again and again, and goes on without a pause: it is shown while it does, and every state of it comes."""
    running = client.run("output.py::bar", "--n", "200", "--every", "0.01").ok(100)
    shown = [(line.at, found) for line in running.lines for found in re.finditer(r"(\d+) of 200 at (\d+\.\d{6})", line.text)]
    assert [int(found.group(1)) for _, found in shown] == list(range(200)), running.text()
    last = float(shown[-1][1].group(2))
    early = [at for at, _ in shown if at < last]
    assert len(early) > 20, f"{len(early)} of 200 states were shown before the last was written"


@pytest.mark.timeout(120)
def test_long_lines_come_whole(client):
    """Lines of a megabyte, on both streams and in bytes, lose nothing: a pipe takes less at once."""
    out = client.run("output.py::long").ok(100).text()
    for letter in "abc":
        # What the client itself prints has some of these letters too, but no run of them.
        assert len("".join(re.findall(rf"{letter}{{100,}}", out))) == 1_000_000, letter


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_line_is_lost_at_a_sudden_end(client, full):
    """10,000 numbered lines and `os._exit(0)`: every line, once and in order, over `modal run` and `modal app logs`.

    50 times in a full run; the container's process is gone before anything could be flushed by it.
    """
    rounds = 50 if full else 3
    for turn in range(rounds):
        running = client.run("output.py::many", "--n", "10000")
        running.wait(120)
        assert numbered(running.text().splitlines()) == expected(10_000), f"modal run, round {turn + 1} of {rounds}"
        app_id = running.app_id()
        kept = numbered(client.logs(app_id, "--tail", "20000"))
        assert kept == expected(10_000), f"modal app logs, round {turn + 1} of {rounds}"


@pytest.mark.timeout(240)
def test_build_output_shows_while_the_image_builds(client, unique):
    """Lines of a build are at the client while the step that prints them still runs."""
    running = client.run("long_build.py", environment={"MARK": unique})
    # Of 300 seconds: in one piece they would come after them.
    running.wait_line(rf"step 2 of {unique}", 150)
    running.wait_line(rf"step 4 of {unique}", 30)
    running.interrupt()
    running.wait(30)


@pytest.mark.timeout(120)
def test_log_of_an_ended_run_is_kept(client):
    """What a run printed can be read after it, by the app's id."""
    running = client.run("output.py::streams", "--n", "5").ok(100)
    app_id = running.app_id()
    wait_for("the log of the ended app", lambda: "out 0004" in client.logs(app_id), 30)


@pytest.mark.timeout(120)
def test_log_of_a_window_of_time(client):
    """`--since` counts the lines of a window first and fetches them in pieces; what is outside of it is left out."""
    running = client.run("output.py::streams", "--n", "50").ok(100)
    app_id = running.app_id()
    lines = client.logs(app_id, "--since", "10m", "--source", "stdout")
    assert [line for line in lines if line.startswith("out ")] == [f"out {i:04d}" for i in range(50)]
    assert not [line for line in client.logs(app_id, "--since", "2d", "--until", "1d") if line.startswith("out ")]
