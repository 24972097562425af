"""`python -m truepair` and `torchrun -m truepair`."""

from truepair.cli import main

if __name__ == "__main__":
    main()
