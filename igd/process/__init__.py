"""The daemon's process: builds all parts, serves, and closes them."""
