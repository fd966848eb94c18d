"""Starts a Spark Connect server with the extension on the loopback address, for the server command, tests and scripts."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from sparkgap_server.java import OPTIONS, find_java
from sparkgap_server.local_cluster import LocalCluster, secret_file
from sparkgap_server.shim import SETTINGS, shim_jar, spark_home

_MAIN = "org.apache.spark.sql.connect.service.SparkConnectServer"


class ServerFailed(RuntimeError):
    """The server did not come up; the text holds the end of its log."""


class LocalServer:
    """A Connect server of one's own, as a context manager: up when the block is entered, gone with all its processes when it is left.

    Starting takes about 5 s, and some 10 s more the first time, when the shim is compiled. The server also ends when this process dies.

    Parameters
    ----------
    master
        Spark master; ``local[N]`` has N task slots in the server's own process, ``local-cluster[EXECUTORS,CORES,MEMORY]`` executors in processes of
        their own, with MEMORY MiB each, for what a cluster of one machine can show; it takes some 10 s more to start.
    port
        Port on the loopback address; 0 takes a free one.
    conf
        Further Spark settings; they override ours.
    token
        Secret that clients must present; a fresh random one by default, "" for none.
    start_timeout
        Seconds until a server that does not come up is an error.

    Raises
    ------
    ValueError
        `master` begins with ``local-cluster`` and Spark would not take it.
    """

    def __init__(
        self,
        master: str = "local[*]",
        *,
        port: int = 0,
        conf: Mapping[str, str] | None = None,
        token: str | None = None,
        start_timeout: float = 120,
    ) -> None:
        self._master = master
        self._cluster = LocalCluster.of(master)
        self._conf = {"spark.connect.grpc.binding.port": str(port), **(conf or {})}
        self._token = secrets.token_urlsafe(24) if token is None else token
        self._start_timeout = start_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._port = 0

    def __repr__(self) -> str:
        return f"LocalServer(master={self._master!r}, port={self._port})"

    @property
    def url(self) -> str:
        """What `SparkSession.builder.remote` takes; holds the token."""
        return f"sc://localhost:{self._port}/" + (f";token={self._token}" if self._token else "")

    @property
    def log(self) -> Path:
        """The server's log; removed when the server is stopped."""
        if self._folder is None:
            raise ServerFailed("the server is not running")
        return self._folder / "server.log"

    @property
    def pid(self) -> int:
        """Process id of the JVM."""
        if self._process is None:
            raise ServerFailed("the server is not running")
        return self._process.pid

    def start(self) -> LocalServer:
        """Start, and return when clients can connect.

        Raises
        ------
        ServerFailed
            When the JVM ends or `start_timeout` is over, with the end of its log.
        """
        if self._process is not None:
            raise ServerFailed("the server is running already")
        java = find_java()
        self._folder = Path(tempfile.mkdtemp(prefix="sparkgap-server-"))
        try:
            with self.log.open("wb") as log:
                # A session of its own: Ctrl-C in a terminal reaches the launcher, which then stops the server in order.
                self._process = subprocess.Popen(
                    self._command(self._folder, java),
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment(self._folder, java),
                    start_new_session=True,
                )
            self._port = self._await_port(self._folder / "port")
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the server and everything that it started; does nothing when it does not run.

        This process's session on it is stopped first: at exit, pyspark would look for its server for minutes.
        """
        if self._process is not None:
            self._stop_session()
            self._process.terminate()
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def wait(self) -> int:
        """Block until the server ends by itself, and return its exit status."""
        if self._process is None:
            raise ServerFailed("the server is not running")
        return self._process.wait()

    def __enter__(self) -> LocalServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _command(self, folder: Path, java: Path) -> list[str]:
        home = spark_home()
        conf = {
            **SETTINGS,
            "spark.jars": str(shim_jar()),
            "spark.sparkgap.readyFile": str(folder / "port"),
            "spark.sparkgap.launcherFolder": str(folder),
            "spark.connect.grpc.binding.address": "127.0.0.1",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.sql.warehouse.dir": str(folder / "warehouse"),
            "spark.local.dir": str(folder / "local"),
            "spark.ui.enabled": "false",
            # Spark makes up the secret where all is one process, else secret_file does; other users of this machine cannot talk to the driver's own
            # ports then.
            **({"spark.authenticate": "true"} if self._master.startswith("local") else {}),
            **(self._cluster.settings() if self._cluster else {}),
            **self._conf,
        }
        options = [f"--conf={key}={value}" for key, value in conf.items()]
        properties = ["--properties-file", str(secret_file(folder)), "--load-spark-defaults"] if self._cluster else []
        memory = f"-Xmx{conf.get('spark.driver.memory', '2g')}"
        submit = [
            "org.apache.spark.deploy.SparkSubmit",
            "--master",
            self._master,
            *properties,
            *options,
            "--class",
            _MAIN,
            "spark-internal",
        ]
        temporary = f"-Djava.io.tmpdir={folder / 'tmp'}"
        (folder / "tmp").mkdir()
        classpath = f"{home / 'jars'}/*"
        conf_dir = os.environ.get("SPARK_CONF_DIR")
        return [
            str(java), *OPTIONS, memory, temporary,
            "-cp", f"{conf_dir}:{classpath}" if conf_dir else classpath, *submit,
        ]  # fmt: skip

    def _environment(self, folder: Path, java: Path) -> dict[str, str]:
        # A session that is itself a Connect client must not turn this server into one.
        inherited = {k: v for k, v in os.environ.items() if k not in ("SPARK_REMOTE", "SPARK_CONNECT_MODE_ENABLED")}
        secret = {"SPARK_CONNECT_AUTHENTICATE_TOKEN": self._token} if self._token else {}
        return {
            **inherited,
            "SPARK_HOME": str(spark_home()),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "PYSPARK_PYTHON": os.environ.get("PYSPARK_PYTHON", sys.executable),
            **(self._cluster.prepare(folder, spark_home(), java) if self._cluster else {}),
            **secret,
        }

    def _await_port(self, ready: Path) -> int:
        assert self._process is not None
        deadline = time.monotonic() + self._start_timeout
        while not ready.exists():
            if self._process.poll() is not None:
                raise ServerFailed(f"the server ended with status {self._process.returncode}:\n{self._log_end()}")
            if time.monotonic() > deadline:
                raise ServerFailed(
                    f"the server accepted no connections within {self._start_timeout:g} s:\n{self._log_end()}"
                )
            time.sleep(0.02)
        return int(ready.read_text())

    def _stop_session(self) -> None:
        if (
            "pyspark.sql.connect.session" not in sys.modules
            or self._process is None
            or self._process.poll() is not None
        ):
            return
        from pyspark.sql.connect.session import SparkSession

        session = SparkSession.getActiveSession() or SparkSession._get_default_session()
        if session is not None and session.client._builder.endpoint == f"localhost:{self._port}":
            session.stop()

    def _log_end(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])
