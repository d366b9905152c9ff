"""Values of every size, both ways: in the message up to 2 MiB, as blobs above."""

import random
import zlib

import pytest
from programs import containers, functions

MIB = 1 << 20

# Around each edge: nothing, one byte, the inline limit of the client with and without its pickle
# frame, one blob part, and the largest the promise names.
SIZES = [0, 1, 1000, 2 * MIB - 4096, 2 * MIB - 1, 2 * MIB, 2 * MIB + 1, 8 * MIB, 100_000_000]


@pytest.fixture(scope="module")
def running(token):
    """The app of programs/functions.py for all tests of this file."""
    with functions.app.run():
        yield


@pytest.mark.timeout(180)
@pytest.mark.parametrize("size", SIZES)
def test_there(running, size):
    """An argument of this size arrives byte for byte."""
    data = random.Random(size).randbytes(size)
    assert functions.measure_bytes.remote(data) == (size, zlib.crc32(data))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("size", SIZES)
def test_back(running, size):
    """A result of this size arrives whole."""
    data = functions.make_bytes.remote(size)
    assert len(data) == size and not any(data[:1000]) and not any(data[-1000:])


@pytest.mark.timeout(180)
def test_there_and_back(running):
    """100 MB to the function and back again, equal."""
    data = random.Random(1).randbytes(100_000_000)
    assert functions.echo.remote(data) == data


@pytest.mark.timeout(180)
def test_map_of_blobs(running):
    """Several large inputs of one map keep their order and their bytes."""
    pieces = [random.Random(i).randbytes(3 * MIB + i) for i in range(8)]
    assert list(functions.measure_bytes.map(pieces)) == [(len(one), zlib.crc32(one)) for one in pieces]


@pytest.mark.timeout(180)
def test_map_of_large_results(running):
    """More results than one message has room for, each just too small to be a blob."""
    assert [len(data) for data in functions.make_bytes.map([1_900_000] * 60)] == [1_900_000] * 60


@pytest.mark.timeout(180)
def test_blob_without_a_network(token):
    """A function with `block_network=True` still gets blobs: the node's own address stays open to it."""
    with containers.app.run():
        assert containers.measure_blocked.remote(bytes(5 * MIB)) == 5 * MIB
