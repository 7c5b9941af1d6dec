"""What a training step minimises, one objective per file.

`objective.py` says what an objective is. `tokenizer_terms.py` holds the first one, the tokenizer's
own losses; an objective's file holds the config that describes it and the module that it builds.
`balance.py` weighs terms by their gradients, for the objectives that ask for it.
"""

from imagetok.objectives.balance import GradientBalance
from imagetok.objectives.objective import LearnerConfig, Objective, ObjectiveConfig
from imagetok.objectives.tokenizer_terms import TokenizerTerms

__all__ = ["GradientBalance", "LearnerConfig", "Objective", "ObjectiveConfig", "TokenizerTerms"]
