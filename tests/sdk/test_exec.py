"""Processes in running containers: `modal container exec`, and the worker channel under it."""

import asyncio
import hashlib
import json
import uuid

import pytest
from harness import Client, wait_for
from programs import shells
from terminal import Terminal

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def task(token, node):
    """A running container of programs/shells.py."""
    with shells.app.run() as app:
        call = shells.stay.spawn(600)
        yield wait_for("its container", lambda: running(node, app.app_id), 90)
        call.cancel()


def running(node, app_id):
    """Returns the container of an app; what is started in it waits until it runs."""
    return next((task["task_id"] for task in node.tasks(app_id)), None)


class Channel:
    """The worker channel of one container, by the client's own code."""

    def __init__(self, router, task):
        self.router, self.task = router, task

    async def start(self, *command: str, stderr: int = 1, **more) -> str:
        from modal_proto import task_command_router_pb2 as sr_pb2

        exec_id = more.pop("exec_id", None) or str(uuid.uuid4())
        request = sr_pb2.TaskExecStartRequest(
            task_id=self.task, exec_id=exec_id, command_args=command, stdout_config=1, stderr_config=stderr, **more
        )
        await self.router.exec_start(request)
        return exec_id

    async def wait(self, exec_id: str) -> int:
        ended = await self.router.exec_wait(self.task, exec_id)
        return ended.code if ended.WhichOneof("exit_status") == "code" else 128 + ended.signal

    async def read(self, exec_id: str, fd: int = 1, start: int = 0) -> bytes:
        return b"".join([item.data async for item in self.router.exec_stdio_read(self.task, exec_id, fd, start_offset=start)])

    async def run(self, *command: str, **more) -> tuple[int, bytes, bytes]:
        """Runs a command to its end; returns its code and what it printed."""
        exec_id = await self.start(*command, **more)
        out, err, code = await asyncio.gather(self.read(exec_id), self.read(exec_id, 2), self.wait(exec_id))
        return code, out, err


def on_channel(task, story):
    """Runs a story on the worker channel of a container, in a loop of its own."""
    from modal.client import _Client
    from modal.sandbox._task_command_router_client import TaskCommandRouterClient
    from modal_proto import api_pb2

    async def tell():
        client = await _Client.from_env()

        async def access():
            return await client._stub.TaskGetCommandRouterAccess(api_pb2.TaskGetCommandRouterAccessRequest(task_id=task))

        router = await TaskCommandRouterClient.connect(client, task, access)
        try:
            return await story(Channel(router, task))
        finally:
            await router.close()

    from modal._utils.async_utils import synchronizer

    return synchronizer.create_blocking(tell)()


def test_the_command_line(client, task):
    """`modal container exec` prints what the command prints; the container is the function's own: its task, secrets, folder."""
    command = "echo $MODAL_TASK_ID; echo \"$KNOWN\"; pwd; echo aside >&2"
    done = client.modal("container", "exec", "--no-pty", task, "--", "sh", "-c", command).ok(60)
    assert sorted(done.text().splitlines()) == sorted([task, "to the function", "/root", "aside"])


def test_refusals_say_what_is_wrong(client, task):
    """A container that is none, and a program that is none, are each a sentence that names them."""
    none = client.modal("container", "exec", "--no-pty", "ta-0000000000000000000000", "true")
    assert none.wait(60) != 0 and "ta-0000000000000000000000" in none.text() and "not found" in none.text()
    missing = client.modal("container", "exec", "--no-pty", task, "no-such-program")
    assert missing.wait(60) != 0 and "no-such-program" in missing.text() and task in missing.text()


