"""Instance-level image retrieval, from photos to a trusted mean average precision: the package behind the notebooks."""

__version__ = "0.1.0"
