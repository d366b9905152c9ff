"""Clustered functions: containers that reach each other, take each input together, and end together."""

import hashlib
import os
import socket
import time

import modal

app = modal.App("gangs")
PORT = 29500
PIECE = bytes(range(256)) * 4096


def place() -> tuple[int, list[str], list[str]]:
    """Returns this container's rank and the addresses of all."""
    cluster = modal.Cluster.from_context()
    return cluster.container_rank(), cluster.container_ips(), cluster.container_ips(family="ipv4")


def connect(address: str) -> socket.socket:
    """Connects as programs for clusters do: again until somebody listens."""
    while True:
        try:
            return socket.create_connection((address, PORT), timeout=20)
        except ConnectionRefusedError:
            continue


def receive(peer: socket.socket) -> bytes:
    with peer, peer.makefile("rb") as file:
        return file.read()


@app.function(cpu=0.25, timeout=120)
@modal.clustered(size=3)
def meet(word: str) -> dict:
    """The others send to rank 0, by both kinds of addresses; it says what it had from whom. What others return is nothing."""
    rank, addresses, old = place()
    if rank > 0:
        for mine, theirs in ((addresses[rank], addresses[0]), (old[rank], old[0])):
            with connect(theirs) as peer:
                assert peer.getsockname()[0] == mine
                peer.sendall(f"{rank} {word} {os.environ['MODAL_TASK_ID']} ".encode() + PIECE)
        return {"rank": rank}
    heard = set()
    listeners = [socket.create_server((addresses[0], PORT), family=socket.AF_INET6), socket.create_server((old[0], PORT))]
    for listener in listeners:
        with listener:
            for _ in addresses[1:]:
                peer, _ = listener.accept()
                who, said, task, piece = receive(peer).split(b" ", 3)
                assert hashlib.sha256(piece).digest() == hashlib.sha256(PIECE).digest()
                heard.add((int(who), said.decode(), task.decode()))
    cluster = modal.Cluster.from_context()
    return {
        "rank": rank,
        "heard": sorted(heard),
        "own": [socket.getaddrinfo("i6pn.modal.local", None, socket.AF_INET6)[0][4][0], addresses[0]],
        "tasks": [os.environ["MODAL_TASK_ID"], *cluster.container_ids()],
    }


@app.function(cpu=0.25, timeout=120)
@modal.clustered(size=2)
def stumble(how: str) -> str:
    """Rank 1 fails or dies at it, and rank 0 waits for it in vain."""
    rank, addresses, _ = place()
    if how == "fine" or (how == "both" and rank == 0):
        if how == "both":
            raise ValueError("rank 0 has its own words")
        return f"{addresses[0]} was fine"
    if rank == 1:
        if how == "die":
            os._exit(3)
        raise ValueError(f"rank {rank} stumbled")
    socket.create_server((addresses[0], PORT), family=socket.AF_INET6).accept()
    return "nobody comes"


@app.function(cpu=0.25, timeout=120)
@modal.clustered(size=2)
def wait(tell: modal.Dict) -> str:
    """Rank 1 waits to be stopped when it is the first time, and tells who it is."""
    rank, addresses, _ = place()
    if rank == 1:
        first = tell.put("first", os.environ["MODAL_TASK_ID"], skip_if_exists=True)
        with connect(addresses[0]) as peer:
            if first:
                peer.recv(1)
            peer.sendall(b"again")
        return ""
    listener = socket.create_server((addresses[0], PORT), family=socket.AF_INET6)
    return receive(listener.accept()[0]).decode()


# With APART so much that no node of a few on one machine takes both.
@app.function(cpu=0.55 * (os.cpu_count() or 1) if os.environ.get("APART") else 0.25, timeout=200)
@modal.clustered(size=2)
def lasts(tell: modal.Dict, times: int) -> list[str]:
    """Tells which try this is; works until something happens to it so many times, then returns the containers of the last try."""
    rank, addresses, _ = place()
    task, tries = os.environ["MODAL_TASK_ID"], 0
    while not tell.put(f"{rank} {tries}", task, skip_if_exists=True):
        tries += 1
    if tries < times:
        time.sleep(150)
    if rank > 0:
        with connect(addresses[0]) as peer:
            peer.sendall(task.encode())
        return []
    with socket.create_server((addresses[0], PORT), family=socket.AF_INET6) as listener:
        return [task, receive(listener.accept()[0]).decode()]


@app.local_entrypoint()
def lost(times: int):
    """Says where each try of one input works."""
    with modal.Dict.ephemeral() as tell:
        call = lasts.spawn(tell, times)
        for tries in range(times):
            while None in (tasks := [tell.get(f"{rank} {tries}") for rank in (0, 1)]):
                time.sleep(0.2)
            print("try", tries, *tasks, flush=True)
        print("ended", *call.get(), flush=True)
        print("last", *[tell.get(f"{rank} {times}") for rank in (0, 1)], flush=True)


@app.local_entrypoint()
def main():
    for word in ("one", "two"):
        met = meet.remote(word)
        assert met["rank"] == 0 and [(rank, said) for rank, said, _ in met["heard"]] == [(1, word), (2, word)], met
        assert met["own"][0] == met["own"][1] and met["tasks"][0] == met["tasks"][1], met
        assert [task for *_, task in met["heard"]] == met["tasks"][2:], met
        print("met", *met["tasks"][1:])
    for how in ("stumble", "die", "both"):
        try:
            print(how, "gave", stumble.remote(how))
        except Exception as error:
            print(how, "failed:", type(error).__name__, error)
    print("fine again:", stumble.remote("fine"))
    with modal.Dict.ephemeral() as tell:
        call = wait.spawn(tell)
        while not (first := tell.get("first")):
            pass
        print("stop", first)
        print("after the stop:", call.get())


@app.local_entrypoint()
def across():
    """Two inputs, whose containers are on several nodes."""
    for word in ("one", "two"):
        met = meet.remote(word)
        assert [(rank, said) for rank, said, _ in met["heard"]] == [(1, word), (2, word)], met
    print("met", *met["tasks"][1:], flush=True)
    time.sleep(120)


too_large = modal.App("too-large")


@too_large.function(cpu=float(os.environ.get("GANG_CPU", "1000")))
@modal.clustered(size=2)
def never() -> str:
    return "never"
