"""The slides' own numbers through the table code."""

import json

from scnet_d2.evaluation import format_table, with_mean_ap

import pytest
from conftest import REPO

VOC = json.loads((REPO / "scnet_d2" / "report" / "published.json").read_text())["voc"]


def results(model):
    """Published per-class AP of a model as results, without its mAP."""
    row = next(row for row in VOC["rows"] if row[0] == model)
    return {f"AP-{name}": ap for name, ap in zip(VOC["columns"][1:], row[2:], strict=True)}


def test_per_class_ap_of_the_proposed_give_the_published_map():
    text = format_table(with_mean_ap(results("The Proposed")), width=80)
    model = next(line for line in text.splitlines() if line.startswith("model"))
    assert float(model.split()[1]) == pytest.approx(95.3, abs=0.05)  # 1906.4 / 20 = 95.32
    assert "95.32" in model


def test_mean_ap_leaves_out_nan():
    assert with_mean_ap({"AP-a": 50.0, "AP-b": float("nan"), "AP-c": 100.0, "OP": 3.0}) == (
        pytest.approx(
            {"AP-a": 50, "AP-b": float("nan"), "AP-c": 100, "OP": 3, "mAP": 75}, nan_ok=True
        )
    )
