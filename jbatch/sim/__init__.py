"""Devices that are none: a runner for pencil and paper, and steps from a file."""
