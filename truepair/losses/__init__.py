"""Losses over all pairs of a global batch: soft targets, several positives, weights; softmax, sigmoid, complement.

They stand alone: nothing here imports the pair table, the loop or a report.
"""

from truepair.losses.distributed import all_gather as all_gather
from truepair.losses.distributed import weighted_mean as weighted_mean
from truepair.losses.negatives import drawn_negatives as drawn_negatives
from truepair.losses.objectives import BinaryCrossEntropy as BinaryCrossEntropy
from truepair.losses.objectives import Complement as Complement
from truepair.losses.objectives import CrossEntropy as CrossEntropy
from truepair.losses.objectives import LogPartition as LogPartition
from truepair.losses.objectives import Objective as Objective
from truepair.losses.objectives import ReverseDivergence as ReverseDivergence
from truepair.losses.pairwise import complement_rows as complement_rows
from truepair.losses.pairwise import pairwise_losses as pairwise_losses
from truepair.losses.pairwise import per_pair_mean as per_pair_mean
from truepair.losses.pairwise import sigmoid_rows as sigmoid_rows
from truepair.losses.pairwise import softmax_pairs as softmax_pairs
from truepair.losses.pairwise import softmax_rows as softmax_rows
from truepair.losses.similarity import Once as Once
from truepair.losses.similarity import Pooled as Pooled
from truepair.losses.similarity import Similarity as Similarity
from truepair.losses.similarity import Tokens as Tokens
from truepair.losses.targets import Columns as Columns
from truepair.losses.targets import Dense as Dense
from truepair.losses.targets import Groups as Groups
from truepair.losses.targets import Own as Own
from truepair.losses.targets import Relation as Relation
from truepair.losses.targets import Sharpened as Sharpened
from truepair.losses.targets import Softened as Softened
from truepair.losses.targets import Target as Target
from truepair.losses.tiles import Tile as Tile
from truepair.losses.walk import compile_tiles as compile_tiles
from truepair.losses.walk import row_tiles as row_tiles
