"""Errors for the person who reads them.

Each message is one clear sentence or two: what came, what was expected, what to do. The command line
prints the message alone and exits with code 2; nothing already written is lost.

    FlawflowError
    ├── InputError            something the user gave cannot be used
    │   ├── ImageError        an image or mask file is missing, broken or of the wrong kind
    │   ├── DatasetError      a folder is absent, empty or laid out otherwise
    │   │   └── PairingError  a defective image lacks its mask, or a mask its image
    │   └── OptionError       an option, a setting or a name is unknown or out of range
    ├── WeightsError          a backbone's weights are missing, partial or of another network
    ├── DetectorFileError     a detector file is truncated, foreign or of another version
    └── OutputError           a result cannot be written (disk full, read-only, not a folder)
"""


class FlawflowError(Exception):
    """Base of every error that flawflow raises on purpose."""


class InputError(FlawflowError, ValueError):
    """Something the user gave cannot be used."""


class ImageError(InputError):
    """An image or mask file is missing, broken or of the wrong kind."""


class DatasetError(InputError):
    """A folder is absent, empty or laid out otherwise than expected."""


class PairingError(DatasetError):
    """A defective image lacks its mask, or a mask its image."""


class OptionError(InputError):
    """An option, a setting or a name is unknown or out of range."""


class WeightsError(FlawflowError):
    """A backbone's weights are missing, partial or belong to another network."""


class DetectorFileError(FlawflowError):
    """A detector file is truncated, foreign or of another version."""


class OutputError(FlawflowError, OSError):
    """A result cannot be written: disk full, read-only, or not a folder."""
