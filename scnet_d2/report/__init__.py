"""The page of a run: metrics, curves, errors, and images with their boxes."""

from .page import build_html_report, load_run, write_html_report

__all__ = ["build_html_report", "load_run", "write_html_report"]
