#!/usr/bin/env python3
"""Build conf/catalog.jsonl, the price catalogue that is compiled into the binary.

Usage:  conf/build_catalog.py MODEL_PRICES.jsonl [VERSION] > conf/catalog.jsonl

The input has one model a line (`id`, `provider`, `mode`, `usd_per_mtok`, `above_input_tokens`,
`usd_per_*`, `max_input_tokens`, `max_output_tokens`, `deprecation_date`). The output has a first
line `{"version": …}` and then one model a line, sorted, under the provider's own id:

  {"p": provider, "id": id, "mode": …, "in": …, "out": …, "win": …, "dep": …,
   "usd": {kind: USD per million tokens}, "above": {tokens: {kind: …}}, "unit": {kind: USD each}}

What is changed on the way, always towards the dearer reading (a budget must not be too low):
  * An all-zero row says "not known" far more often than "free". It is left out, and so needs a
    `price` in the configuration, unless the provider really gives the model away (FREE).
  * `cache_write` below `input` is a slip in the source (a cache write is never cheaper than
    plain input; 0 means "no surcharge"): it is left out, and writes then cost the input price.
  * Claude's cache writes cost 1.25 (5 minutes) and 2 (1 hour) times the input, also where the
    source does not say so (Anthropic, Bedrock, Vertex AI).
  * Image tokens, which usage reports do not tell apart, are priced as the dearer of text and image.
  * A chat model without a price for its input or its output is left out.
  * Rows that are not models (image sizes, size classes, containers, commitments) are left out.
"""

import json
import re
import sys
from decimal import Decimal

# Catalogue provider by the source's provider; the prefixes are the source's own, not the provider's.
PROVIDERS = {
    "bedrock_converse": "bedrock",
    "cohere_chat": "cohere",
    "vertex_ai-language-models": "vertex_ai",
    "vertex_ai-anthropic_models": "vertex_ai",
}
KINDS = ["input", "output", "cached_input", "cache_write", "cache_write_1h", "reasoning",
         "audio_input", "audio_output", "cached_audio_input"]
SERVICE = [f"{tier}_{kind}" for tier in ("flex", "priority") for kind in ("input", "output", "cached_input")]
NO_OUTPUT = {"embedding", "moderation", "rerank", "audio_transcription", "audio_speech"}
FREE = [r"^openai/omni-moderation", r"^gemini/gemma-", r"^zai/glm-4\.[57]-flash$", r"^mistral/mistral-moderation"]
NOT_MODELS = re.compile(
    r"(^|/)(\d+-x-\d+|max-x-max|hd|standard|low|medium|high)/|container$|commitment|"
    r"^together-ai-|^fireworks-ai-|/routers/|\d+b-to-\d|^preset/|^azure/(eu|us|global|global-standard)/")


def number(value):
    """A decimal without exponent, so that nothing has to parse floats."""
    return format(Decimal(value).normalize(), "f")


def rates(given, mode):
    """The kinds that are priced, with the corrections of the docstring."""
    out = {k: given[k] for k in KINDS if given.get(k) is not None}
    if "input" not in out and out.get("audio_input"):
        out["input"] = out["audio_input"]
    for text, image in (("input", "image_input"), ("output", "image_output")):
        # A request for an image is text in, image out; only elsewhere can input be an image.
        if given.get(image) and (text == "output" or mode != "image_generation"):
            out[text] = max(out.get(text, Decimal(0)), given[image])
    if "output" not in out and mode in NO_OUTPUT:
        out["output"] = Decimal(0)
    if out.get("cache_write", Decimal(10**9)) < out.get("input", Decimal(0)) or out.get("cache_write") == 0:
        del out["cache_write"]
    return out


