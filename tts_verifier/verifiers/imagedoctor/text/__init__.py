"""The texts of ImageDoctor: the instruction, the tokenizer, and the reply with its scores."""

from tts_verifier.verifiers.imagedoctor.text.answer_template import AnswerTemplate
from tts_verifier.verifiers.imagedoctor.text.expected_scores import ScoreTokens, expected_scores
from tts_verifier.verifiers.imagedoctor.text.instruction import user_text
from tts_verifier.verifiers.imagedoctor.text.reply import ParsedReply, parse_reply
from tts_verifier.verifiers.imagedoctor.text.tokenizer import PromptTokenizer

__all__ = [
    "AnswerTemplate",
    "ParsedReply",
    "PromptTokenizer",
    "ScoreTokens",
    "expected_scores",
    "parse_reply",
    "user_text",
]
