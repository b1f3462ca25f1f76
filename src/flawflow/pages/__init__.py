"""Pages about a detector: what a fit learned, and what an evaluation measured; each one self-contained HTML file."""

from flawflow.pages.evaluated import write_report
from flawflow.pages.fitted import write_fit_page
from flawflow.pages.twins import Twin, held_out_twins

__all__ = ["Twin", "held_out_twins", "write_fit_page", "write_report"]
