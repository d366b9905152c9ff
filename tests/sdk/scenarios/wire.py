"""A wire that is slow and loses packets, where the kernel has no netem: packets to a node go through this program.

    wire.py PORT BRIDGE DELAY_MS LOSS_PERCENT
    wire.py INTERFACE       only leaves nothing to the card of an interface: for the other end of the node's wire

PORT is the node's port of the bridge. It is taken out, and a tap device takes its place; what comes from there waits before it goes on to
the node, or is lost, and what comes from the node goes on at once. With this program the tap ends, and the port can go back.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import random
import select
import socket
import struct
import subprocess
import sys
import time

ALL_PROTOCOLS, TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x0003, 0x400454CA, 0x0002, 0x1000
SIOCETHTOOL, PACKET_OUTGOING = 0x8946, 4
# Checksums, segmentation and the like, which are left to a card that there is not: bytes must be whole on their way.
OFFLOADS = {"tx checksums": 0x17, "segmentation of TCP": 0x1F, "generic segmentation": 0x24, "generic receive": 0x2C}
FRAME_BYTES_MAX = 65_536


def leave_nothing_to_the_card(interface: str) -> None:
    """Switches offloads of an interface off."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in OFFLOADS.values():
            value = ctypes.create_string_buffer(struct.pack("II", command, 0))
            request = struct.pack("16sP", interface.encode(), ctypes.addressof(value))
            try:
                fcntl.ioctl(control, SIOCETHTOOL, request)
            except OSError:
                pass  # An interface that has none of it.


def tap(name: str) -> int:
    """Makes a tap device that lives as long as this program."""
    opened = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(opened, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
    return opened


def main() -> None:
    if len(sys.argv) == 2:
        return leave_nothing_to_the_card(sys.argv[1])
    port, bridge, delay_seconds, loss = sys.argv[1], sys.argv[2], float(sys.argv[3]) / 1000, float(sys.argv[4]) / 100
    name = f"t{os.getpid()}"
    far = tap(name)
    leave_nothing_to_the_card(port)
    subprocess.run(["ip", "link", "set", port, "nomaster"], check=True)
    near = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
    near.bind((port, ALL_PROTOCOLS))
    subprocess.run(["ip", "link", "set", port, "promisc", "on"], check=True)
    subprocess.run(["ip", "link", "set", name, "master", bridge, "up"], check=True)
    print("ready", flush=True)
    drawn, waiting, number = random.Random(7470), [], 0
    while True:
        until = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for ready in select.select([far, near], [], [], until)[0]:
            if ready is far:
                frame = os.read(far, FRAME_BYTES_MAX)
                if drawn.random() >= loss:
                    heapq.heappush(waiting, (time.monotonic() + delay_seconds, number := number + 1, frame))
            else:
                frame, (_, _, kind, *_) = near.recvfrom(FRAME_BYTES_MAX)
                if kind != PACKET_OUTGOING:
                    os.write(far, frame)
        while waiting and waiting[0][0] <= time.monotonic():
            try:
                near.send(heapq.heappop(waiting)[2])
            except OSError:
                pass  # Too long, or the other end is gone: lost, as on any wire.


if __name__ == "__main__":
    main()
