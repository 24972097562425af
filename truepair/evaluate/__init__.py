"""Measures a model on data: zero-shot classification, retrieval, noise detection, captioning, and audits of tables."""

from truepair.evaluate.audit import audit as audit
from truepair.evaluate.audited import AuditResult as AuditResult
from truepair.evaluate.captioning import CaptioningResult as CaptioningResult
from truepair.evaluate.captioning import caption_figures as caption_figures
from truepair.evaluate.captioning import captioning as captioning
from truepair.evaluate.captioning import written_by as written_by
from truepair.evaluate.classes import ImageClasses as ImageClasses
from truepair.evaluate.described import candidates_in_column as candidates_in_column
from truepair.evaluate.described import candidates_in_file as candidates_in_file
from truepair.evaluate.described import described_json as described_json
from truepair.evaluate.described import described_table as described_table
from truepair.evaluate.features import Encoder as Encoder
from truepair.evaluate.features import image_features as image_features
from truepair.evaluate.features import text_features as text_features
from truepair.evaluate.noise import NoiseResult as NoiseResult
from truepair.evaluate.noise import noise_detection as noise_detection
from truepair.evaluate.noise import score_pairs as score_pairs
from truepair.evaluate.retrieval import RetrievalResult as RetrievalResult
from truepair.evaluate.retrieval import recall_at_k as recall_at_k
from truepair.evaluate.retrieval import retrieval as retrieval
from truepair.evaluate.zeroshot import ZeroShotResult as ZeroShotResult
from truepair.evaluate.zeroshot import zero_shot as zero_shot
