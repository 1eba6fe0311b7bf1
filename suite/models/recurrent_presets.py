"""Named recurrent language models: tiny ones for a 2-core CPU, and Zaremba et al.'s two of the Penn Treebank."""

from __future__ import annotations

from suite.models.recurrent import Cell, RecurrentSpec

#: the Penn Treebank's, as Mikolov et al. cut it
PTB_VOCAB = 10_000

_PRESETS = (
    # they want larger steps than decoders: at the recipe's 1e-3 the LSTM stays near the unigram predictor's loss for
    # hundreds of steps; at 4e-3 it is half a nat below it after 300 of 16 x 64 tokens, and the GRU 1.6
    RecurrentSpec(name="gru-1m", cell=Cell.GRU, layers=2, hidden=224, vocab=2048, tied=True),
    RecurrentSpec(name="lstm-1m", cell=Cell.LSTM, layers=2, hidden=192, vocab=2048, tied=True),
    # arXiv:1409.2329, section 4.1: the medium and the large model, about 20 M and 66 M parameters; their dropout (0.5
    # and 0.65) is left to the case, and their head's bias is not there
    RecurrentSpec(name="lstm-ptb-medium", cell=Cell.LSTM, layers=2, hidden=650, vocab=PTB_VOCAB),
    RecurrentSpec(name="lstm-ptb-large", cell=Cell.LSTM, layers=2, hidden=1500, vocab=PTB_VOCAB),
)

RECURRENT_PRESETS: dict[str, RecurrentSpec] = {spec.name: spec for spec in _PRESETS}
