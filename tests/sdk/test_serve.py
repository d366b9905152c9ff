"""`modal serve`: an app that stays, and follows its file."""

import re

import pytest
from harness import CONTAINER_GONE_SECONDS, wait_for

pytestmark = pytest.mark.timeout(300)

PROGRAM = '''
import modal

app = modal.App("served")
print("this is version VERSION")


@app.function(min_containers=1)
def stay():
    pass
'''


def test_it_follows_its_file(client, node, tmp_path):
    """The app serves until Ctrl-C. A change of the file updates that same app: containers of the new version start, those of the old one
    end. A file that is broken meanwhile ends nothing."""
    file = tmp_path / "served.py"
    file.write_text(PROGRAM.replace("VERSION", "one"))
    serving = client.modal("serve", str(file))
    app = serving.app_id()
    first = wait_for("a container", lambda: [task["task_id"] for task in node.tasks(app)], 90)
    wait_for("its log", lambda: any("version one" in line for line in client.logs(app)), 60, every=0.5)
    file.write_text(PROGRAM.replace("VERSION", "two"))
    wait_for("its log", lambda: any("version two" in line for line in client.logs(app)), 90, every=0.5)
    second = wait_for("the old container's end", lambda: [t for t in tasks(node, app) if t not in first] if not set(first) & set(tasks(node, app)) else None, 60)  # fmt: skip
    file.write_text("this is no Python\n")
    serving.wait_line("SyntaxError", 60)
    assert tasks(node, app) == second and serving.process.poll() is None
    file.write_text(PROGRAM.replace("VERSION", "three"))
    wait_for("its log", lambda: any("version three" in line for line in client.logs(app)), 90, every=0.5)
    serving.interrupt()
    serving.wait(60)
    wait_for("the end of its containers", lambda: not node.tasks(app), CONTAINER_GONE_SECONDS + 10)
    assert not re.search(r"Traceback.*Error", serving.text().split("SyntaxError")[-1])


def tasks(node, app):
    return [task["task_id"] for task in node.tasks(app)]
