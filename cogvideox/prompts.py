"""Arithmetic on tokenised prompts: cut a long one, split it into pieces, blend the embeddings of the pieces.

Everything here works on `words`, the SentencePiece strings of the tokens of T5 (Raffel et al., arXiv 1910.10683): a
token that begins a new word carries the marker U+2581 in front.

Blending is the mean of the embeddings, position by position, weighted by the number of tokens of each piece. The pieces
are filled from the front, so a prompt a few tokens too long stays close to its truncation and the tail gains influence
as it grows. The reference only truncates; blending is an addition without a counterpart there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

T5_PAD = 0
T5_END = 1
WORD_MARK = "\u2581"

_CLOSERS = "\"'”’)]»"
_SENTENCE_ENDS = (".", "!", "?", "…")
_CLAUSE_ENDS = (",", ";", ":", "–", "—")


def split_pieces(words: Sequence[str], limit: int) -> list[slice]:
    """Split the tokens into consecutive pieces of at most `limit`, each as full as a good boundary allows.

    A boundary is the end of a sentence, else of a clause (both only in the second half of a piece, so that no piece is
    nearly empty), else of a word, else the limit.
    """
    pieces, start = [], 0
    while len(words) - start > limit:
        end = start + _cut(words[start : start + limit + 1])
        pieces.append(slice(start, end))
        start = end
    return [*pieces, slice(start, len(words))]


def _cut(window: Sequence[str]) -> int:
    """Return how many tokens of `window`, one token longer than the limit, the piece takes."""
    limit = len(window) - 1
    starts = [i for i in range(limit, 0, -1) if window[i].startswith(WORD_MARK)]
    for ends in (_SENTENCE_ENDS, _CLAUSE_ENDS):
        for i in starts:
            if i > limit // 2 and window[i - 1].rstrip(_CLOSERS).endswith(ends):
                return i
    return starts[0] if starts else limit


def blend(embeddings: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Return the mean [1, L, D] of the pieces' embeddings [P, L, D], weighted by their token counts."""
    weights = torch.tensor(counts, dtype=torch.float32, device=embeddings.device)
    weights = (weights / weights.sum()).reshape(-1, 1, 1)
    return (embeddings.float() * weights).sum(dim=0, keepdim=True).to(embeddings.dtype)


def dropped_words(words: Sequence[str], kept: int, count: int = 5) -> str:
    """Return the first `count` words that are lost, at least in part, when only the first `kept` tokens stay."""
    start = kept
    while 0 < start < len(words) and words[start][:1].isalnum():  # inside a word: name it whole
        start -= 1
    text = "".join(words[start:]).replace(WORD_MARK, " ").strip()
    return " ".join((text.lstrip(" ,.;:!?") or text).split()[:count])


def token_report(count: int, limit: int, dropped: str = "", pieces: int = 1) -> str:
    """Return one line such as "143 of 226 tokens" for a prompt of `count` tokens, the end token included."""
    report = f"{count} of {limit} tokens"
    if pieces > 1:
        return f"{report}: blended from {pieces} pieces"
    return f"{report}: cut from “{dropped}…”" if count > limit else report
