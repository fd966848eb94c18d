"""Compiles the Scala shim with the compiler inside pyspark's own jars, for the server command; the result always fits the Spark that loads it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
import zipfile
from pathlib import Path

from google.protobuf import any_pb2, descriptor_pb2
from sparkgap_protos.v1 import node_pb2, plan_pb2, run_pb2

from sparkgap_server.java import find_java

PACKAGE = "org.apache.spark.sql.connect.sparkgap"

#: What Spark has to be told to load the shim.
SETTINGS = {
    "spark.plugins": f"{PACKAGE}.SparkgapPlugin",
    "spark.sql.extensions": f"{PACKAGE}.SparkgapRules",
    "spark.connect.extensions.command.classes": f"{PACKAGE}.SparkgapCommands",
    "spark.connect.extensions.expression.classes": f"{PACKAGE}.SparkgapExpressions",
    "spark.connect.extensions.getStatus.classes": f"{PACKAGE}.SparkgapStatus",
}


class ShimFailed(RuntimeError):
    """The shim could not be compiled; the text holds the compiler's."""


def spark_home() -> Path:
    """Folder of the pyspark installation whose jars run the server."""
    import pyspark

    home = Path(pyspark.__file__).parent
    if not (home / "jars").is_dir():
        raise ShimFailed(
            f"{home} has no jars: this is pyspark-client. A server needs the full pyspark: pip install 'sparkgap[server]' "
            "in an environment of its own"
        )
    return home


def shim_jar() -> Path:
    """The compiled shim from the cache of this user; compiles it first, 5 to 15 s, when Spark or the sources have changed."""
    import pyspark

    digest = hashlib.sha256(_schema())
    for source in _sources():
        digest.update(source.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparkgap"
    jar = cache / f"sparkgap-spark-{pyspark.__version__}-{digest.hexdigest()[:16]}.jar"
    if not jar.exists():
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        build_jar(jar)
    return jar


def build_jar(output: Path) -> None:
    """Compile the shim into `output`; an existing file is replaced at once, never half.

    Raises
    ------
    ShimFailed
        With the compiler's messages.
    """
    jars = sorted((spark_home() / "jars").glob("*.jar"))
    classpath = ":".join(map(str, jars))
    with tempfile.TemporaryDirectory(prefix="sparkgap-shim-") as folder:
        classes = Path(folder, "classes")
        classes.mkdir()
        # The class path is 300 files long: an argument file keeps it out of the process list.
        arguments = Path(folder, "arguments")
        arguments.write_text("\n".join(["-nowarn", "-classpath", classpath, "-d", str(classes), *map(str, _sources())]))
        # The compiler runs once and for seconds, so the JVM's best compiler and its parallel collector only cost it time.
        quick = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xms1g"]
        command = [str(find_java()), *quick, "-cp", f"{spark_home()}/jars/*", "scala.tools.nsc.Main", f"@{arguments}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            raise ShimFailed(f"the Scala compiler ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
        descriptor, unfinished = tempfile.mkstemp(dir=output.parent, prefix=f"{output.name}.")
        with os.fdopen(descriptor, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("META-INF/MANIFEST.MF", "Manifest-Version: 1.0\n")
            archive.writestr("sparkgap/schema.bin", _schema())
            for path in sorted(classes.rglob("*.class")):
                archive.write(path, path.relative_to(classes))
        os.chmod(unfinished, 0o644)
        os.replace(unfinished, output)


def _sources() -> list[Path]:
    here = Path(__file__).parent
    # An editable install reads the checkout, a wheel carries the sources inside the package.
    folder = next(each for each in (here / "jvm", here.parent / "jvm") if each.is_dir())
    return sorted(folder.glob("*.scala"))


def _schema() -> bytes:
    files = [descriptor_pb2.FileDescriptorProto() for _ in range(3)]
    for proto, module in zip(files, (plan_pb2, run_pb2, node_pb2), strict=True):
        module.DESCRIPTOR.CopyToProto(proto)
    assert any_pb2.DESCRIPTOR.name == "google/protobuf/any.proto"  # known to the shim under this name
    return descriptor_pb2.FileDescriptorSet(file=files).SerializeToString(deterministic=True)
