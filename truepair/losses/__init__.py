"""Losses over all pairs of a global batch: soft targets, several positives and weights, softmax or sigmoid.

They stand alone: nothing here imports the pair table, the loop or a report.
"""

from truepair.losses.distributed import all_gather as all_gather
from truepair.losses.distributed import weighted_mean as weighted_mean
from truepair.losses.pairwise import sigmoid_rows as sigmoid_rows
from truepair.losses.pairwise import softmax_rows as softmax_rows
from truepair.losses.targets import Dense as Dense
from truepair.losses.targets import Groups as Groups
from truepair.losses.targets import Own as Own
from truepair.losses.targets import Target as Target
from truepair.losses.targets import Tile as Tile
