"""What to tell a language model that writes prompts for CogVideoX.

CogVideoX was trained on captions of a vision-language model: one long English paragraph on what is seen and how it
moves (arXiv 2408.06072, section 3). Prompts that read so are followed best; what the authors ask their own helper
models for (github.com/THUDM/CogVideo, inference/convert_demo.py) is said here in other words.
"""

from __future__ import annotations

TEXT_TO_VIDEO, IMAGE_TO_VIDEO, VIDEO_TO_PROMPT = TASKS = ("text to video", "image to video", "video to prompt")

_FORM = (
    "Answer with the description alone: one paragraph of plain English of about {words} words, without a title, list, "
    "quotation marks or any remark of yours."
)
INSTRUCTIONS = {
    TEXT_TO_VIDEO: (
        "You write descriptions from which a model makes a video of a few seconds. Turn the idea below into one such "
        "description, as if you had watched the finished video. Keep everything the idea names and change none of it; "
        "where it is silent, decide on looks, materials, place, light and mood. Say first who or what is seen and "
        "what it does, in the order in which it happens, then the surroundings, the light and how the camera stands or "
        "moves. It is a single shot. Rewrite the idea as a whole, do not repeat it and add to it. Name only what can "
        "be seen: no sounds, thoughts or names of cameras. " + _FORM + "\n\nIdea: {idea}"
    ),
    IMAGE_TO_VIDEO: (
        "The picture is the first frame of a video of a few seconds. Describe this video for a model that continues "
        "the picture. Begin with what it shows, in one sentence, then say what moves, how and where to, from this "
        "frame on. Move only what can move from where it is, and keep looks, place and light as they are. The view "
        "stays the same throughout: no cut, no other scene, no new angle. Where a wish is given below, it decides on "
        "the motion. " + _FORM + "\n\nWish: {idea}"
    ),
    VIDEO_TO_PROMPT: (
        "Describe this video in detail, as the caption from which a model could make it again. Say who or what is seen "
        "and what it does from beginning to end, the surroundings, colours, light and style, and how the camera moves. "
        "Describe what is there and guess at nothing else. Where a wish is given below, change the description "
        "accordingly. " + _FORM + "\n\nWish: {idea}"
    ),
}
NO_WISH = "none"