def units(row):
    """Prices per thing that is not a token."""
    out = {}
    second = row.get("usd_per_input_second") or (
        row.get("usd_per_output_second") if row["mode"] == "audio_speech" else None)
    image = row.get("usd_per_image") or (
        row.get("usd_per_input_image") if row["mode"] == "image_generation" else None)
    for name, value in (("second", second), ("image", image),
                        ("character", row.get("usd_per_input_character")),
                        ("request", row.get("usd_per_request") or row.get("usd_per_query"))):
        if value:
            out[name] = value
    # A chat model is billed by tokens; what is listed beside it per second or character is the
    # same thing in another unit.
    if row["mode"] in ("chat", "responses", "completion", "embedding") and row.get("usd_per_mtok"):
        out = {k: v for k, v in out.items() if k == "request"}
    return out


def window(row):
    """Input and output together; None where the source cannot tell. Never too small: a request
    that may fit must be sent."""
    inp, out = row.get("max_input_tokens"), row.get("max_output_tokens")
    if not inp:
        return None
    if out and (out >= inp or inp in (272000, 922000)):
        return inp + out  # stated apart: OpenAI's 400k and 1.05M windows, speech models
    return inp


def convert(row):
    """One line of the catalogue, or None."""
    provider = PROVIDERS.get(row["provider"], row["provider"])
    name, mode = row["id"], row["mode"]
    if provider == "azure" and name.startswith("azure/speech/"):
        name = "azure/" + name[len("azure/speech/"):]
    if NOT_MODELS.search(name):
        return None
    for prefix in (provider + "/", "bedrock/"):
        if name.startswith(prefix):
            name = name[len(prefix):]
    price, unit = rates(row.get("usd_per_mtok", {}), mode), units(row)
    if ("input" not in price or "output" not in price) and not unit:
        return None
    if provider in ("anthropic", "bedrock", "vertex_ai") and "claude" in name and mode == "chat":
        price.setdefault("cache_write", price.get("input", 0) * Decimal("1.25"))
        price.setdefault("cache_write_1h", price.get("input", 0) * 2)
    if mode in ("chat", "responses", "completion"):
        if not price or ("input" not in price) or (price["input"] and not price.get("output")):
            return None
    free = any(re.search(f, f"{provider}/{name}") for f in FREE)
    if not unit and not free and not any(price.values()):
        return None
    line = {"p": provider, "id": name, "mode": mode}
    for key, value in (("in", row.get("max_input_tokens")), ("out", row.get("max_output_tokens")),
                       ("win", window(row)), ("dep", row.get("deprecation_date"))):
        if value:
            line[key] = value
    if free and not any(price.values()):
        line["free"] = True
    price |= {k: row["usd_per_mtok"][k] for k in SERVICE if row.get("usd_per_mtok", {}).get(k)}
    if price.get("reasoning") == price.get("output"):
        price.pop("reasoning", None)
    line["usd"] = price
    steps = {k: rates(v, mode) for k, v in row.get("above_input_tokens", {}).items()}
    if any(v for s in steps.values() for v in s.values()):
        line["above"] = {k: steps[k] for k in sorted(steps, key=int)}
    if unit:
        line["unit"] = unit
    return line


def dump(value):
    """JSON with decimals written out in full."""
    if isinstance(value, dict):
        return "{" + ",".join(json.dumps(k) + ":" + dump(v) for k, v in value.items()) + "}"
    if isinstance(value, Decimal):
        return number(value)
    return json.dumps(value)


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    version = sys.argv[2] if len(sys.argv) == 3 else "2026-11"
    lines = {}
    with open(sys.argv[1], encoding="utf-8") as source:
        for text in source:
            line = convert(json.loads(text, parse_float=Decimal, parse_int=lambda t: int(t)))
            if line is None:
                continue
            key = (line["p"], line["id"])
            # The same model listed twice: the dearer row.
            if key not in lines or weight(line) > weight(lines[key]):
                lines[key] = line
    print(json.dumps({"version": version}))
    for key in sorted(lines):
        print(dump(lines[key]))


def weight(line):
    """What two rows for one model are compared by: price, then how much they tell."""
    usd = line["usd"]
    return (3 * Decimal(usd.get("input", 0)) + Decimal(usd.get("output", 0)), len(line), len(usd))


if __name__ == "__main__":
    main()
