//! How many tokens a picture has at most: one that a model looks at, and one that it makes.

use crate::config::snapshot::Target;
use crate::units::Dialect;

/// Tokens of one picture at most. OpenAI's small models count most: 2,833 + 8 tiles × 5,667
/// (its vision guide, for gpt-4o-mini). The others stay below 5,000 by their own guides.
const PICTURE: [(Dialect, u64); 3] =
    [(Dialect::OpenAi, MOST_PICTURE), (Dialect::Anthropic, 5_000), (Dialect::Gemini, 5_000)];

/// The most that any of them counts.
pub const MOST_PICTURE: u64 = 48_169;

/// The same of models of OpenAI's that count less, by how their ids begin, the longest first: 85 + 8
/// tiles × 170, or 1,536 patches × 2.46 (its vision guide).
const PICTURE_BY_MODEL: [(&str, u64); 5] = [
    ("gpt-4o-mini", MOST_PICTURE),
    ("gpt-4.1-mini", 3_779),
    ("gpt-4.1-nano", 3_779),
    ("gpt-4o", 1_445),
    ("gpt-4.1", 1_445),
];

/// Tokens that a picture made by OpenAI's first image models has at most. The dearest on its price
/// list are $0.25 at $40 per million (gpt-image-1) and $0.20 at $32 (gpt-image-1.5), both in high
/// quality and 1024 × 1536: 6,250 tokens, 6,263 with what the list rounds off. Up to three partial
/// pictures on the way are 100 each (its guide on streaming images). The later ones make any size,
/// and publish no bound.
const PICTURE_MADE: u64 = 6_263 + 3 * 100;

/// The most tokens of one picture that a target looks at.
pub fn seen(target: &Target) -> u64 {
    let maker = target.card.as_ref().map(|card| card.provider.as_str());
    let known = PICTURE_BY_MODEL.iter().find(|(start, _)| target.model.starts_with(start));
    if let (Some("openai" | "azure"), Some((_, tokens))) = (maker, known) {
        return *tokens;
    }
    let dialect = PICTURE.iter().find(|(dialect, _)| *dialect == target.dialect);
    dialect.map_or(MOST_PICTURE, |(_, tokens)| *tokens)
}

/// Tokens of one picture that is made, where the model's maker says how many there are at most.
pub fn made(id: &str) -> Option<u64> {
    let id = id.rsplit('/').next().unwrap_or(id);
    let known =
        ["gpt-image-1", "gpt-image-1-mini"].contains(&id) || id.starts_with("gpt-image-1.5");
    known.then_some(PICTURE_MADE)
}
