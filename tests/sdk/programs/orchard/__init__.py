"""A package whose modules import each other, as people lay out their programs."""

KIND = "orchard"
