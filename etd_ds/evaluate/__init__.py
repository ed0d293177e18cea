"""Measurements of finished students."""
