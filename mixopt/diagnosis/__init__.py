"""Why a pool's mixes score as they do: each checkpoint, what lies half-way between two, and what changed."""

from mixopt.diagnosis.gather import Budget as Budget
from mixopt.diagnosis.gather import Outcome as Outcome
from mixopt.diagnosis.gather import diagnose_pool as diagnose_pool
from mixopt.diagnosis.gather import diagnose_run as diagnose_run
from mixopt.diagnosis.gather import known_of as known_of