def test_codes_signals_and_timeouts(task):
    """An exit code arrives as such; a process killed by a signal, or by its timeout, as 128 + the signal; its container lives on."""

    async def story(channel):
        assert (await channel.run("sh", "-c", "exit 42"))[0] == 42
        assert (await channel.run("sh", "-c", "kill -9 $$"))[0] == 137
        assert (await channel.run("sh", "-c", "kill -TERM $$"))[0] == 143
        assert (await channel.run("sleep", "60", timeout_secs=1))[0] == 137
        sleeping = await channel.start("sleep", "60")
        polled = await channel.router.exec_poll(channel.task, sleeping)
        assert polled.WhichOneof("exit_status") is None
        return await channel.run("echo", "alive")

    assert on_channel(task, story) == (0, b"alive\n", b"")


def test_environment_folder_and_streams(task):
    """Variables and the working directory are as asked for; stderr is apart, thrown away or in stdout's place, as asked for."""
    script = "pwd; echo $COLOUR; echo err >&2"

    async def story(channel):
        apart = await channel.run("sh", "-c", script, workdir="/usr/local", env={"COLOUR": "red"})
        merged = await channel.run("sh", "-c", script, stderr=2)
        dropped = await channel.run("sh", "-c", script, stderr=0)
        return apart, merged, dropped

    apart, merged, dropped = on_channel(task, story)
    assert apart == (0, b"/usr/local\nred\n", b"err\n")
    assert merged[0] == 0 and sorted(merged[1].split()) == [b"/root", b"err"] and merged[2] == b""
    assert dropped == (0, b"/root\n\n", b"")


def test_stdin_takes_each_byte_once(task):
    """Writes go on by offset: one that is sent again is taken once, one with a gap is refused, and the end is seen by the process."""
    from modal.exception import ConflictError

    async def story(channel):
        router, task = channel.router, channel.task
        cat = await channel.start("cat")
        await router.exec_stdin_write(task, cat, 0, b"one ", False)
        await router.exec_stdin_write(task, cat, 0, b"one ", False)
        await router.exec_stdin_write(task, cat, 2, b"e two ", False)
        with pytest.raises(ConflictError, match="8 bytes"):
            await router.exec_stdin_write(task, cat, 99, b"late", False)
        status = await router.exec_stdin_status(task, cat)
        assert (status.num_bytes_written, status.closed) == (8, False)
        await router.exec_stdin_write(task, cat, 8, b"end", True)
        await router.exec_stdin_write(task, cat, 11, b"", True)
        assert await channel.wait(cat) == 0
        return await channel.read(cat)

    assert on_channel(task, story) == b"one two end"


def test_a_large_stream_in_and_out(task):
    """40 MB go in by a stream of writes, come out the same, and can be read again from the middle once the process has ended."""
    import io

    sent = bytes(range(251)) * 160_000

    async def story(channel):
        cat = await channel.start("cat")
        writing = channel.router.exec_stdin_write_stream(channel.task, cat, io.BytesIO(sent))
        written, read = await asyncio.gather(writing, channel.read(cat))
        assert written == len(sent) and await channel.wait(cat) == 0
        return read, await channel.read(cat, start=len(sent) - 1000)

    read, tail = on_channel(task, story)
    assert hashlib.sha256(read).digest() == hashlib.sha256(sent).digest() and tail == sent[-1000:]


def test_a_process_outlives_its_connection(task):
    """A client that loses its connection comes back on another, finds the process by its id and reads on where it was; a second start
    of the same id starts nothing."""

    async def begin(channel):
        exec_id = await channel.start("sh", "-c", "echo $$; read line; echo got $line")
        async for item in channel.router.exec_stdio_read(channel.task, exec_id, 1):
            return exec_id, item.data

    async def go_on(channel):
        assert await channel.start("sh", "-c", "echo another", exec_id=exec_id) == exec_id
        await channel.router.exec_stdin_write(channel.task, exec_id, 0, b"it\n", True)
        return await channel.read(exec_id, start=len(first)), await channel.wait(exec_id)

    exec_id, first = on_channel(task, begin)
    assert on_channel(task, go_on) == (b"got it\n", 0)


