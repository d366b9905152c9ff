"""Functions that ask what machine they are on, and code that behaves as badly as people's code does."""

import multiprocessing
import multiprocessing.shared_memory
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import modal

app = modal.App("machine")

secrets = [
    modal.Secret.from_dict({"FIRST": "first", "BOTH": "from the first", "PATH_OF_IMAGE": "by a secret"}),
    modal.Secret.from_dict({"SECOND": "second", "BOTH": "from the second", "MODAL_TASK_ID": "forged", "EMPTY": "", "LINES": "a\nb"}),
]
image = modal.Image.debian_slim().env({"OF_IMAGE": "image", "PATH_OF_IMAGE": "by the image"})


@app.function(image=image, secrets=secrets)
def environment() -> dict[str, str]:
    return dict(os.environ)


@app.function(env={"PLAIN": "value", "BOTH": "by env"}, secrets=secrets[:1])
def environment_of_function() -> dict[str, str]:
    return dict(os.environ)


@app.function()
def standard_input() -> tuple[bytes, bool]:
    """Reads stdin to its end and says whether it is a terminal; so does a child that inherits it."""
    child = subprocess.run([sys.executable, "-c", "import sys; print(len(sys.stdin.read()))"], capture_output=True, timeout=20, check=True)
    assert child.stdout == b"0\n"
    return sys.stdin.buffer.read(), sys.stdin.isatty()


@app.function()
def about() -> dict:
    """Returns names, limits and sizes as programs see them."""
    shm = os.statvfs("/dev/shm")
    return {
        "hostname": socket.gethostname(),
        "address": socket.gethostbyname(socket.gethostname()),
        "localhost": socket.gethostbyname("localhost"),
        "open files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "stack": resource.getrlimit(resource.RLIMIT_STACK),
        "processes": resource.getrlimit(resource.RLIMIT_NPROC),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "memory": resource.getrlimit(resource.RLIMIT_AS),
        "shm": shm.f_frsize * shm.f_blocks,
        "cpus": os.cpu_count(),
        "affinity": len(os.sched_getaffinity(0)),
        "cwd": os.getcwd(),
        "user": (os.getuid(), os.geteuid()),
        "tmp": oct(os.stat("/tmp").st_mode),
    }


@app.function(cpu=(0.5, 1.0))
def cores() -> tuple[int, int, int]:
    """Returns how many cores a function with a hard limit of one sees."""
    return os.cpu_count(), len(os.sched_getaffinity(0)), multiprocessing.cpu_count()


@app.function()
def share_memory(mebibytes: int) -> int:
    """Hands a block from a process to another one through /dev/shm, as data loaders do."""
    size = mebibytes << 20
    block = multiprocessing.shared_memory.SharedMemory(create=True, size=size)
    try:
        child = os.fork()
        if child == 0:
            block.buf[size - 1] = 7
            os._exit(0)
        os.waitpid(child, 0)
        return block.buf[size - 1]
    finally:
        block.close()
        block.unlink()


def double(x: int) -> int:
    return 2 * x


@app.function()
def fork_and_pool() -> dict:
    """Starts processes in the ways there are, and waits for all of them."""
    codes = []
    for i in range(5):
        child = os.fork()
        if child == 0:
            os._exit(i)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        doubled = pool.map(double, range(10))
    shell = subprocess.run("echo $((20 + 1)) | cat", shell=True, capture_output=True, text=True, check=True).stdout
    return {"codes": codes, "doubled": doubled, "shell": shell}


@app.function(scaledown_window=2)
def leave_children(n: int) -> int:
    """Returns while children of it go on: they hold its pipes and ignore what asks them to stop."""
    for _ in range(n):
        subprocess.Popen(["sh", "-c", "trap '' INT TERM HUP; while true; do sleep 1; done"], start_new_session=True)
    return os.getpid()


@app.function(scaledown_window=2)
def trap_signals() -> str:
    """Ignores every signal that may be ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    return os.environ["MODAL_TASK_ID"]


@app.function()
def handle_own_signal() -> list[int]:
    """Handles a signal that it sends to itself, and a child's end."""
    got: list[int] = []
    signal.signal(signal.SIGUSR2, lambda number, _: got.append(number))
    os.kill(os.getpid(), signal.SIGUSR2)
    deadline = time.monotonic() + 5
    while not got and time.monotonic() < deadline:
        time.sleep(0.01)
    return got


@app.function(scaledown_window=2)
def delete_everything() -> list[str]:
    """Deletes what it can of its own machine and returns what is left of the root."""
    for name in os.listdir("/"):
        if name not in ("proc", "sys", "dev", "__modal"):
            shutil.rmtree(f"/{name}", ignore_errors=True)
    return sorted(os.listdir("/"))


@app.function()
def still_there() -> bool:
    return os.path.exists("/usr/bin/env") and os.path.exists("/root")


@app.function(timeout=600)
def shout(mebibytes: int, mark: str) -> int:
    """Writes so much to stdout, in lines, and returns the number of bytes."""
    # As long as a line may be before it is cut: so a gigabyte is some 70,000 of them.
    line = b"x" * 16383 + b"\n"
    block = line * 64
    put(f"first line of {mark}\n".encode())
    for _ in range(mebibytes):
        put(block)
    put(f"last line of {mark}\n".encode())
    return mebibytes << 20


def put(data: bytes) -> None:
    """Writes all of it: stdout has no buffer here, and a pipe takes what it has room for."""
    left = memoryview(data)
    while left:
        left = left[os.write(1, left) :]


@app.function(memory=(128, 256))
def eat(mebibytes: int) -> int:
    eaten = [b"\x01" * (1 << 20) for _ in range(mebibytes)]
    return len(eaten)


@app.function(memory=(128, 256))
def eat_in_a_child(mebibytes: int) -> int:
    code = f"x = [b'\\x01' * (1 << 20) for _ in range({mebibytes})]"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode


@app.function()
def wait(seconds: float) -> str:
    time.sleep(seconds)
    return os.environ["MODAL_TASK_ID"]


@app.function()
def route() -> str:
    """Returns the address of the gateway: where the node is."""
    for line in open("/proc/net/route").read().splitlines()[1:]:
        words = line.split()
        if words[1] == "00000000":
            return socket.inet_ntoa(int(words[2], 16).to_bytes(4, "little"))
    return ""


def connect(targets: list[tuple[str, int]]) -> dict[str, str]:
    answers = {}
    for host, port in targets:
        try:
            with socket.create_connection((host, port), timeout=5) as connection:
                answers[f"{host}:{port}"] = connection.recv(100).decode() if port == 8000 else "connected"
        except OSError as error:
            answers[f"{host}:{port}"] = type(error).__name__
    return answers


@app.function()
def connect_open(targets: list[tuple[str, int]]) -> dict[str, str]:
    return connect(targets)


@app.function(block_network=True)
def connect_blocked(targets: list[tuple[str, int]]) -> dict[str, str]:
    return connect(targets)


@app.function()
def threads(n: int) -> int:
    """Runs so many threads at once."""
    done = threading.Barrier(n + 1)
    for _ in range(n):
        threading.Thread(target=done.wait, daemon=True).start()
    done.wait(30)
    return n


@app.function()
def fill_disk(mebibytes: int) -> int:
    with open("/root/large", "wb") as file:
        for _ in range(mebibytes):
            file.write(bytes(1 << 20))
    return os.path.getsize("/root/large")
