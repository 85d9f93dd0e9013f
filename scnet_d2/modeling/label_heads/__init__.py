"""Label heads of `ImageLabeler` and `SCNet`, one file a system; importing it registers them."""

from .attend_and_imagine import AttendAndImagine
from .c2ae import C2AE
from .c_tran import CTran
from .cnn_rnn import CNNRNN
from .context import LabelContext
from .crl import CRL
from .csra import CSRA
from .decouple_net import DecoupleNet
from .delta import DELTA
from .features import ImageFeatures
from .fev_lv import FeVLV
from .global_pool import GlobalPool
from .head import LABEL_HEAD_REGISTRY, LabelHead, LabelOutput, build_label_head
from .kssnet import KSSNet
from .loss import LabelLoss
from .ml_decoder import MLDecoder
from .ml_gcn import MLGCN
from .ms_cma import MSCMA
from .pronet import ProNet
from .query2label import Query2Label
from .rnn_attention import RNNAttention
from .srn import SRN
from .vac import VAC
from .wsl_gcn import WSLGCN

__all__ = [
    "C2AE",
    "CNNRNN",
    "CRL",
    "CSRA",
    "DELTA",
    "LABEL_HEAD_REGISTRY",
    "MLGCN",
    "MSCMA",
    "SRN",
    "VAC",
    "WSLGCN",
    "AttendAndImagine",
    "CTran",
    "DecoupleNet",
    "FeVLV",
    "GlobalPool",
    "ImageFeatures",
    "KSSNet",
    "LabelContext",
    "LabelHead",
    "LabelLoss",
    "LabelOutput",
    "MLDecoder",
    "ProNet",
    "Query2Label",
    "RNNAttention",
    "build_label_head",
]
