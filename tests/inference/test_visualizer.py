"""Pictures of class maps."""

from scnet_d2.inference import draw_labels, label_maps
from scnet_d2.inference.visualizer import heat

import numpy as np
import pytest
import torch


def test_a_class_map_is_dark_where_it_is_lowest_and_bright_where_it_is_highest():
    colors = heat(np.array([[-3.0, 5.0]]), (4, 8))
    assert colors.shape == (4, 8, 4)
    assert colors[:, 0].tolist() == [[0, 0, 4, 115]] * 4  # inferno(0), 0.45 of 255
    assert colors[:, -1].tolist() == [[252, 255, 164, 153]] * 4  # inferno(1), 0.6 of 255
    assert (np.diff(colors[0, :, :3].astype(int).sum(axis=1)) >= 0).all()


def test_a_class_map_of_one_value_is_dark_everywhere():
    assert (heat(np.full((2, 2), 7.0), (4, 4))[..., :3] == [0, 0, 4]).all()


def test_maps_are_found_by_label_and_are_none_without_class_maps():
    maps = label_maps({"class_maps": torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])}, ["cat", "dog"])
    assert {name: m.tolist() for name, m in maps.items()} == {"cat": [[1, 2]], "dog": [[3, 4]]}
    assert label_maps({}, ["cat", "dog"]) == {}


@pytest.mark.parametrize("scores", [(0.9, 0.8), (0.9, 0.1), (0.2, 0.1)])
def test_each_predicted_label_has_a_picture_of_its_own(scores):
    image = np.full((60, 80, 3), 200, dtype=np.uint8)
    labels = [
        {"label": name, "score": score, "box": None, "context_box": None}
        for name, score in zip(("cat", "dog"), scores)
    ]
    maps = {"cat": np.array([[0.0, 1.0]]), "dog": np.array([[1.0, 0.0]])}
    picture = draw_labels(image, labels, class_maps=maps)[:, :704].astype(int).sum(axis=2)
    middle = picture[len(picture) // 2]
    if scores[1] > 0.5:  # side by side: cat dark to bright, dog bright to dark
        dark = [middle[10] < middle[330], middle[362] > middle[680]]
    elif scores[0] > 0.5:
        dark = [middle[20] < middle[680]]
    else:  # the photograph as it is
        dark = [middle[40] == middle[660] == 600]
    assert all(dark)
