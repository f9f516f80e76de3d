"""Checking and converting the files of a data set in isolated processes."""
