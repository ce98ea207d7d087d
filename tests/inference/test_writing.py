"""Names of files: none is another's."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolojax.inference.writing import class_folder, unique_stems

STEMS = st.lists(st.sampled_from(["a", "A", "a_1", "a_2", "a_1_1", "a-2", "a_01", "a_", "a_2_2"]), max_size=7)


@given(STEMS, st.sets(st.integers(0, 6)))
def test_no_two_files_share_a_name(stems, videos):
    """Whatever the order: images, and frames of videos by their numbers, have different names, also where case is ignored."""
    names = unique_stems(stems, videos)
    files = [
        [f"{name}_{frame}" for frame in range(1, 30)] if index in videos else [name] for index, name in enumerate(names)
    ]
    written = [name.casefold() for name in itertools.chain(*files)]
    assert len(written) == len(set(written))
    outputs = [name.casefold() for name in names]
    assert len(outputs) == len(set(outputs))
    if not videos and len({stem.casefold() for stem in stems}) == len(stems):
        assert names == stems


@pytest.mark.parametrize(("name", "folder"), [("n/a", "n_a"), ("..", "_"), ("a.", "a"), ("b\\c", "b_c")])
def test_class_names_as_folders(name, folder):
    assert class_folder(name) == folder
