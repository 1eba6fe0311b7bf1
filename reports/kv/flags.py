"""The flags that `kv` has beside a case's, and what it takes where they say nothing."""

from __future__ import annotations

import argparse

from suite.cache_choices import FORMS
from suite.flags import above_zero

#: answers are this long where nothing says otherwise, or half of a shorter context
ANSWER_TOKENS = 256
#: tokens of all prompts that one forward pass reads: vLLM's own default for a large GPU (max_num_batched_tokens)
STEP_TOKENS = 8192
#: of the device's memory that is used: vLLM's own default (gpu_memory_utilization)
MEMORY_SHARE = 0.9


def add_kv_flags(parser: argparse.ArgumentParser) -> None:
    """The verb's own flags; those of a case stand beside them."""
    count = above_zero(int)
    parser.add_argument(
        "--context",
        dest="context_tokens",
        type=count,
        metavar="N",
        help="tokens of a sequence, prompt and answer [the model's positions]",
    )
    parser.add_argument("--batch", type=count, metavar="N", help="sequences at once, as --micro-batch [1]")
    words = ", ".join(f"{word} ({text})" for word, text in FORMS.items())
    parser.add_argument("--compare", metavar="CHOICE,...", help=f"beside the model as it is, joined by +: {words}")
    parser.add_argument(
        "--memory-share", metavar="X", help=f"of the device's memory that is used [{MEMORY_SHARE}, as vLLM's default]"
    )
    parser.add_argument("--calibration", metavar="FILE", help="of this machine: what times on the cpu rest on")
    text = "time the parts of the passes on this machine now, for times on the cpu; needs torch, takes seconds"
    parser.add_argument("--measure", action="store_true", help=text)
    parser.add_argument("--page", metavar="FILE.html", help="write a page: answers, figures, terms")
