"""Demo corpora: image-text pairs anyone can make on the spot, written as WebDataset shards for the index to read."""

from truepair.pairs.corpora.emoji import STYLES as STYLES
from truepair.pairs.corpora.emoji import make_emoji as make_emoji
from truepair.pairs.corpora.icons import make_icons as make_icons
from truepair.pairs.corpora.openclipart import make_openclipart as make_openclipart
from truepair.pairs.corpora.packages import CorpusUnavailable as CorpusUnavailable
from truepair.pairs.corpora.scenes import make_scenes as make_scenes
from truepair.pairs.corpora.shards import CorpusSummary as CorpusSummary
from truepair.pairs.corpora.shards import HeldOut as HeldOut
from truepair.pairs.corpora.shards import Pair as Pair
from truepair.pairs.corpora.shards import Skipped as Skipped
from truepair.pairs.corpora.shards import StyleNote as StyleNote
from truepair.pairs.corpora.shards import write_shards as write_shards
from truepair.pairs.corpora.shards import write_zeroshot as write_zeroshot
