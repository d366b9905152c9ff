"""An app whose functions are called by schedules, and put down in a queue when they are."""

import os
import time

import modal

# What this file reads when it is imported must be the same in the container.
SAME = {name: os.environ[name] for name in os.environ if name.startswith("SCHEDULES_")}

app = modal.App("schedules")
seen = modal.Queue.from_name(SAME.get("SCHEDULES_QUEUE", "schedules"), create_if_missing=True)


def note(what: str) -> None:
    seen.put((what, time.time(), modal.current_function_call_id()))


def often() -> modal.Period | modal.Cron:
    if cron := SAME.get("SCHEDULES_CRON"):
        return modal.Cron(cron, timezone=SAME.get("SCHEDULES_ZONE", "UTC"))
    return modal.Period(seconds=float(SAME.get("SCHEDULES_SECONDS", "2")))


@app.function(env=SAME, schedule=often(), retries=modal.Retries(max_retries=2, initial_delay=0.0))
def tick() -> str:
    note("tick")
    print("tick was called")
    return "ticked"


if "SCHEDULES_ALONE" not in SAME:

    @app.function(env=SAME, schedule=modal.Cron("0 9 * * 1", timezone="America/New_York"))
    def weekly() -> None:
        note("weekly")

    @app.function(env=SAME, schedule=modal.Period(seconds=2), retries=modal.Retries(max_retries=2, initial_delay=0.0))
    def fail() -> None:
        note("fail")
        raise ValueError("failed on purpose")
