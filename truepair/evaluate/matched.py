"""What a fusion encoder says of a table's own pairs, asked while the images are encoded: none is decoded twice."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from truepair.evaluate.pairs import Pairing
from truepair.evaluate.rerank import pairs_at_once
from truepair.models.matcher import Matcher


class OwnPairs:
    """P(match) of every distinct image with each of its distinct captions, as the images come.

    Memory: a number a pair, and the tokens of one batch of images and of the captions scored at once.
    """

    def __init__(self, matcher: Matcher, paired: Pairing) -> None:
        self.matcher, self.paired = matcher, paired
        codes = paired.image_of_row[paired.row_of_caption] * len(paired.texts) + paired.text_of_caption
        codes, self._pair_of_caption = np.unique(codes, return_inverse=True)
        image, self._text = np.divmod(codes, len(paired.texts))
        self._edges = np.searchsorted(image, np.arange(len(paired.first) + 1))  # image i owns pairs edges[i : i + 2]
        self._match = np.full(len(codes), np.nan)

    def see(self, numbers: list[int], images: Tensor) -> Tensor:
        """Encodes images and judges their pairs: stands for the model's `encode_image`."""
        features, cells = self.matcher.see_both(images)
        first, count = self._edges[numbers], self._edges[np.array(numbers) + 1] - self._edges[numbers]
        owner = np.repeat(np.arange(len(numbers)), count)
        pairs = np.arange(len(owner)) + np.repeat(first - (np.cumsum(count) - count), count)
        step = pairs_at_once(cells.device, cells.shape[1], cells.shape[2])
        for start in range(0, len(pairs), step):
            chosen, image = pairs[start : start + step], torch.from_numpy(owner[start : start + step])
            texts = [self.paired.texts[i] for i in self._text[chosen]]
            text, attended = self.matcher.read(self.matcher.towers.tokenize(texts))
            self._match[chosen] = self.matcher.probability(text, attended, cells[image.to(cells.device)]).cpu().numpy()
        return features

    def of_rows(self) -> npt.NDArray[np.float32]:
        """(n,) float32, of each row the mean over its captions; NaN without a caption or a usable image."""
        owner, n = self.paired.row_of_caption, len(self.paired.rows)
        total = np.bincount(owner, weights=self._match[self._pair_of_caption], minlength=n)
        count = np.bincount(owner, minlength=n)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
