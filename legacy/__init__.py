"""Graphs of the older CogVideoX wrapper to native ones: JSON in, JSON out, nothing but the standard library."""

from .conversion import convert, is_prompt
from .native import reduced, stored_schema
from .report import Report
from .signatures import ERAS

__all__ = ["ERAS", "Report", "convert", "is_prompt", "reduced", "stored_schema"]
