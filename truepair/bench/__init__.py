"""The bench: methods x kinds of noise x rates x seeds on one corpus and one model, every cell an ordinary run."""
