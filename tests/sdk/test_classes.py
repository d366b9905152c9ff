"""Classes: hooks, methods, parameters, other options for a class or a function, and what goes wrong with them."""

import concurrent.futures
import time

import pytest
from harness import wait_for
from programs import classes

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def running(token):
    """The app of programs/classes.py for all tests of this file."""
    with classes.app.run() as app:
        yield app


@pytest.fixture
def tasks_of(node, running):
    """The live tasks of one of its classes: tasks_of("Plain")."""
    return lambda name: {task["task_id"] for task in node.tasks(running.app_id) if task["function"] == f"{name}.*"}


def test_hooks_run_once_a_container(running, node, tasks_of):
    """`@enter` of the base, then of the class, sync and async, once before the first call; `@exit` when the idle container leaves."""
    plain = classes.Plain()
    states = [plain.state.remote() for _ in range(3)]
    assert len({task for task, _, _ in states}) == 1
    assert [sorted(entered) for _, entered, _ in states] == [["async", "base", "plain"]] * 3
    assert [calls for _, _, calls in states] == [1, 2, 3]
    wait_for("the idle container to go", lambda: not tasks_of("Plain"), 30, every=0.2)
    wait_for("its exit hook", lambda: "exit of Plain after 3 calls" in node.shoal("logs", running.app_id).stdout, 10)


def test_methods_of_all_kinds(running):
    """Inherited and replaced methods, async ones, generators, methods that call others, map, spawn, and `.local()`."""
    plain = classes.Plain()
    assert plain.inherited.remote(1) == 2 and plain.replaced.remote() == "plain"
    assert plain.later.remote(4) == 8
    assert list(plain.count.remote_gen(5)) == list(plain.count_later.remote_gen(5)) == list(range(5))
    assert list(plain.inherited.map(range(20))) == list(range(1, 21))
    assert plain.later.spawn(5).get(timeout=60) == 10
    assert plain.inherited.local(1) == 2
    assert plain.through.remote(3) == 10


def test_parameters_of_all_types(running):
    """What an instance is made with is there in its hooks and methods, as are the defaults; equal instances share their containers."""
    assert classes.Typed(name="a").get.remote() == ("a", 7, False, b"\x00x", 3, "a")
    every = classes.Typed(name="b\N{SNOWMAN}", number=-(2**40), flag=True, data=bytes(range(256)))
    assert every.get.remote() == ("b\N{SNOWMAN}", -(2**40), True, bytes(range(256)), 3, "b\N{SNOWMAN}")
    assert classes.Typed(name="a").here.remote() == classes.Typed(name="a", number=7).here.remote()


def test_instances_are_pools_of_their_own(running, node):
    """Instances with other parameters have other containers, and each its exit hook."""
    used = [classes.Typed(name=f"pool {number}").here.remote() for number in range(2)]
    assert len(set(used)) == 2
    for number, task in enumerate(used):
        node.shoal("task", "stop", task)
        wait_for("its exit hook", lambda: f"exit of Typed pool {number}" in node.shoal("logs", running.app_id).stdout, 30)


def test_parameters_of_the_wrong_kind(running, sdk, unique, deployed):
    """A type that does not fit, a name that is none, or one that is missing: one sentence that names the parameter, from the local
    class and from one that was looked up."""
    deployed("classes.py", unique)
    for kind in (classes.Typed, sdk.Cls.from_name(unique, "Typed")):
        for wrong, said in (
            ({"name": 5}, "(?i)int.*str|str.*int"),
            ({"name": "x", "size": 1}, "size"),
            ({}, "name"),
        ):
            with pytest.raises((TypeError, sdk.exception.InvalidError), match=said):
                kind(**wrong).get.remote()
    looked_up = sdk.Cls.from_name(unique, "Typed")(name="found", number=1)
    assert looked_up.get.remote()[:2] == ("found", 1)
    with pytest.raises(sdk.exception.NotFoundError, match=r"no class 'Nobody'\. There are: .*Typed"):
        sdk.Cls.from_name(unique, "Nobody")().get.remote()
    with pytest.raises(Exception, match="at most 16384 are taken"):
        classes.Typed(name="x" * 20_000).get.remote()


