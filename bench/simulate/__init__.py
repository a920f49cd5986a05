"""Runs on costs instead of a device: measured ones, or those of a description of hardware."""
