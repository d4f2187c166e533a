"""Readouts: classifiers that are generated from a support set in closed form."""

from metalora.learner.readouts.base import Readout
from metalora.learner.readouts.fitted import FittedReadout
from metalora.learner.readouts.registry import READOUTS, make_readout
from metalora.learner.readouts.targets import Targets

__all__ = ["READOUTS", "FittedReadout", "Readout", "Targets", "make_readout"]
