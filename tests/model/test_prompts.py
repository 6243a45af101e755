"""Pieces, blending and reports of prompts, without a tokenizer."""

import pytest
import torch
from pack.cogvideox.prompts import blend, dropped_words, split_pieces, token_report


def pieces(words, limit):
    return [words[piece] for piece in split_pieces(words, limit)]


@pytest.mark.parametrize("count", [0, 1, 9, 10])
def test_a_prompt_that_fits_stays_one_piece(count):
    words = ["▁a"] * count
    assert pieces(words, 10) == [words]


@pytest.mark.parametrize("limit", [1, 2, 7, 50])
def test_pieces_lose_nothing_and_keep_the_limit(limit):
    words = [("▁w", "x", ",", "▁", ".", "▁I")[i * i % 6] for i in range(200)]
    found = pieces(words, limit)
    assert sum(found, []) == words
    assert all(1 <= len(piece) <= limit for piece in found)


def test_a_sentence_end_wins_over_a_later_clause_and_word():
    words = ["▁a", "▁b", "▁c", "▁d", "▁e", ".", "▁f", ",", "▁g", "▁h", "▁i"]
    assert [len(piece) for piece in pieces(words, 10)] == [6, 5]


def test_a_quoted_sentence_end_counts():
    words = ["▁a", "▁b", "▁c", '."', "▁d", "▁e", "▁f"]
    assert [len(piece) for piece in pieces(words, 6)] == [4, 3]


def test_a_clause_end_wins_over_a_later_word():
    words = ["▁a", "▁b", "▁c", "▁d", "▁e", ",", "▁f", "▁g", "▁h", "▁i", "▁j"]
    assert [len(piece) for piece in pieces(words, 10)] == [6, 5]


def test_an_early_sentence_end_does_not_make_a_tiny_piece():
    words = ["▁a", ".", *["▁b"] * 10]
    assert [len(piece) for piece in pieces(words, 10)] == [10, 2]


def test_a_decimal_point_is_no_sentence_end():
    words = ["▁a", "▁b", "▁c", "▁3", ".", "5", "▁m", "▁n"]
    assert [len(piece) for piece in pieces(words, 6)] == [6, 2]


def test_a_word_is_not_cut_but_a_word_longer_than_the_limit_is():
    assert pieces(["▁a", "▁lo", "ng", "er"], 3) == [["▁a"], ["▁lo", "ng", "er"]]
    assert pieces(["▁x"] + ["x"] * 6, 3) == [["▁x", "x", "x"], ["x"] * 3, ["x"]]


def test_blend_is_the_mean_weighted_by_tokens():
    embeddings = torch.randn(3, 5, 4)
    expected = (embeddings[0] * 6 + embeddings[1] * 3 + embeddings[2]) / 10
    result = blend(embeddings, [6, 3, 1])
    assert result.shape == (1, 5, 4)
    torch.testing.assert_close(result[0], expected)


def test_blend_keeps_dtype_and_one_piece():
    embeddings = torch.randn(1, 5, 4, dtype=torch.float16)
    assert torch.equal(blend(embeddings, [7]), embeddings)


def test_dropped_words_name_a_cut_word_whole():
    words = ["▁the", "▁gold", "en", "▁light", "▁of", "▁the", "▁old", "▁hall"]
    assert dropped_words(words, 2) == "golden light of the old"
    assert dropped_words(words, 3, 2) == "light of"


def test_dropped_words_skip_punctuation_of_a_kept_word():
    assert dropped_words(["▁a", ",", "▁b"], 1) == "b"
    assert dropped_words(["▁a", "."], 1) == "."


def test_reports():
    assert token_report(143, 226) == "143 of 226 tokens"
    assert token_report(226, 226) == "226 of 226 tokens"
    assert token_report(301, 226, "golden light") == "301 of 226 tokens: cut from “golden light…”"
    assert token_report(301, 226, pieces=2) == "301 of 226 tokens: blended from 2 pieces"
