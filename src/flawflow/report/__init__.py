"""Numbers and pictures for people: overlays, figures, contact sheets and one self-contained page."""

from flawflow.report.figures import (
    Case,
    contact_sheet,
    curve_figure,
    encode_png,
    evaluation_figure,
    histogram_figure,
    overlay,
    pick_cases,
)
from flawflow.report.page import Section, write_page

__all__ = [
    "Case",
    "Section",
    "contact_sheet",
    "curve_figure",
    "encode_png",
    "evaluation_figure",
    "histogram_figure",
    "overlay",
    "pick_cases",
    "write_page",
]
