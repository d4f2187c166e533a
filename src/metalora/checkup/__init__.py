"""Check what an adapter does in a model: target by target, on a copy, in one forward and one backward."""

from metalora.checkup.check import check
from metalora.checkup.report import Answer, CheckReport, TargetCheck

__all__ = ["Answer", "CheckReport", "TargetCheck", "check"]
