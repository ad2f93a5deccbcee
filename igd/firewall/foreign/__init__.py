"""Rules of the operator's: read, judged, and let through what is ours by the least that does."""
