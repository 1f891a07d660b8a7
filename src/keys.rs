//! Virtual keys: from what a client presents to who it is, in one hash and one probe.

use crate::scope::Scope;
use crate::secret::sha256;
use crate::units::Name;
use chrono::{DateTime, Utc};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use std::ops::Deref;
use std::sync::Arc;

/// The owner of a virtual key. The key itself is nowhere kept, only its hash.
///
/// There may be a million of them: what many share is one [`Profile`], which this derefs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The key's name in the configuration, the ledger and every message.
    pub id: Name,
    /// SHA-256 of the whole key string.
    pub hash: [u8; 32],
    /// Not accepted from this instant on.
    pub expires: Option<DateTime<Utc>>,
    /// Whether it is in force.
    pub standing: Standing,
    /// What it may do.
    pub profile: Arc<Profile>,
}

impl Deref for Caller {
    type Target = Profile;

    fn deref(&self) -> &Profile {
        &self.profile
    }
}

/// What a key may do, and for whom.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Profile {
    /// The team it belongs to.
    pub team: Option<String>,
    /// The user it belongs to.
    pub user: Option<String>,
    /// The models it may use.
    pub models: Allow,
    /// Its own limits and budgets.
    pub scope: Scope,
    /// It needs no budget to cover it.
    pub unlimited: bool,
    /// Copied to the ledger: a compact JSON object, empty when there is none.
    pub metadata: String,
    /// What happens when less money is left than a request may cost.
    pub low_budget: LowBudget,
}

/// Whether a key is in force. What expires by itself is in [`Caller::expires`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Standing {
    /// It is.
    #[default]
    Active,
    /// Not until it is unblocked.
    Blocked,
    /// Another key has taken its place; it is still accepted until then.
    Replaced(DateTime<Utc>),
    /// Never again.
    Revoked,
}

/// What happens to a request that may cost more than its budgets have left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum LowBudget {
    /// It is refused.
    #[default]
    Refuse,
    /// Its output is capped to what the rest of the budget pays for.
    Clamp,
}

impl LowBudget {
    /// The word used in the configuration and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            LowBudget::Refuse => "refuse",
            LowBudget::Clamp => "clamp",
        }
    }
}

/// Virtual keys by hash.
#[derive(Debug, Clone, Default)]
pub struct KeyTable {
    by_hash: HashTable<Arc<Caller>>,
}

impl KeyTable {
    /// A table of these callers. Of two with one hash the last one stays; the configuration
    /// refuses such a pair.
    pub fn new(callers: impl IntoIterator<Item = Arc<Caller>>) -> KeyTable {
        let mut table = KeyTable::default();
        for caller in callers {
            table.insert(caller);
        }
        table
    }

    /// A table with room for so many callers.
    pub fn with_capacity(callers: usize) -> KeyTable {
        KeyTable { by_hash: HashTable::with_capacity(callers) }
    }

    /// Adds a caller, in place of another one with the same hash.
    pub fn insert(&mut self, caller: Arc<Caller>) {
        let same = |other: &Arc<Caller>| other.hash == caller.hash;
        match self.by_hash.entry(place(&caller.hash), same, |caller| place(&caller.hash)) {
            Entry::Occupied(mut old) => *old.get_mut() = caller,
            Entry::Vacant(free) => {
                free.insert(caller);
            }
        }
    }

    /// Forgets the key with this hash.
    pub fn remove(&mut self, hash: &[u8; 32]) {
        if let Ok(found) = self.by_hash.find_entry(place(hash), |caller| caller.hash == *hash) {
            found.remove();
        }
    }

    /// The owner of the presented key. The time does not depend on the number of keys, and
    /// only digests are compared, so it tells nothing about the keys.
    pub fn lookup(&self, presented: &str) -> Option<&Arc<Caller>> {
        self.by_hash(&sha256(presented.as_bytes()))
    }

    /// The key with this hash.
    pub fn by_hash(&self, hash: &[u8; 32]) -> Option<&Arc<Caller>> {
        self.by_hash.find(place(hash), |caller| caller.hash == *hash)
    }

    /// Forgets all keys, one after the other.
    pub fn drain(&mut self) -> impl Iterator<Item = Arc<Caller>> {
        self.by_hash.drain()
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.by_hash.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_hash.is_empty()
    }

    /// All callers, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Caller>> {
        self.by_hash.iter()
    }
}

/// Where a digest belongs in the table: it is as good as random already.
fn place(hash: &[u8; 32]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *hash;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// The names a key may use: globs in which only `*` is special.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Allow {
    all: bool,
    globs: Vec<Glob>,
}

impl Allow {
    /// Compiles the patterns. No pattern at all allows nothing.
    pub fn new<S: AsRef<str>>(patterns: impl IntoIterator<Item = S>) -> Allow {
        let globs: Vec<Glob> =
            patterns.into_iter().map(|pattern| Glob::new(pattern.as_ref())).collect();
        Allow { all: globs.iter().any(Glob::is_all), globs }
    }

