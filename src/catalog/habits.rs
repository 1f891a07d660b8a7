//! What models do without being asked, by their names.

/// What a model does by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Habits {
    /// It works on for as long as it likes, and reads more and more.
    pub researches: bool,
    /// It searches for every request, and doesn't say how often: OpenAI's search models for chat
    /// completions, and Perplexity's.
    pub searches: bool,
    /// It reads what nobody sent it, and that is billed as input.
    pub reads: bool,
}

impl Habits {
    /// Of the model with this id at its provider.
    pub fn of(id: &str) -> Habits {
        let last = id.rsplit('/').next().unwrap_or(id);
        // Several agents at work are xAI's.
        let researches = id.contains("deep-research") || last.contains("multi-agent");
        let search_api = last.contains("-search-api");
        Habits {
            researches,
            searches: search_api || last.contains("-search-preview") || last.starts_with("sonar"),
            reads: researches || search_api,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_known_by_their_names() {
        let habits = |researches, searches, reads| Habits { researches, searches, reads };
        for (id, expected) in [
            ("gpt-4o", habits(false, false, false)),
            ("gpt-4o-search-preview-2025-03-11", habits(false, true, false)),
            ("openai/gpt-5-search-api", habits(false, true, true)),
            ("o3-deep-research", habits(true, false, true)),
            ("perplexity/sonar-pro", habits(false, true, false)),
            ("sonar-deep-research", habits(true, true, true)),
            ("xai/grok-4.20-multi-agent-beta-0309", habits(true, false, true)),
            ("sonar/other", habits(false, false, false)),
        ] {
            assert_eq!(Habits::of(id), expected, "{id}");
        }
    }
}
