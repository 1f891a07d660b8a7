//! What models do without being asked, by their names, and by where they are served.

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
    /// All its token rates are a tenth higher at its host, which keeps data in a region.
    pub resides: bool,
    /// It obeys `max_completion_tokens` as an output cap of a chat.
    pub newer_cap: bool,
    /// Its streams tell the usage unasked, and it refuses to be asked (`stream_options`).
    pub tells_usage: bool,
}

/// OpenAI's models from before 2026-03-05, which cost the same in every region (its guide on data
/// residency), by how their names begin.
const SAME_EVERYWHERE: [&str; 16] = [
    "gpt-3",
    "gpt-4",
    "chatgpt",
    "o1",
    "o3",
    "o4",
    "codex",
    "computer-use",
    "text-embedding",
    "omni-moderation",
    "whisper",
    "tts",
    "dall-e",
    "gpt-image-1",
    "gpt-audio",
    "gpt-realtime",
];

/// Who obeys chat's newer name of an output cap, by their API references and the catalogue's names. To
/// the others it may be nothing at all, and the older name is known everywhere else.
const NEWER_CAP: [&str; 6] = ["openai", "azure", "groq", "xai", "cerebras", "fireworks_ai"];

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
            ..Habits::default()
        }
    }

    /// The same at this host, of the provider that the catalogue calls so.
    pub fn at(self, host: &str, provider: Option<&str>, id: &str) -> Habits {
        let host = host.to_ascii_lowercase();
        // https://docs.x.ai/docs/key-information/regions: a tenth more, whatever the model.
        let resides = host.ends_with(".api.x.ai")
            || (host.ends_with(".api.openai.com") && !costs_the_same_everywhere(id));
        let newer_cap = provider.is_some_and(|provider| NEWER_CAP.contains(&provider));
        Habits { resides, newer_cap, tells_usage: host == "api.mistral.ai", ..self }
    }
}

fn costs_the_same_everywhere(id: &str) -> bool {
    let id = id.strip_prefix("ft:").unwrap_or(id);
    // gpt-5.4 was the first after that day.
    let five = id.strip_prefix("gpt-5").is_some_and(|rest| {
        let minor = rest.strip_prefix('.').map(|rest| rest.split('-').next().unwrap_or(rest));
        minor.is_none_or(|minor| minor.parse::<u32>().is_ok_and(|minor| minor < 4))
    });
    five || SAME_EVERYWHERE.iter().any(|begin| id.starts_with(begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_known_by_their_names() {
        let habits = |researches, searches, reads| Habits {
            researches,
            searches,
            reads,
            ..Habits::default()
        };
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

    #[test]
    fn a_region_costs_a_tenth_more() {
        for (host, id, expected) in [
            ("api.openai.com", "gpt-5.6", false),
            ("eu.api.openai.com", "gpt-5.6-mini", true),
            ("EU.api.openai.com", "ft:gpt-5.4:org", true),
            ("eu.api.openai.com", "gpt-5.3-codex", false),
            ("eu.api.openai.com", "gpt-5-mini", false),
            ("us.api.openai.com", "gpt-6", true),
            ("eu.api.openai.com", "gpt-4o", false),
            ("us.api.x.ai", "grok-4", true),
            ("api.x.ai", "grok-4", false),
            ("api.example.com", "gpt-6", false),
        ] {
            assert_eq!(Habits::of(id).at(host, None, id).resides, expected, "{host} {id}");
        }
        let tells = |host| Habits::default().at(host, None, "m").tells_usage;
        assert!(tells("api.mistral.ai") && !tells("gpu.example.com"));
    }
}
