"""Boxes on their way back to the photo. Suppression, matching and average precision: ``tests/evaluation/test_goldens.py``."""

import numpy as np
import pytest

from yolojax.evaluation.tally import to_photo


@pytest.mark.parametrize("photo", range(4))
def test_boxes_return_to_the_photo(photo, golden):
    boxes = golden("suppression")[f"{photo}.validation"]
    height, width = 256 * 2 + 30, 256 * 3
    gain = min(256 / height, 256 / width)
    padding = np.array([(256 - width * gain) / 2, (256 - height * gain) / 2], np.float32)
    batch = {"original_size": [(height, width)], "gain": [(gain, gain)], "padding": [padding]}
    ours = to_photo(boxes, batch, 0)[:, :4]
    clipped = (ours == 0) | (ours == (width, height, width, height))
    assert 0 < clipped.mean() < 0.5
    np.testing.assert_allclose(ours, golden("suppression")[f"{photo}.scaled"], atol=1e-3)
