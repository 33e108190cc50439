"""What generators are measured by while they train: moments, and the two distances they give."""

from gan.frechet import frechet_distance
from gan.kid import kid
from gan.moments import FeatureMoments

__all__ = ["FeatureMoments", "frechet_distance", "kid"]
