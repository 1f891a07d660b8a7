//! Which provider of the catalogue answers at a host.

/// Hosts by the end of their name. A leading dot matches subdomains only.
const HOSTS: &[(&str, &str)] = &[
    ("api.openai.com", "openai"),
    // Where data stays in a region: `eu.api.openai.com`.
    (".api.openai.com", "openai"),
    ("api.anthropic.com", "anthropic"),
    ("api.deepseek.com", "deepseek"),
    ("generativelanguage.googleapis.com", "gemini"),
    ("aiplatform.googleapis.com", "vertex_ai"),
    ("-aiplatform.googleapis.com", "vertex_ai"),
    ("api.groq.com", "groq"),
    ("api.mistral.ai", "mistral"),
    ("api.x.ai", "xai"),
    (".api.x.ai", "xai"),
    ("api.together.xyz", "together_ai"),
    ("api.together.ai", "together_ai"),
    ("api.fireworks.ai", "fireworks_ai"),
    (".openai.azure.com", "azure"),
    (".services.ai.azure.com", "azure"),
    (".cognitiveservices.azure.com", "azure"),
    ("api.perplexity.ai", "perplexity"),
    ("api.cohere.com", "cohere"),
    ("api.cohere.ai", "cohere"),
    ("api.cerebras.ai", "cerebras"),
    ("api.deepinfra.com", "deepinfra"),
    ("api.novita.ai", "novita"),
    ("api.studio.nebius.com", "nebius"),
    ("api.studio.nebius.ai", "nebius"),
    ("api.tokenfactory.nebius.com", "nebius"),
    ("dashscope.aliyuncs.com", "dashscope"),
    ("dashscope-intl.aliyuncs.com", "dashscope"),
    ("api.moonshot.ai", "moonshot"),
    ("api.moonshot.cn", "moonshot"),
    ("api.minimax.io", "minimax"),
    ("api.minimaxi.com", "minimax"),
    ("api.sambanova.ai", "sambanova"),
    ("api.voyageai.com", "voyage"),
    ("api.z.ai", "zai"),
    ("api.jina.ai", "jina_ai"),
];

/// The catalogue's name for what answers at `host`; otherwise the configured `name`, if the
/// catalogue has a provider of that name. Bedrock's price depends on the region, which is
/// added: `bedrock@us-east-1`.
pub fn provider_of(host: &str, name: &str) -> Option<String> {
    let host = host.to_ascii_lowercase();
    if let Some(region) = bedrock_region(&host) {
        return Some(format!("bedrock@{region}"));
    }
    let known = HOSTS.iter().find(|(end, _)| match end.strip_prefix(['.', '-']) {
        Some(_) => host.ends_with(end),
        None => host == *end,
    });
    match known {
        Some((_, provider)) => Some((*provider).to_owned()),
        None if super::knows_provider(name) => Some(name.to_owned()),
        None => None,
    }
}

fn bedrock_region(host: &str) -> Option<&str> {
    let rest = host.strip_suffix(".amazonaws.com")?;
    rest.strip_prefix("bedrock-runtime.").or_else(|| rest.strip_prefix("bedrock-runtime-fips."))
}
