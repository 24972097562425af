"""What can be wrong with pairs: a file an issue, each with its own words, score, threshold and advice."""

from truepair.noise.issues.base import ACTIONS as ACTIONS
from truepair.noise.issues.base import Action as Action
from truepair.noise.issues.base import Evidence as Evidence
from truepair.noise.issues.base import Found as Found
from truepair.noise.issues.base import Issue as Issue
from truepair.noise.issues.boilerplate import boilerplate_caption
from truepair.noise.issues.broken import broken_image
from truepair.noise.issues.copies import near_duplicate_image
from truepair.noise.issues.false_negatives import false_negative_group
from truepair.noise.issues.incomplete import incomplete_caption
from truepair.noise.issues.language import wrong_language
from truepair.noise.issues.leak import leaked_image
from truepair.noise.issues.mismatch import mismatched_pair

ISSUES: tuple[Issue, ...] = (
    mismatched_pair,
    near_duplicate_image,
    boilerplate_caption,
    incomplete_caption,
    false_negative_group,
    wrong_language,
    broken_image,
    leaked_image,
)
