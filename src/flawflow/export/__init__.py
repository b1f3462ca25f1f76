"""A detector as one file for other runtimes, with a certificate that it answers as the detector does."""

from flawflow.export.certificate import LIMIT, compare, drift
from flawflow.export.export import FORMATS, export_detector
from flawflow.export.samples import sample_images

__all__ = ["FORMATS", "LIMIT", "compare", "drift", "export_detector", "sample_images"]