def test_options_of_a_class(running, sdk):
    """`with_options`: other secrets beside the same parameters, in containers of their own; the class itself stays as it is."""
    assert classes.Optional().environment.remote()[:3] == (0, "red", "round")
    green = classes.Optional.with_options(secrets=[sdk.Secret.from_dict({"COLOUR": "green"})], max_containers=2)
    size, colour, shape, task = green(size=4).environment.remote()
    assert (size, colour, shape) == (4, "green", None), "secrets take the place of the class's"
    assert green(size=4).environment.remote()[3] == task, "the same options give the same containers"
    assert classes.Optional().environment.remote()[:3] == (0, "red", "round")


def test_options_of_a_function(running, sdk):
    """`with_options` on a function: timeout, retries, environment; options add up."""
    with pytest.raises(sdk.exception.FunctionTimeoutError):
        classes.option.with_options(timeout=1).remote(60)
    blue = classes.option.with_options(env={"COLOUR": "blue"})
    task, colour = blue.with_options(memory=256).remote()
    assert colour == "blue" and task != classes.option.remote()[0]
    assert classes.option.remote()[1] is None
    with pytest.raises(ValueError, match="try 1"):
        classes.at_try.remote("alone", 2)
    assert classes.at_try.with_options(retries=2).remote("again", 3) == 3


def test_max_containers_by_option(running):
    """`with_options(max_containers=…)` is the pool's own limit: three where the class has one."""
    wide = classes.option.with_options(max_containers=3)
    calls = [wide.spawn(300.0) for _ in range(4)]
    wait_for("three containers at work", lambda: wide.get_current_stats().num_running_inputs == 3, 60, every=0.2)
    assert wide.get_current_stats().backlog == 1
    for call in calls:
        call.cancel()


def test_with_concurrency_and_with_batching(running):
    """`with_concurrency`: many inputs in one container; `with_batching`: they come as lists."""
    many = classes.asleep.with_concurrency(max_inputs=20)
    many.remote(0.0)  # A container is there, so that what follows is not a start.
    begin = time.monotonic()
    assert len(set(many.map([3.0] * 20))) <= 2
    assert time.monotonic() - begin < 25
    batched = classes.one_by_one.with_batching(max_batch_size=5, wait_ms=1000)
    results = list(batched.map(range(20)))
    assert [x for x, _ in results] == list(range(20)) and max(size for _, size in results) == 5
    instance = classes.Optional.with_concurrency(max_inputs=10)(size=1)
    assert len(set(instance.wait.map([0.5] * 10))) == 1


def test_autoscaler_of_an_instance(running, node):
    """`update_autoscaler` of one instance keeps a container of it, and of nobody else, until it is taken back."""
    kept = classes.Typed(name="kept warm")
    before = {task["task_id"] for task in node.tasks(running.app_id)}
    kept.update_autoscaler(min_containers=1, scaledown_window=2)
    wait_for("a container without a call", lambda: {task["task_id"] for task in node.tasks(running.app_id)} - before, 30, every=0.2)
    assert kept.here.remote()
    kept.update_autoscaler(min_containers=0)


def test_a_class_that_cannot_start(running, sdk):
    """What `@enter` raises reaches the caller as it is; a container that ends in `@enter` is told as such; `@exit` that fails harms no call."""
    with pytest.raises(ValueError, match="this class cannot start"):
        classes.FailsToStart().work.remote()
    with pytest.raises(Exception, match="could not start.*5"):
        classes.FailsToStart(what="exit").work.remote()
    assert classes.FailsToStart(what="nothing").work.remote() == "worked"


def test_calls_of_many_instances_at_once(running):
    """Ten instances called together by threads: each call comes to its own."""
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        names = list(pool.map(lambda number: classes.Typed(name="shared", number=number % 3).get.remote()[1], range(10)))
    assert names == [number % 3 for number in range(10)]
