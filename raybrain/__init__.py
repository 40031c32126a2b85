"""raybrain reconstructs the images a person saw from their fMRI."""

__version__ = "0.1.0"
