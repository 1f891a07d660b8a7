//! "Did you mean": the nearest known name.

/// The nearest of `known` to `word`, if one is near enough to be meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let room = (word.chars().count() / 3).clamp(1, 4);
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&word, &name.to_lowercase()), name))
        .filter(|(distance, _)| *distance <= room)
        .min()
        .map(|(_, name)| name)
}

/// "Did you mean `x`?", or what there is to choose from.
pub fn fix<'a>(word: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    if let Some(name) = nearest(word, known.clone()) {
        return format!("Did you mean `{name}`?");
    }
    let mut names: Vec<&str> = known.into_iter().collect();
    names.sort_unstable();
    names.dedup();
    match names.len() {
        0 => "There is none yet".to_owned(),
        n if n > 20 => format!("There are {n}, among them {}", listed(&names[..10])),
        _ => format!("Known: {}", listed(&names)),
    }
}

fn listed(names: &[&str]) -> String {
    names.join(", ")
}

/// Text from the file as a message may repeat it: cut, on one line, and never a credential
/// that stands where a name was expected.
pub fn shown(text: &str) -> String {
    const CREDENTIALS: [&str; 8] = ["sk-", "sk_", "tb-", "gsk_", "xai-", "AIza", "Bearer ", "eyJ"];
    if CREDENTIALS.iter().any(|start| text.starts_with(start)) {
        return "…".to_owned();
    }
    let clean: String = text.chars().filter(|c| !c.is_control()).take(60).collect();
    if clean.len() < text.len() {
        return clean + "…";
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_listed() {
        let known = ["budgets", "limits", "models"];
        assert_eq!(nearest("bugdets", known), Some("budgets"));
        assert_eq!(nearest("max_budget", known), None);
        assert_eq!(fix("x", known), "Known: budgets, limits, models");
        assert_eq!(fix("Limits", known), "Did you mean `limits`?");
    }

    #[test]
    fn credentials_are_not_repeated() {
        assert_eq!(shown("sk-abcdef"), "…");
        assert_eq!(shown("a\nb"), "ab…");
        assert_eq!(shown("gpt-4o"), "gpt-4o");
    }
}
