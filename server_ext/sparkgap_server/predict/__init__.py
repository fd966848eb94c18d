"""Batched prediction with one model for all tasks of an executor."""
