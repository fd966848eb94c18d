"""The server owns its runs: they survive their operation and session, also when Spark removes these, and end by what is meant to end them."""

from __future__ import annotations

import http.cookiejar
import queue
import re
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from pyspark import cloudpickle
from pyspark.sql.connect.session import SparkSession
from sparkgap import RunCancelledError, SessionEndedError, TorchDistributor, attach
from sparkgap_server.local import LocalServer

# The workers cannot import this file, so what it defines travels with the plan.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(120)

SESSION_SECONDS = 6


@pytest.fixture(scope="module")
def server():
    """Spark Connect forgets operations after two seconds without a client, and sessions soon after; the web UI can kill jobs."""
    conf = {
        "spark.ui.enabled": "true",
        "spark.ui.port": "0",
        "spark.connect.execute.reattachable.senderMaxStreamDuration": "1s",
        "spark.connect.execute.manager.detachedTimeout": "2s",
        "spark.connect.execute.manager.maintenanceInterval": "1s",
        "spark.connect.session.manager.defaultSessionTimeout": f"{SESSION_SECONDS}s",
        "spark.connect.session.manager.maintenanceInterval": "1s",
    }
    with LocalServer("local[2]", conf=conf) as running:
        yield running


@pytest.fixture
def session(server):
    opened = SparkSession.builder.remote(server.url).create()
    yield opened
    opened.stop()


def speak_and_wait(door, seconds=60):
    print("ready", flush=True)
    deadline = time.monotonic() + seconds
    while not Path(door).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(door)
        time.sleep(0.01)
    return "went on"


CLIENT = """
import sys, time
from pathlib import Path
from pyspark.sql.connect.session import SparkSession
from sparkgap import TorchDistributor

def main(door):
    print("ready", flush=True)
    while not Path(door).exists():
        time.sleep(0.01)
    return "went on alone"

spark = SparkSession.builder.remote(sys.argv[1]).create()
TorchDistributor(1, use_gpu=False, spark=spark, run_id="alone").run(main, sys.argv[2])
"""


def test_a_run_outlives_its_abandoned_operation_and_its_expired_session(server, tmp_path, eventually):
    door = tmp_path / "door"
    client = subprocess.Popen([sys.executable, "-c", CLIENT, server.url, str(door)], stdout=subprocess.PIPE, text=True)
    assert client.stdout.readline() == "[rank 0] ready\n"
    client.kill()
    client.communicate()
    log = server.log.read_text
    eventually(lambda: "abandoned and expired and will be removed" in log(), 30, "Spark has removed the operation")
    eventually(
        lambda: re.search(r"Found session .* that expired and will be closed", log()),
        30,
        "Spark has closed the session",
    )
    with_another = SparkSession.builder.remote(server.url).create()
    run = attach(with_another, "alone")
    assert run.status == "RUNNING"
    door.touch()
    assert run.result(timeout=30) == "went on alone"
    with_another.stop()


def test_a_session_that_has_expired_says_that_the_run_lives_and_how_to_take_it_up(server, tmp_path, eventually):
    expiring = SparkSession.builder.remote(server.url).create()
    run = TorchDistributor(1, use_gpu=False, spark=expiring).submit(speak_and_wait, tmp_path / "door")
    closed = re.compile(rf"Found session .*{expiring.session_id}.* that expired and will be closed")
    eventually(lambda: closed.search(server.log.read_text()), 60, "Spark has closed the session")
    for ask in (lambda: run.status, run.wait, run.result, run.cancel, run.metrics, lambda: list(run.logs())):
        with pytest.raises(
            SessionEndedError, match=rf"INVALID_HANDLE\.SESSION_CLOSED.*attach\(another_session, '{run.id}'\)"
        ):
            ask()
    another = SparkSession.builder.remote(server.url).create()
    taken_up = attach(another, run.id)
    assert taken_up.status == "RUNNING"
    (tmp_path / "door").touch()
    assert taken_up.result(30) == "went on"
    another.stop()
    with pytest.raises(SessionEndedError, match=r"NO_ACTIVE_SESSION.*belongs to the server"):
        taken_up.cancel()


def test_who_waits_in_run_is_told_that_the_session_is_over_and_the_run_is_not(server, session, tmp_path, eventually):
    told = queue.SimpleQueue()

    def wait_for_it():
        try:
            TorchDistributor(1, use_gpu=False, spark=session, run_id="waited-for").run(
                speak_and_wait, tmp_path / "door"
            )
        except Exception as error:
            told.put(error)

    thread = threading.Thread(target=wait_for_it)
    thread.start()
    another = SparkSession.builder.remote(server.url).create()
    eventually(lambda: is_running(another, "waited-for"), 60, "the run is RUNNING")
    session.client.release_session()  # as from another process of this session
    error = told.get(timeout=60)
    thread.join()
    assert isinstance(error, SessionEndedError), error
    assert "attach(another_session, 'waited-for')" in str(error)
    (tmp_path / "door").touch()
    assert attach(another, "waited-for").result(30) == "went on"
    another.stop()


def test_a_job_that_is_killed_in_the_web_ui_is_a_cancelled_run(server, session, tmp_path):
    run = TorchDistributor(1, use_gpu=False, spark=session, max_failures=5).submit(speak_and_wait, tmp_path / "door")
    next(run.logs(follow=True))
    port = re.search(r"'SparkUI' on port (\d+)", server.log.read_text())
    kill_the_job(f"http://127.0.0.1:{port[1]}/jobs/", run.id)
    assert run.wait(10)
    assert (run.status, run.attempts) == ("CANCELLED", 1)
    with pytest.raises(RunCancelledError, match=r"its job was ended through Spark: .*killed via Web UI"):
        run.result()


def kill_the_job(page, run_id):
    """Send the form behind the page's link that kills the run's job."""
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
    html = browser.open(page, timeout=10).read().decode()
    row = next(row for row in html.split("<tr") if run_id in row and "kill" in row)
    fields = re.findall(r"<input[^>]*name=['\"]([^'\"]+)['\"][^>]*value=['\"]([^'\"]*)['\"]", row)
    data = urllib.parse.urlencode(dict(fields)).encode()
    browser.open(urllib.parse.urljoin(page, "job/kill/"), data, timeout=10).close()


def test_sparks_interrupt_of_a_client_that_waits_cancels_the_run(session, tmp_path, eventually):
    caught = []
    run_id = f"interrupted-{time.time_ns()}"

    def wait_for_it():
        try:
            TorchDistributor(1, use_gpu=False, spark=session, run_id=run_id).run(speak_and_wait, tmp_path / "door")
        except RunCancelledError as error:
            caught.append(error)

    thread = threading.Thread(target=wait_for_it)
    thread.start()
    eventually(lambda: is_running(session, run_id), 30, "the run is RUNNING")
    session.interruptAll()
    thread.join(15)
    assert attach(session, run_id).status == "CANCELLED"
    assert len(caught) == 1
    assert "its client was interrupted through Spark" in str(caught[0])


def is_running(session, run_id):
    try:
        return attach(session, run_id).status == "RUNNING"
    except ValueError:
        return False


def test_an_interrupt_of_a_session_that_only_reads_the_lines_ends_nothing(session, tmp_path):
    door = tmp_path / "door"
    run = TorchDistributor(1, use_gpu=False, spark=session).submit(speak_and_wait, door)
    next(run.logs(follow=True))
    session.interruptAll()
    assert not run.wait(1)
    door.touch()
    assert run.result(30) == "went on"
