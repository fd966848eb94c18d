"""The one process beside each executor that forks and supervises all processes that run user code there."""
