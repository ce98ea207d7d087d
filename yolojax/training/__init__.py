"""Targets, loss, optimizer, step and the loop around it."""
