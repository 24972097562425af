"""truepair: train vision-language models on image-text pairs nobody has checked."""

__version__ = "0.1.0"
