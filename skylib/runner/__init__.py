"""Notebooks without a person: parameters, execution, status and the page of results."""
