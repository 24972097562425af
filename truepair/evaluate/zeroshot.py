"""Zero-shot classification: an image goes to the class whose sentences lie nearest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from truepair.evaluate.classes import ImageClasses
from truepair.evaluate.features import Encoder, Progress, image_features, reasons, text_features
from truepair.evaluate.ranks import one_positive_each, probability_of_hit
from truepair.evaluate.result import benchmark_json


@dataclass(frozen=True)
class ZeroShotResult:
    """Shares of the n images that could be evaluated, in [0, 1].

    top5: share with the true class among the five nearest. mean_per_class_recall: top1 within each class that has
    images, averaged over these. skipped: reason -> number of images left out.
    """

    top1: float
    top5: float
    mean_per_class_recall: float
    n: int
    classes: int
    dataset: str
    model: str
    skipped: dict[str, int]

    def to_json(self, pretrained: str = "") -> dict[str, Any]:
        """The result in CLIP_benchmark's fields."""
        metrics = {"acc1": self.top1, "acc5": self.top5, "mean_per_class_recall": self.mean_per_class_recall}
        return benchmark_json(self.dataset, self.model, pretrained, "zeroshot_classification", metrics)


def class_features(model: Encoder, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """(C, D) unit rows: the normalised mean of the features of a class's sentences.

    The prompt ensemble of CLIP (arXiv 2103.00020, section 3.1.4); equal to the transpose of what open_clip's
    `build_zero_shot_classifier` gives.
    """
    texts = [template.replace("{c}", name).replace("{}", name) for name in names for template in templates]
    features = text_features(model, texts)
    return normalize(features.view(len(names), len(templates), -1).mean(dim=1), dim=1)


def zero_shot(
    model: Encoder, dataset: ImageClasses, *, batch_size: int = 256, workers: int = 0, progress: Progress | None = None
) -> ZeroShotResult:
    """Classify every image of `dataset`.

    Classes that tie (within 1e-6 in cosine) share the chance, so a collapsed model scores 1/C.
    Raises UserError if no image could be decoded.
    """
    images = image_features(
        model, dataset.read, len(dataset), batch_size=batch_size, workers=workers, progress=progress
    )
    classes = class_features(model, dataset.class_names, dataset.templates)
    labels = torch.from_numpy(dataset.labels[images.rows])
    ks = tuple(min(k, len(classes)) for k in (1, 5))
    queries, keys = images.features.to(model.device), classes.to(model.device)
    hits = probability_of_hit(queries, keys, one_positive_each(labels), ks)
    count = torch.bincount(labels, minlength=len(classes))
    right = torch.bincount(labels, weights=hits[0], minlength=len(classes))
    skipped = reasons([*dataset.skipped, *images.skipped])
    return ZeroShotResult(
        top1=float(hits[0].mean()),
        top5=float(hits[1].mean()),
        mean_per_class_recall=float((right[count > 0] / count[count > 0]).mean()),
        n=len(labels),
        classes=len(classes),
        dataset=dataset.name,
        model=model.name,
        skipped=skipped,
    )
