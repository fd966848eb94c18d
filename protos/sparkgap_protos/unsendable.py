"""What pickles and means nothing in another process, for the codec: connections to Spark, and whatever lives behind them.

Most of it would be opened without complaint and fail where it is used, with Spark's advice to create a session there.
"""

from __future__ import annotations

_SESSION = (
    "It works in this process alone. Use it here, and pass the data that the function needs, or write the data to storage and pass the path. The "
    "function must not create a session either: each of its processes would start a Spark of its own."
)
_QUERY = (
    "It is a query, which Spark runs for this process alone. Write it to storage and pass the path, or pass what collect() or toPandas() returns if "
    "that is small."
)
_COLUMN = (
    "It is a part of a query and holds no data. Select it in a DataFrame, write that to storage and pass the path."
)
_BROADCAST = "Only Spark's own Python workers can open it. Pass its value instead (.value)."
_ACCUMULATOR = "What is added to it in another process never comes back. Return the number, or report it with sparkgap.training.report."
_JAVA = "It stands for an object of the Java process beside this one. Pass plain Python or NumPy values."
_RUN = "It needs its session. Pass its id, and take it up where there is a session: sparkgap.attach(spark, run_id)."

#: By the package and the name of a class or of one of its bases: the classes themselves are not imported for this.
_ADVICE = {
    ("pyspark", "SparkSession"): _SESSION,
    ("pyspark", "SparkContext"): _SESSION,
    ("pyspark", "SparkConnectClient"): _SESSION,
    ("pyspark", "DataFrame"): _QUERY,
    ("pyspark", "GroupedData"): _QUERY,
    ("pyspark", "RDD"): _QUERY,
    ("pyspark", "Column"): _COLUMN,
    ("pyspark", "Broadcast"): _BROADCAST,
    ("pyspark", "Accumulator"): _ACCUMULATOR,
    ("py4j", "JavaObject"): _JAVA,
    ("sparkgap", "Run"): _RUN,
}


def advice(kind: type) -> str | None:
    """Why objects of this class cannot travel and what to do instead; None for all others."""
    for base in kind.__mro__:
        module = base.__dict__.get("__module__")
        if isinstance(module, str) and (found := _ADVICE.get((module.partition(".")[0], base.__name__))):
            return found
    return None
