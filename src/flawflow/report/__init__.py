"""Numbers and pictures for people: overlays, figures, contact sheets, charts, galleries, one self-contained page."""

from flawflow.report.charts import Axis, Group, Line, Mark, Markup, Tone, histogram_chart, line_chart
from flawflow.report.figures import (
    Case,
    contact_sheet,
    encode_png,
    evaluation_figure,
    histogram_figure,
    overlay,
    pick_cases,
)
from flawflow.report.gallery import Picture, gallery, gallery_order
from flawflow.report.page import Section, write_page

__all__ = [
    "Axis",
    "Case",
    "Group",
    "Line",
    "Mark",
    "Markup",
    "Picture",
    "Section",
    "Tone",
    "contact_sheet",
    "encode_png",
    "evaluation_figure",
    "gallery",
    "gallery_order",
    "histogram_chart",
    "histogram_figure",
    "line_chart",
    "overlay",
    "pick_cases",
    "write_page",
]
