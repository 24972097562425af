"""Verbs that pass over all rows of a table with a model, and add what it says as columns."""
