"""The tests, and the demo."""
