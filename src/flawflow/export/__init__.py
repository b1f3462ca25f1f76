"""A detector as one file for other runtimes, with a certificate that it answers as the detector does."""

from flawflow.export.certificate import LIMIT, compare, drift, sample_images
from flawflow.export.export import FORMATS, export_detector

__all__ = ["FORMATS", "LIMIT", "compare", "drift", "export_detector", "sample_images"]
