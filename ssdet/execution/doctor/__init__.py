"""Checks of machines before studies run there."""
