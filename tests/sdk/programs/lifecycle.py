"""A class with start and exit hooks, and a program that stays in each state for as long as it is let."""

import time

import modal

app = modal.App("lifecycle")


@app.cls()
class Worker:
    @modal.enter()
    def start(self):
        print("enter hook ran", flush=True)

    @modal.method()
    def stream(self, seconds: float):
        end = time.time() + seconds
        while time.time() < end:
            print(f"streaming {time.time():.3f}", flush=True)
            time.sleep(0.1)
        return "done"

    @modal.method()
    def quiet(self, seconds: float):
        print("quietly running", flush=True)
        time.sleep(seconds)

    @modal.exit()
    def stop(self):
        print("exit hook ran", flush=True)


@app.function(max_containers=1)
def one_at_a_time(seconds: float):
    print("has the only container", flush=True)
    time.sleep(seconds)


@app.local_entrypoint()
def streaming():
    Worker().stream.remote(300)


@app.local_entrypoint()
def running():
    Worker().quiet.remote(300)


@app.local_entrypoint()
def queued():
    # One runs, the others wait in the queue.
    list(one_at_a_time.map([300] * 5))
