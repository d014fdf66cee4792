"""Sweeps: trials from an algebra of overrides, run anywhere, told apart, compared over seeds."""

from vimlab.sweep.algebra import chain, fixed, product, seeds, zip_
from vimlab.sweep.experiment import Against, Report

__all__ = ["Against", "Report", "chain", "fixed", "product", "seeds", "zip_"]
