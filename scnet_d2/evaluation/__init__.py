"""Multi-label evaluation: metrics, the Detectron2 evaluator, and its terminal table."""

from .intervals import bootstrap_map, compare_map, map_interval
from .metrics import average_precision, multilabel_metrics, precision_recall_curve, predicted
from .multilabel_evaluator import MultiLabelEvaluator
from .score_files import ScoreFileError, ScoreTable, read_scores, write_scores
from .table import format_rows, format_table, with_mean_ap
from .thresholds import label_thresholds, load_thresholds, save_thresholds, tune_thresholds

__all__ = [
    "MultiLabelEvaluator",
    "ScoreFileError",
    "ScoreTable",
    "average_precision",
    "bootstrap_map",
    "compare_map",
    "format_rows",
    "format_table",
    "label_thresholds",
    "load_thresholds",
    "map_interval",
    "multilabel_metrics",
    "precision_recall_curve",
    "predicted",
    "read_scores",
    "save_thresholds",
    "tune_thresholds",
    "with_mean_ap",
    "write_scores",
]
