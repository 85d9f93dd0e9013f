"""Multi-label evaluation: metrics, the Detectron2 evaluator, and its terminal table."""

from .metrics import average_precision, multilabel_metrics, precision_recall_curve
from .multilabel_evaluator import MultiLabelEvaluator
from .report import format_table

__all__ = [
    "MultiLabelEvaluator",
    "average_precision",
    "format_table",
    "multilabel_metrics",
    "precision_recall_curve",
]
