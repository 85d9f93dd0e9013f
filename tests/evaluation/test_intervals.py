"""Bootstrap intervals and comparisons against a loop that evaluates every resampled test set."""

import json
import re

from scnet_d2.evaluation import (
    bootstrap_map,
    compare_map,
    intervals,
    map_interval,
    multilabel_metrics,
)

import numpy as np
import pytest
from conftest import scnet
from hypothesis import given, settings
from hypothesis import strategies as st


def naive_map(scores, labels, ignored, replicates, seed):
    """MAP of each replicate by drawing its rows and calling multilabel_metrics."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(replicates):
        rows = rng.integers(len(scores), size=len(scores))
        arrays = scores[rows], labels[rows], ignored[rows]
        some = (arrays[1] & ~arrays[2]).any()
        values.append(multilabel_metrics(*arrays)["mAP"] if some else np.nan)
    return np.array(values)


def make(num_images, num_classes, *, seed, separation=1.5, prevalence=0.2):
    """Labels, and scores of two models of equal quality that agree in part."""
    rng = np.random.default_rng(seed)
    labels = rng.random((num_images, num_classes)) < prevalence
    shared = rng.normal(size=labels.shape) + separation * labels
    noise = rng.normal(size=(2, *labels.shape))
    first, second = 1 / (1 + np.exp(-(shared + noise) / 2))
    return first, second, labels


@st.composite
def inputs(draw):
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    shape = draw(st.tuples(st.integers(1, 40), st.integers(1, 5)))
    steps = draw(st.sampled_from([1, 2, 5, 1000]))  # few steps: many equal scores
    scores = (rng.integers(0, steps + 1, shape) / steps).astype(draw(st.sampled_from("fd")))
    labels = rng.random(shape) < draw(st.sampled_from([0.05, 0.3, 0.9]))
    ignored = rng.random(shape) < draw(st.sampled_from([0.0, 0.3]))
    labels[0, 0], ignored[0, 0] = True, False
    return scores, labels, ignored, seed


@settings(max_examples=60, deadline=None)
@given(inputs())
def test_every_replicate_is_the_map_of_its_rows(case):
    scores, labels, ignored, seed = case
    replicates = bootstrap_map(scores, labels, ignored, replicates=20, seed=seed)
    expected = naive_map(scores, labels, ignored, 20, seed)
    np.testing.assert_allclose(replicates, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_images", [255, 256, 70_000])  # where the counts' type changes
def test_counts_do_not_overflow(num_images):
    scores = np.full((num_images, 1), 0.5)
    labels = np.arange(num_images)[:, None] % 4 == 0
    scores[1] = 0.4  # all others are one group
    replicates = bootstrap_map(scores, labels, replicates=2)
    expected = naive_map(scores, labels, np.zeros_like(labels), 2, 0)
    np.testing.assert_allclose(replicates, expected, rtol=0, atol=1e-9)


def test_size_of_the_chunks_does_not_matter(monkeypatch):
    first, _, labels = make(50, 3, seed=0)
    whole = bootstrap_map(first, labels, replicates=30)
    done = []
    monkeypatch.setattr(intervals, "CHUNK_ENTRIES", 50 * 7)
    np.testing.assert_array_equal(
        bootstrap_map(first, labels, replicates=30, progress=done.append), whole
    )
    assert done == [7, 7, 7, 7, 2]


def test_interval_of_a_map_is_the_percentile_interval_moved_by_twice_the_bias():
    first, _, labels = make(80, 3, seed=1)
    interval = map_interval(first, labels, replicates=200, seed=5, confidence=0.9)
    samples = naive_map(first, labels, np.zeros_like(labels), 200, 5)
    value = multilabel_metrics(first, labels)["mAP"]
    expected = np.percentile(samples, [5, 95]) - 2 * (samples.mean() - value)
    np.testing.assert_allclose(interval, [value, *expected], rtol=0, atol=1e-9)


def test_comparison_draws_the_same_images_for_both():
    first, second, labels = make(80, 3, seed=2)
    ignored = np.random.default_rng(0).random(labels.shape) < 0.1
    result = compare_map(first, second, labels, ignored, replicates=200, seed=5)
    a, b = (naive_map(scores, labels, ignored, 200, 5) for scores in (first, second))
    values = [multilabel_metrics(scores, labels, ignored)["mAP"] for scores in (first, second)]
    difference = [values[1] - values[0], *np.percentile(b - a, [2.5, 97.5])]
    np.testing.assert_allclose(result.difference, difference, rtol=0, atol=1e-9)
    fewer = min((b <= a).sum(), (b >= a).sum())
    assert result.p == pytest.approx(2 * (fewer + 1) / 201)
    assert result.first == map_interval(first, labels, ignored, replicates=200, seed=5)
    swapped = compare_map(second, first, labels, ignored, replicates=200, seed=5)
    assert swapped.p == result.p
    assert swapped.difference.value == -result.difference.value


def test_equal_scores_have_difference_zero_and_p_one():
    first, _, labels = make(40, 2, seed=3)
    result = compare_map(first, first, labels, replicates=50)
    assert result.difference == (0, 0, 0)
    assert result.p == 1


def test_a_clear_difference_has_the_smallest_p():
    first, _, labels = make(200, 3, seed=4)
    perfect = labels.astype(float)
    result = compare_map(first, perfect, labels, replicates=99)
    assert result.second == (100, 100, 100)
    assert result.p == pytest.approx(2 / 100)


def test_intervals_contain_the_truth_about_as_often_as_they_say():
    """On 300 test sets of 200 images: mAP 91 %, difference 93 %, plain percentile of mAP 79 %.

    Here on the first 100 of them, and with fewer replicates.
    """
    big, _, labels = make(200_000, 8, seed=0)
    truth = multilabel_metrics(big, labels)["mAP"]
    results = []
    for seed in range(1, 101):
        first, second, labels = make(200, 8, seed=seed)
        results.append(compare_map(first, second, labels, replicates=100, seed=seed))
    assert np.mean([r.first.low <= truth <= r.first.high for r in results]) >= 0.85
    assert np.mean([r.difference.low <= 0 <= r.difference.high for r in results]) >= 0.87
    assert np.mean([r.p < 0.05 for r in results]) <= 0.12  # both models are equally good


def test_impossible_requests_are_named():
    first, _, labels = make(20, 2, seed=0)
    with pytest.raises(ValueError, match="replicates must be at least 1, got 0"):
        bootstrap_map(first, labels, replicates=0)
    with pytest.raises(ValueError, match="too few images for an interval"):
        drawn = np.random.default_rng(0).integers(20, size=20)
        only = np.setdiff1d(np.arange(20), drawn)[:1]  # the one image with a positive
        map_interval(first, np.isin(np.arange(40).reshape(20, 2), 2 * only), replicates=1)


def save(path, scores, labels, *, rows=slice(None), ids=None, names="abc", ignored=None):
    arrays = {
        "image_ids": np.arange(len(scores)) if ids is None else ids,
        "scores": scores,
        "labels": labels,
        "ignored": np.zeros_like(labels) if ignored is None else ignored,
    }
    np.savez(path, class_names=list(names), **{k: v[rows] for k, v in arrays.items()})
    return str(path)


def test_tool_matches_images_by_their_ids(tmp_path, capsys):
    first, second, labels = make(60, 3, seed=6)
    a = save(tmp_path / "a.npz", first, labels)
    b = save(tmp_path / "b.npz", second, labels, rows=np.random.default_rng(0).permutation(60))
    assert scnet("compare", a, b, "--replicates", 100, "--seed", 7, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    expected = compare_map(first, second, labels, replicates=100, seed=7)
    for key, value in zip(("A", "B", "difference", "p"), expected):
        assert printed["mAP"][key] == pytest.approx(value, abs=1e-9)
    metrics = multilabel_metrics(second, labels)
    assert printed["metrics"]["B"] == pytest.approx(
        {k: metrics[k] for k in printed["metrics"]["B"]}
    )


def test_tool_prints_both_rows_the_difference_and_p(tmp_path, capsys):
    first, second, labels = make(60, 3, seed=6)
    files = [save(tmp_path / f"{n}.npz", s, labels) for n, s in (("a", first), ("b", second))]
    assert scnet("compare", *files, "--replicates", 50) == 0
    out = capsys.readouterr().out
    assert re.search(r"mAP +CP +CR +CF1 +OP +OR +OF1", out)
    assert re.search(
        r"difference B - A  [+-]\d+\.\d\d \([+-][\d.]+ to [+-][\d.]+\) +p = 0\.\d+", out
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": "abx"}, "the classes differ: class 2 is 'c' in A and 'x' in B"),
        ({"rows": slice(3, None)}, "the images differ: image 0 is in only one of them"),
        ({"ids": np.arange(5, 65)}, "the images differ: image 0 is in only one of them"),
        ({"ids": np.arange(60) // 2}, "b.npz: image 0 comes twice"),
        ({"ids": np.arange(59)}, "b.npz: has 59 image ids"),
        ({"labels": (4, 1)}, "the labels differ: image 4, class 'b'"),
        ({"ignored": (7, 2)}, "the ignored entries differ: image 7, class 'c'"),
    ],
)
def test_tool_refuses_other_data_and_names_the_first_difference(tmp_path, capsys, change, message):
    first, second, labels = make(60, 3, seed=6)
    other = {"labels": labels.copy(), "ignored": np.zeros_like(labels)} | change
    for key in change.keys() & {"labels", "ignored"}:
        other[key] = (labels if key == "labels" else np.zeros_like(labels)).copy()
        other[key][change[key]] ^= True
    files = save(tmp_path / "a.npz", first, labels), save(tmp_path / "b.npz", second, **other)
    assert scnet("compare", *files) == 2
    assert message in capsys.readouterr().err
