"""Context Scenes: reproducible, well formed, and undecidable from the tight crops of its pairs."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

from scnet_d2.data.context_scenes import (
    CLASSES,
    COMPANION_OF,
    CONTEXT_PAIRS,
    SPLITS,
    SURFACE_OF,
    SceneConfig,
    context_blind_scores,
    generate,
    render_scene,
)
from scnet_d2.data.context_scenes import generator as context_scenes
from scnet_d2.data.context_scenes.__main__ import contact_sheet

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from scipy.stats import binomtest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

TINY = SceneConfig(seed=7, sizes=(5, 2, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return generate(str(tmp_path_factory.mktemp("root")), SceneConfig(sizes=(400, 150, 250)))


@pytest.fixture(scope="module")
def splits(folder):
    """The three annotation files."""
    read = {}
    for split in SPLITS:
        with open(os.path.join(folder, "annotations", f"{split}.json")) as f:
            read[split] = json.load(f)
    return read


def files_of(folder):
    """Relative path → content of every file."""
    contents = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            with open(path, "rb") as f:
                contents[os.path.relpath(path, folder)] = f.read()
    return contents


# ---- Writing ------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_bytes_with_any_number_of_workers(tmp_path):
    one = files_of(generate(str(tmp_path / "one"), TINY, workers=1))
    two = files_of(generate(str(tmp_path / "two"), TINY, workers=2))
    assert len(one) == 5 + 2 + 1 + 3
    assert one == two


def test_another_seed_or_split_gives_other_images():
    first = render_scene(SceneConfig(seed=1), "train", 0)[0]
    for config, split in ((SceneConfig(seed=2), "train"), (SceneConfig(seed=1), "val")):
        assert not np.array_equal(first, render_scene(config, split, 0)[0])


def test_a_complete_set_is_not_written_again(tmp_path):
    folder = generate(str(tmp_path), TINY)
    path = os.path.join(folder, "images", "train", "000001.png")
    before = os.stat(path)
    assert generate(str(tmp_path), TINY) == folder
    assert os.stat(path).st_mtime_ns == before.st_mtime_ns
    assert os.stat(path).st_ino == before.st_ino


def test_an_interrupted_run_leaves_no_set_and_the_next_run_completes(tmp_path, monkeypatch):
    def interrupt(task):
        if task[2] == "val":
            raise KeyboardInterrupt
        return write(task)

    write = context_scenes._write_image
    monkeypatch.setattr(context_scenes, "_write_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate(str(tmp_path), TINY, workers=1)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []

    monkeypatch.undo()
    (tmp_path / "context_scenes.partial" / "images").mkdir(parents=True)  # as after a kill
    assert len(files_of(generate(str(tmp_path), TINY))) == 11
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["context_scenes"]


def test_two_callers_at_once_write_once(tmp_path, monkeypatch):
    calls = []
    write = context_scenes._write
    monkeypatch.setattr(
        context_scenes, "_write", lambda *args: (calls.append(args), write(*args))[1]
    )
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: generate(str(tmp_path), TINY, workers=1), range(2)))
    assert folders[0] == folders[1]
    assert len(calls) == 1


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path):
    foreign = tmp_path / "context_scenes" / "notes.txt"
    foreign.parent.mkdir()
    foreign.write_text("mine")
    with pytest.raises(FileExistsError, match=r"context_scenes is not a complete .* remove "):
        generate(str(tmp_path), TINY)
    assert foreign.read_text() == "mine"


def test_another_seed_or_a_missing_image_is_refused(tmp_path):
    folder = generate(str(tmp_path), TINY)
    with pytest.raises(FileExistsError, match="other parameters: remove"):
        generate(str(tmp_path), SceneConfig(seed=8, sizes=TINY.sizes))
    os.remove(os.path.join(folder, "images", "val", "000002.png"))
    with pytest.raises(FileExistsError, match="images/val holds 1 files instead of 2: remove"):
        generate(str(tmp_path), TINY)


# ---- Content ------------------------------------------------------------------------------------


def test_annotations_are_valid_coco_and_fit_the_images(folder, splits):
    coco = COCO(os.path.join(folder, "annotations", "val.json"))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    assert coco.getCatIds() == list(range(1, len(CLASSES) + 1))
    for image in coco.loadImgs(coco.getImgIds()):
        pixels = cv2.imread(os.path.join(folder, "images", "val", image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3)
        assert max(pixels.shape) == 160
        assert 1 <= len(coco.getAnnIds(image["id"])) <= 8
    assert splits["val"]["info"]["seed"] == 1


def test_boxes_are_inside_of_a_wide_range_of_sizes_and_visible(splits):
    for coco in splits.values():
        sizes = {image["id"]: (image["width"], image["height"]) for image in coco["images"]}
        sides = []
        for a in coco["annotations"]:
            (x, y, w, h), (width, height) = a["bbox"], sizes[a["image_id"]]
            assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
            assert a["visible"] >= 0.4
            sides += [(min(w, h), max(w, h))]
        assert min(sides)[0] == 8
        assert max(longer for _, longer in sides) >= 75
        assert 0.2 < np.mean([a["visible"] < 0.95 for a in coco["annotations"]]) < 0.6


def image_labels(coco):
    labels = np.zeros((len(coco["images"]), len(CLASSES)), bool)
    for a in coco["annotations"]:
        labels[a["image_id"] - 1, a["category_id"] - 1] = True
    return labels


def test_every_class_is_neither_rare_nor_in_most_images(splits):
    labels = np.concatenate([image_labels(splits[split]) for split in SPLITS])
    assert 2.3 < labels.sum(axis=1).mean() < 3.1
    assert labels.mean(axis=0).min() > 0.06
    assert labels.mean(axis=0).max() < 0.48


def test_images_have_several_surfaces_and_objects_lie_where_they_belong(splits):
    coco = splits["train"]
    assert {len(image["surfaces"]) for image in coco["images"]} == {2, 3, 4}
    strays = []
    for a in coco["annotations"]:
        name = CLASSES[a["category_id"] - 1]
        if name in SURFACE_OF:
            assert a["surface"] == SURFACE_OF[name]
        else:
            strays.append(a["surface"] not in context_scenes.HOMES[name])
    assert 0.01 < np.mean(strays) < 0.1


def test_both_surfaces_of_a_pair_are_often_in_the_image(splits):
    """Otherwise the image as a whole, not the surroundings of the object, would tell."""
    both = []
    for image in splits["train"]["images"]:
        present = [
            {SURFACE_OF[name] for name in pair} <= {*image["surfaces"]} for pair in CONTEXT_PAIRS
        ]
        both.append(any(present))
    assert np.mean(both) > 0.6


# ---- The pairs ----------------------------------------------------------------------------------


def features(crop):
    """Pixels, colour histograms, gradients, frequencies, border rows and size of a crop: (F,)."""
    small = cv2.resize(crop, (12, 12), interpolation=cv2.INTER_AREA).astype(np.float32)
    hsv = cv2.cvtColor(crop, cv2.COLOR_BGR2HSV).reshape(-1, 3)
    histograms = [np.histogram(hsv[:, i], 12, (0, 256), density=True)[0] for i in range(3)]
    grey = cv2.resize(cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY), (24, 24)).astype(np.float32)
    dy, dx = np.gradient(grey)
    turn = np.histogram(np.arctan2(dy, dx), 9, weights=np.hypot(dx, dy))[0]
    spectrum = np.log1p(np.abs(np.fft.rfft2(grey - grey.mean())))[:12, :12]
    border = [crop[0].mean(0), crop[-1].mean(0), crop[:, 0].mean(0), crop[:, -1].mean(0)]
    moments = [*crop.mean((0, 1)), *crop.std((0, 1)), *np.log(crop.shape[:2])]
    parts = [small, *histograms, turn, spectrum, *border, moments]
    return np.concatenate([np.ravel(part) for part in parts])


def crops(folder, coco, split, pair, ratio):
    """One object of the pair from each image (objects of one image are not independent).

    Returns:
        (N, F) features of the boxes expanded by `ratio`, and (N,) bool: the second of the pair.
    """
    ids = [CLASSES.index(name) + 1 for name in pair]
    first = {}
    for a in coco["annotations"]:
        if a["category_id"] in ids:
            first.setdefault(a["image_id"], a)
    rows = []
    for image_id, a in first.items():
        image = cv2.imread(os.path.join(folder, "images", split, f"{image_id:06d}.png"))
        x, y, w, h = a["bbox"]
        dx, dy = (round(side * (ratio - 1) / 2) for side in (w, h))
        crop = image[max(y - dy, 0) : y + h + dy, max(x - dx, 0) : x + w + dx]
        rows.append(features(crop))
    return np.array(rows), np.array([a["category_id"] == ids[1] for a in first.values()])


def hits(folder, splits, pair, ratio, make_model):
    """Whether each crop of val and test is classified correctly after fitting to train: (N,)."""
    model = make_model().fit(*crops(folder, splits["train"], "train", pair, ratio))
    right = []
    for split in ("val", "test"):
        x, y = crops(folder, splits[split], split, pair, ratio)
        right.append(model.predict(x) == y)
    return np.concatenate(right)


def forest():
    return RandomForestClassifier(60, min_samples_leaf=2, random_state=0)


def linear():
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))


@pytest.mark.parametrize("make_model", [forest, linear])
def test_tight_crops_of_a_pair_stay_at_chance(folder, splits, make_model):
    """0.5 lies in the 99.9 % interval of the accuracy, for each pair and for all together."""
    right = [hits(folder, splits, pair, 1.0, make_model) for pair in CONTEXT_PAIRS]
    for sample in [*right, np.concatenate(right)]:
        assert len(sample) > 60
        interval = binomtest(int(sample.sum()), len(sample)).proportion_ci(0.999)
        assert interval.low < 0.5 < interval.high


def test_expanded_crops_of_a_pair_tell_its_members_apart(folder, splits):
    for pair in CONTEXT_PAIRS:
        assert hits(folder, splits, pair, 2.0, forest).mean() > 0.8


def test_the_apron_of_a_cue_gap_is_grey():
    """Within 0.4 box widths of an object nothing of a (coloured) surface shows at a gap of 0.5."""
    config, spreads = SceneConfig(cue_gap=0.5), []
    for index in range(40):
        image, contents = render_scene(config, "train", index)
        for a in contents["annotations"]:
            if a["name"] in SURFACE_OF and a["visible"] == 1:
                x, y, w, h = a["bbox"]
                dx, dy = int(0.4 * w), int(0.4 * h)
                ring = np.zeros(image.shape[:2], bool)
                ring[max(y - dy, 0) : y + h + dy, max(x - dx, 0) : x + w + dx] = True
                ring[y : y + h, x : x + w] = False
                spreads.append(np.ptp(np.median(image[ring], axis=0)))
    assert len(spreads) > 15
    assert max(spreads) < 16  # grey levels between the channels


@pytest.fixture(scope="module")
def with_companions():
    """(class of the object, distance of the nearest companion of each class) of 60 scenes."""
    config, rows = SceneConfig(companions=1.0, companion_gap=1.0), []
    for index in range(60):
        _, contents = render_scene(config, "train", index)
        for a in contents["annotations"]:
            if a["name"] in COMPANION_OF:
                distances = {
                    b["name"]: distance(a["bbox"], b["bbox"])
                    for b in contents["annotations"]
                    if b["name"] in COMPANION_OF.values()
                }
                rows.append((a["name"], distances))
    return rows


def distance(box, other):
    """Larger gap between two boxes [x, y, w, h] over both axes, in sides of the first."""
    (x, y, w, h), (u, v, s, t) = box, other
    return max(max(x - u - s, u - x - w) / w, max(y - v - t, v - y - h) / h)


def test_the_nearer_companion_tells_the_class_from_beyond_a_context_box(with_companions):
    assert len(with_companions) > 40
    for name, distances in with_companions:
        own = COMPANION_OF[name]
        assert 1.0 <= distances[own] <= 1.7
        assert all(d >= 2.4 for kind, d in distances.items() if kind != own)


def test_companions_come_alone_and_with_the_other_one_for_both_classes(with_companions):
    for name in COMPANION_OF:
        both = [len(distances) == 2 for kind, distances in with_companions if kind == name]
        assert len(both) > 12
        assert 0.2 < np.mean(both) < 0.8


def test_without_companions_a_set_is_described_as_before_there_were_any():
    assert not {"companions", "companion_gap"} & SceneConfig().describe().keys()
    assert SceneConfig(companions=0.5).describe()["companion_gap"] == 1.0
    assert SceneConfig().classes == CLASSES
    assert SceneConfig(companions=0.5).classes == (*CLASSES, "trough", "charger")


# ---- Bounds and pictures ------------------------------------------------------------------------


def as_dict(*names):
    return {"annotations": [{"category_id": CLASSES.index(name)} for name in names]}


def test_context_blind_scores_know_pairs_by_number_alone():
    train = [
        as_dict("raft", "car"),
        as_dict("raft"),
        as_dict("raft"),
        as_dict("sledge"),
        as_dict("raft", "sledge"),
        as_dict("sledge", "sledge"),
        as_dict("towel"),
    ]
    test = [as_dict("sledge", "car"), as_dict("raft", "raft"), as_dict("blanket"), as_dict()]
    scores = context_blind_scores(train, test)
    columns = [CLASSES.index(n) for n in ("raft", "sledge", "blanket", "towel", "car")]
    expected = [
        [0.75, 0.25, 0, 0, 1],  # one such object: raft in 3 of 4 training images
        [0.5, 1.0, 0, 0, 0],  # two: raft in 1 of 2, sledge in both
        [0, 0, 0, 1, 0],  # one: only ever a towel
        [0, 0, 0, 0, 0],
    ]
    np.testing.assert_allclose(scores[:, columns], expected)
    assert scores.shape == (4, len(CLASSES))


def test_contact_sheet_has_one_tile_for_each_image():
    assert contact_sheet(TINY, rows=1, columns=2, scale=2).shape == (328, 656, 3)
