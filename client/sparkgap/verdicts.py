"""What a verdict of ``sparkgap doctor`` is, and those on this client alone; doctor.py has those on the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

OK = "ok"
WARNING = "warning"
PROBLEM = "problem"
NOT_CHECKED = "not checked"

#: What pyspark's client imports.
_NEEDED = ("pandas", "pyarrow", "numpy", "grpcio", "grpcio-status", "googleapis-common-protos", "protobuf")


@dataclass(frozen=True)
class Check:
    """One line of the doctor's: what was looked at, the verdict, what was found, and what to do about it."""

    name: str
    verdict: str
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Client:
    """Versions at this end; `packages` are those that are installed, by the name that pip knows."""

    python: str
    sparkgap: str
    packages: Mapping[str, str]

    @property
    def pyspark(self) -> str:
        """Version of whichever distribution brings the package pyspark; empty if none does."""
        return self.packages.get("pyspark-client") or self.packages.get("pyspark", "")


def client_checks(client: Client) -> list[Check]:
    """What can be said without a server."""
    return [Check("client", OK, f"sparkgap {client.sparkgap}, Python {client.python}"), _packages(client)]


def _packages(client: Client) -> Check:
    spark = [f"{name} {client.packages[name]}" for name in ("pyspark", "pyspark-client") if name in client.packages]
    if not spark:
        return Check("pyspark", PROBLEM, "not installed", "pip install 'sparkgap[client]'")
    if len(spark) > 1:
        return Check(
            "pyspark",
            PROBLEM,
            f"{spark[0]} and {spark[1]}, which both bring the package pyspark",
            "pip uninstall both, then install the one that is wanted: pyspark-client for a client alone",
        )
    if missing := [name for name in _NEEDED if name not in client.packages]:
        advice = "pip install 'sparkgap[client]' brings them"
        return Check("pyspark", PROBLEM, f"{spark[0]}, but not what it needs: {', '.join(missing)}", advice)
    return Check(
        "pyspark", OK, ", ".join([*spark, *(f"{name} {client.packages[name]}" for name in ("pandas", "pyarrow"))])
    )
