"""Garbage collection pauses while the parts are opened, and only then."""

import gc

import pytest

from igd.process.daemon import garbage_collection_paused


def test_garbage_collection_is_paused_in_the_block_only() -> None:
    with garbage_collection_paused():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count()
    gc.unfreeze()


def test_garbage_collection_resumes_after_a_failure() -> None:
    with pytest.raises(OSError, match="no such interface"), garbage_collection_paused():
        raise OSError("no such interface")
    assert gc.isenabled()
