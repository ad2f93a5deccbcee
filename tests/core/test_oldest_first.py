"""The index of a peer's mappings against a plain list."""

from hypothesis import given
from hypothesis import strategies as st

from igd.core.oldest_first import OldestFirst

ITEMS = st.integers(0, 12)


@given(st.lists(st.tuples(st.sampled_from(["add", "remove"]), ITEMS), max_size=60), st.lists(ITEMS, unique=True))
def test_it_is_a_list_without_repetitions(steps: list[tuple[str, int]], wanted: list[int]) -> None:
    index, model = OldestFirst[int](), list[int]()
    for step, item in steps:
        if step == "add":
            index.add(item)
            model += [item] if item not in model else []
        elif item in model:
            index.remove(item)
            model.remove(item)
        assert len(index) == len(model)
        assert [index[place] for place in range(len(index))] == list(index) == model
    assert index.among(wanted) == [item for item in model if item in wanted]
