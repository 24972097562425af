"""Models: the two towers, built by open_clip and saved so that open_clip loads them alone."""

from truepair.models.dual import DEFAULT as DEFAULT
from truepair.models.dual import DualEncoder as DualEncoder
from truepair.models.dual import create as create
from truepair.models.dual import open_model as open_model
from truepair.models.dual import save_local_dir as save_local_dir
from truepair.models.tokens import image_tokens as image_tokens
from truepair.models.tokens import text_tokens as text_tokens
from truepair.models.twin import Twin as Twin
