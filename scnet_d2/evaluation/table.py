"""The terminal table of a multi-label evaluation."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

COLUMNS = ("mAP", "CP", "CR", "CF1", "OP", "OR", "OF1")

_GAP = 2  # between two columns, in tabulate's "simple" format
_VALUE_WIDTH = len("100.00")
_MIN_NAME_WIDTH = 8


def format_table(
    results: Mapping[str, Any],
    *,
    class_names: Sequence[str] | None = None,
    width: int | None = None,
    baselines: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """The seven columns of the published tables, then the AP of each class, in percent.

    Args:
        results: what :class:`MultiLabelEvaluator` or :func:`multilabel_metrics` returned.
        class_names: (C,) names for ``per_class_AP``; not needed where ``results`` has
            ``AP-<class>`` keys.
        width: columns of the terminal; by default those of the current one, 80 without one.
        baselines: results of other models by name, each one more row, and one more column of the
            per-class table where it has per-class AP.

    Returns:
        Lines no wider than ``width`` from 64 columns on; a long name is cut, nan is "-".
    """
    width = width or shutil.get_terminal_size().columns
    rows = {"model": results, **(baselines or {})}
    tables = [format_rows(rows, width=width)]
    per_class = {name: _per_class_ap(result, class_names) for name, result in rows.items()}
    per_class = {name: aps for name, aps in per_class.items() if aps}
    if "model" in per_class:
        tables.append(_per_class_table(per_class, width))
    return "\n\n".join(tables)


def with_mean_ap(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results whose ``mAP`` is the mean of their per-class AP, nan left out.

    Args:
        results: has ``AP-<class>`` keys or ``per_class_AP``, as a row of a published table may.
    """
    known = [ap for ap in _per_class_ap(results, None).values() if not math.isnan(ap)]
    mean = math.fsum(known) / len(known) if known else math.nan
    return {**_metrics(results), "mAP": mean}


def format_rows(rows: Mapping[str, Mapping[str, Any]], *, width: int | None = None) -> str:
    """The seven columns of the published tables for several models.

    Args:
        rows: what :func:`multilabel_metrics` returned, by the name of the model.
        width: see :func:`format_table`.
    """
    width = width or shutil.get_terminal_size().columns
    name_width = max(_MIN_NAME_WIDTH, width - len(COLUMNS) * (_VALUE_WIDTH + _GAP))
    body = [
        [_shorten(name, name_width)]
        + [_percent(_metrics(result).get(column, math.nan)) for column in COLUMNS]
        for name, result in rows.items()
    ]
    return tabulate(
        body, headers=["", *COLUMNS], disable_numparse=True, colalign=["left"] + ["right"] * 7
    )


def _per_class_table(per_class: Mapping[str, Mapping[str, float]], width: int) -> str:
    """Name, AP and the baselines' AP, side by side in as many columns as fit, read downwards."""
    headers = ["AP", *(_two_lines(name) for name in per_class if name != "model")]
    values_width = sum(_GAP + max(_VALUE_WIDTH, *map(len, h.split("\n"))) for h in headers)
    names = list(per_class["model"])
    name_width = min(max(map(len, [*names, "class"])), max(_MIN_NAME_WIDTH, width - values_width))
    columns = min(max(1, (width + _GAP) // (name_width + values_width + _GAP)), len(names))
    cells = [
        [_shorten(name, name_width), *(_percent(aps[name]) for aps in per_class.values())]
        for name in names
    ]
    height = -(-len(cells) // columns)
    body = [[text for cell in cells[row::height] for text in cell] for row in range(height)]
    return tabulate(
        body,
        headers=["class", *headers] * columns,
        disable_numparse=True,
        colalign=["left", *["right"] * len(headers)] * columns,
    )


def _two_lines(name: str) -> str:
    return name.replace(" ", "\n", 1)


def _metrics(results: Mapping[str, Any]) -> Mapping[str, Any]:
    return results.get("multilabel", results)


def _per_class_ap(
    results: Mapping[str, Any], class_names: Sequence[str] | None
) -> dict[str, float]:
    metrics = _metrics(results)
    named = {key[len("AP-") :]: ap for key, ap in metrics.items() if key.startswith("AP-")}
    if named or "per_class_AP" not in metrics:
        return named
    values = metrics["per_class_AP"]
    names = [f"class {i}" for i in range(len(values))] if class_names is None else class_names
    return dict(zip(names, values, strict=True))


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _shorten(name: str, width: int) -> str:
    return name if len(name) <= width else name[: width - 1] + "…"
