"""Noise in pairs: found by a mixture over their losses, measured against the truth, injected with the truth known."""

from truepair.noise.binned import Histogram as Histogram
from truepair.noise.binned import finite_range as finite_range
from truepair.noise.binned import histogram as histogram
from truepair.noise.calibration import DetectionFigures as DetectionFigures
from truepair.noise.calibration import Reliability as Reliability
from truepair.noise.calibration import detection as detection
from truepair.noise.calibration import far_off as far_off
from truepair.noise.calibration import reliability as reliability
from truepair.noise.injection import KINDS as KINDS
from truepair.noise.injection import Corruption as Corruption
from truepair.noise.injection import Kind as Kind
from truepair.noise.injection import corrupt as corrupt
from truepair.noise.mixture import Mixture as Mixture
from truepair.noise.mixture import fit as fit
from truepair.noise.mixture import fit_losses as fit_losses
