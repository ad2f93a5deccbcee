"""The daemon's process: builds all parts, keeps them running, and ends them."""