    /// Whether any pattern matches the whole of `model`.
    pub fn allows(&self, model: &str) -> bool {
        self.all || self.globs.iter().any(|glob| glob.matches(model))
    }

    /// The patterns as they were written.
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        self.globs.iter().map(|glob| glob.written.as_str())
    }
}

/// One pattern, cut at its stars. Because `*` is the only special character, taking the
/// leftmost place for every part is right, and no place is visited twice.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Glob {
    written: String,
    /// The text before the first star, between stars, after the last one.
    parts: Vec<String>,
}

impl Glob {
    fn new(pattern: &str) -> Glob {
        Glob { written: pattern.to_owned(), parts: pattern.split('*').map(str::to_owned).collect() }
    }

    fn is_all(&self) -> bool {
        self.parts.len() > 1 && self.parts.iter().all(String::is_empty)
    }

    fn matches(&self, name: &str) -> bool {
        let [first, middle @ .., last] = self.parts.as_slice() else {
            return name == self.written;
        };
        let rest =
            name.strip_prefix(first.as_str()).and_then(|rest| rest.strip_suffix(last.as_str()));
        let Some(mut rest) = rest else { return false };
        for part in middle {
            let Some(at) = rest.find(part.as_str()) else {
                return false;
            };
            rest = &rest[at + part.len()..];
        }
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn caller(id: &str, hash: [u8; 32]) -> Arc<Caller> {
        let profile = Profile { models: Allow::new(["*"]), ..Profile::default() };
        Arc::new(Caller {
            id: id.into(),
            hash,
            expires: None,
            standing: Standing::Active,
            profile: Arc::new(profile),
        })
    }

    #[test]
    fn a_key_is_found_by_its_text_and_not_by_its_hash() {
        let hash = sha256(b"tb-secret");
        let table = KeyTable::new([caller("web", hash)]);
        assert_eq!(&*table.lookup("tb-secret").unwrap().id, "web");
        for wrong in ["", "tb-secre", "tb-secret ", "TB-SECRET"] {
            assert!(table.lookup(wrong).is_none(), "{wrong}");
        }
        assert!(table.lookup(&hex::encode(hash)).is_none());
        assert!(table.lookup(&format!("sha256:{}", hex::encode(hash))).is_none());
    }

    #[test]
    fn a_key_is_replaced_and_forgotten() {
        let mut table = KeyTable::new([caller("a", [1; 32]), caller("b", [2; 32])]);
        table.insert(caller("c", [1; 32]));
        assert_eq!((table.len(), &*table.by_hash(&[1; 32]).unwrap().id), (2, "c"));
        table.remove(&[1; 32]);
        table.remove(&[3; 32]);
        assert!(table.by_hash(&[1; 32]).is_none());
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_million_keys_are_looked_up_as_fast_as_one() {
        let one = Caller::clone(&caller("many", [0; 32]));
        let mut table = KeyTable::default();
        for n in 0u64..1_000_000 {
            table.insert(Arc::new(Caller { hash: sha256(&n.to_le_bytes()), ..one.clone() }));
        }
        table.insert(caller("one", sha256(b"tb-one")));
        assert_eq!(table.len(), 1_000_001);
        let start = Instant::now();
        for _ in 0..1_000 {
            assert_eq!(&*table.lookup("tb-one").unwrap().id, "one");
            assert!(table.lookup("tb-none").is_none());
        }
        // A scan of a million entries would take seconds; the margin is for a busy machine.
        assert!(start.elapsed() < Duration::from_millis(500));
    }

    #[test]
    fn globs() {
        let cases = [
            ("gpt-4o", "gpt-4o", true),
            ("gpt-4o", "gpt-4o-mini", false),
            ("*", "anything/at all", true),
            ("**", "", true),
            ("deepseek-*", "deepseek-chat", true),
            ("deepseek-*", "deepseek-", true),
            ("deepseek-*", "x-deepseek-chat", false),
            ("*-mini", "gpt-4o-mini", true),
            ("*-mini", "gpt-4o-minix", false),
            ("gpt-*-mini", "gpt-4o-mini", true),
            ("gpt-*-mini", "gpt-mini", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("*b*b*", "b", false),
            ("*b*b*", "xbxbx", true),
            ("a*bc*c", "abc", false),
            ("a*bc*c", "abcc", true),
            ("gpt-?", "gpt-4", false),
            ("gpt-[45]", "gpt-4", false),
            ("g.t", "gpt", false),
            ("é*", "éa", true),
            ("", "", true),
            ("", "a", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(Allow::new([pattern]).allows(name), expected, "{pattern} {name}");
        }
        assert!(!Allow::new::<&str>([]).allows("gpt-4o"));
        assert!(Allow::new(["a", "b*"]).allows("bc"));
    }

    #[test]
    fn a_hostile_glob_takes_no_time() {
        let pattern = "*a".repeat(5_000) + "b";
        let name = "a".repeat(100_000);
        let start = Instant::now();
        assert!(!Allow::new([pattern]).allows(&name));
        assert!(start.elapsed() < Duration::from_millis(500));
    }
}