def test_a_terminal(client, task):
    """`modal container exec` in a terminal: the shell has the terminal's size and name, edits lines, and Ctrl-C ends the command in its
    foreground alone."""
    terminal = Terminal(client, "container", "exec", task, "bash")
    try:
        terminal.wait(r"[#$] $")
        terminal.type("stty size; echo $TERM; test -t 0 && echo is a te''rminal\r")
        terminal.wait(rf"[\r\n]{Terminal.ROWS} {Terminal.COLUMNS}\r?\n")
        terminal.wait(r"[\r\n]xterm-256color\r?\n")
        terminal.wait(r"[\r\n]is a terminal\r?\n")
        terminal.type("sleep 100; echo ended with $?\r")
        wait_for("the sleep", lambda: "sleep 100" in client.modal("container", "exec", "--no-pty", task, "--", "sh", "-c", "cat /proc/*/cmdline | tr '\\0' ' '").ok(60).text(), 30)  # fmt: skip
        terminal.type("\x03")
        terminal.wait(r"\^C")
        terminal.type("echo still he''re; exit 3\r")
        terminal.wait(r"still here")
        terminal.end()
    finally:
        terminal.close()


def test_the_audit_log_says_who_ran_what(node, token, task):
    """Who, in which container, which command; never what it was sent."""

    async def story(channel):
        cat = await channel.start("cat", "-", "--", "/etc/hostname")
        await channel.router.exec_stdin_write(channel.task, cat, 0, b"swordfish", True)
        return await channel.wait(cat)

    assert on_channel(task, story) == 0
    rows = map(json.loads, node.shoal("audit", "--json").stdout.splitlines())
    (line,) = [row for row in rows if row["what"] == "executed" and "cat - -- /etc/hostname" in row["why"] and task in row["why"]]
    assert token.id in line["who"]
    assert "swordfish" not in node.shoal("audit", "--json").stdout


def test_the_channel_is_for_one_container_and_its_holder(node, task, tmp_path):
    """Another container by the same channel, a forged token and a token for looking alone are refused."""
    from grpclib.exceptions import GRPCError
    from modal_proto import task_command_router_pb2 as sr_pb2

    async def story(channel):
        other = sr_pb2.TaskExecPollRequest(task_id="ta-0000000000000000000000", exec_id="x")
        with pytest.raises(GRPCError, match="this connection is for container"):
            await channel.router._stub.TaskExecPoll(other, metadata=channel.router._get_metadata())
        head, claims, _ = channel.router._jwt.split(".")
        mine = sr_pb2.TaskExecPollRequest(task_id=channel.task, exec_id="x")
        for token in (f"{head}.{claims}.{'A' * 43}", "x"):
            with pytest.raises(GRPCError, match="the token of this connection"):
                await channel.router._stub.TaskExecPoll(mine, metadata={"authorization": f"Bearer {token}"})

    on_channel(task, story)
    reader = node.create_token("--purpose", "reader")
    looking = Client(node, reader, tmp_path)
    refused = looking.modal("container", "exec", "--no-pty", task, "true")
    assert refused.wait(60) != 0 and "for looking alone" in refused.text()
    looking.close()


def test_list_logs_and_stop(client, node, token):
    """`modal container list`, `logs` and `stop` of a running container; its processes end with it, as killed."""
    with shells.brief.run() as app:
        call = shells.stay_briefly.spawn(600)
        task = wait_for("its container", lambda: running(node, app.app_id), 90)
        listed = client.modal("container", "list", "--json").ok(60).text("stdout")
        assert task in listed
        client.modal("container", "exec", "--no-pty", task, "--", "sh", "-c", "echo from outside > /proc/1/fd/1").ok(60)

        async def story(channel):
            sleeping = await channel.start("sleep", "600")
            waiting = asyncio.create_task(channel.wait(sleeping))
            await asyncio.sleep(0)
            stop = client.modal("container", "stop", "--yes", task)
            assert await waiting == 137
            return stop

        on_channel(task, story).ok(60)
        assert "from outside" in client.modal("container", "logs", task).ok(60).text("stdout")
        call.cancel()
