"""How pixels are scored: a density p(x | decoder output) over pixels x in [0, 1], one per file.

`likelihood.py` says what a likelihood is; a density's file holds the config that describes it and
the module that it builds. All arithmetic runs in float32 or better, whatever the decoder's dtype.
"""

from imagetok.likelihoods.l1 import L1Config, L1Likelihood
from imagetok.likelihoods.likelihood import Likelihood, LikelihoodConfig
from imagetok.likelihoods.logit_laplace import LogitLaplaceConfig, LogitLaplaceLikelihood
from imagetok.likelihoods.mse import MseConfig, MseLikelihood

__all__ = [
    "L1Config",
    "L1Likelihood",
    "Likelihood",
    "LikelihoodConfig",
    "LogitLaplaceConfig",
    "LogitLaplaceLikelihood",
    "MseConfig",
    "MseLikelihood",
]
