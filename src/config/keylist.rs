//! All keys of a file, in its order. There may be a million of them, so what many have in common
//! is made once.

use super::alike::{Alike, Cut, Item, KeyList, Words};
use super::callers::{self, Around};
use super::problem::{Place, Report};
use super::read::Read;
use super::suggest::shown;
use super::text::Texts;
use super::yaml::Node;
use super::{check, file};
use crate::keys::{Caller, KeyTable, Profile, Standing};
use crate::turns;
use crate::units::Name;
use ahash::{AHashSet, RandomState};
use chrono::{DateTime, Utc};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use std::sync::Arc;

/// The keys, and every problem with them. Those that are as they are among the `old` ones are
/// those: what is freed with the old table would otherwise be as much as was made.
pub(crate) fn resolve(
    list: KeyList<'_>,
    around: &Around<'_>,
    texts: Texts<'_>,
    old: Option<&KeyTable>,
    report: &mut Report,
) -> KeyTable {
    let KeyList { items, cut } = list;
    let count = Cut::count(&items);
    let mut roll = Roll {
        around,
        texts,
        report,
        old,
        now: texts.env.now(),
        index: 0,
        table: KeyTable::with_capacity(count),
        ids: Ids::with_capacity(count),
        profiles: AHashSet::new(),
        dates: (String::new(), None),
    };
    let mut patterns: Vec<Option<Pattern>> = Vec::new();
    patterns.resize_with(cut.shapes(), || None);
    for item in items {
        match item {
            Item::Own(node) => {
                roll.written(&node);
            }
            Item::First(node, shape) => {
                let pattern = roll.pattern(node, cut.first(shape), cut.line(shape));
                if let Some(place) = patterns.get_mut(shape) {
                    *place = Some(pattern);
                }
            }
            Item::Run(run) => {
                for item in cut.run(run) {
                    turns::step();
                    if let Some(Some(pattern)) = patterns.get_mut(item.shape as usize) {
                        roll.alike(*item, cut.words(*item), pattern);
                    }
                }
            }
        }
    }
    roll.table
}

/// The first of many items that are alike.
struct Pattern {
    node: Node,
    /// The line in which it begins, and how many lines below that its map and its id are.
    line: usize,
    below: usize,
    id_below: usize,
    /// What all of them may do, if nothing was to be said about it …
    profile: Option<Arc<Profile>>,
    /// … and what the last one may do, where each has its own user.
    last: Option<Arc<Profile>>,
}

/// The keys that were read so far.
struct Roll<'a> {
    around: &'a Around<'a>,
    texts: Texts<'a>,
    report: &'a mut Report,
    old: Option<&'a KeyTable>,
    now: DateTime<Utc>,
    /// The place in the list.
    index: usize,
    table: KeyTable,
    ids: Ids,
    /// Equal ones are one.
    profiles: AHashSet<Arc<Profile>>,
    /// The date that was read last: many keys have the same.
    dates: (String, Option<DateTime<Utc>>),
}

impl Roll<'_> {
    /// Reads an item as it is written, with everything that is to be said about it.
    fn written(&mut self, node: &Node) -> Option<Caller> {
        turns::pause();
        let index = self.index;
        self.index += 1;
        let written = file::Key::read(node, &format!("keys[{index}]"), self.report)?;
        if let Some(id) = &written.id {
            self.note(&id.value.as_str().into(), id.place.line.unwrap_or(0), index);
        }
        let mut caller = callers::key(&written, self.around, self.texts, self.report)?;
        for message in check::caps(&caller, self.around) {
            let fix = "Lower it, or raise the other one";
            self.report.warning(&written.place.key("budgets"), message, fix);
        }
        caller.profile = self.one(caller.profile, &caller.hash);
        self.insert(caller.clone(), node.line, index);
        Some(caller)
    }

    /// Reads an item that others are like.
    fn pattern(&mut self, node: Node, words: Words<'_>, line: usize) -> Pattern {
        let said = self.report.problems.len() + self.report.warnings.len();
        let first = self.written(&node);
        let quiet = said == self.report.problems.len() + self.report.warnings.len();
        let below = node.line.saturating_sub(line);
        let mut pattern = Pattern { node, line, below, id_below: below, profile: None, last: None };
        if let Some(id) = pattern.node.entry_mut("id") {
            pattern.id_below = id.value.line.saturating_sub(line);
        }
        pattern.profile = first.as_ref().filter(|_| quiet).map(|first| first.profile.clone());
        pattern.last = pattern.profile.clone();
        // What is not in its words may be more than a profile, such as a date that is written
        // unusually. Then each is read as it is written.
        if self.quietly(words, &mut pattern) != first {
            pattern.profile = None;
        }
        pattern
    }

    /// Reads an item that is like an earlier one.
    fn alike(&mut self, item: Alike, words: Words<'_>, pattern: &mut Pattern) {
        let line = item.line as usize;
        let Some(caller) = self.quietly(words, pattern) else {
            self.written(&words.node(&pattern.node, pattern.line, line));
            return;
        };
        let index = self.index;
        self.index += 1;
        self.note(&caller.id, line + pattern.id_below, index);
        self.insert(caller, line + pattern.below, index);
    }

    /// An item as [`Roll::written`] would read it. `None`: there is something to be said about it.
    fn quietly(&mut self, words: Words<'_>, pattern: &mut Pattern) -> Option<Caller> {
        let profile = pattern.profile.as_ref()?;
        let hash = callers::digest(words.hash)?;
        if callers::is_a_key(words.id, Some(hash)) {
            return None;
        }
        let expires = match words.expires {
            Some(text) => Some(self.date(text).filter(|date| *date > self.now)?),
            None => None,
        };
        let profile = match words.user {
            Some(user) => self.of_user(user, pattern)?,
            None => profile.clone(),
        };
        Some(Caller { id: words.id.into(), hash, expires, standing: Standing::Active, profile })
    }

    /// What a user's key may do. `None` as above.
    fn of_user(&self, user: &str, pattern: &mut Pattern) -> Option<Arc<Profile>> {
        if let Some(last) = pattern.last.as_ref().filter(|last| last.user.as_deref() == Some(user))
        {
            return Some(last.clone());
        }
        let profile = pattern.profile.as_deref()?.clone();
        let own = Profile { user: Some(user.to_owned()), ..profile };
        let Around { teams, users, global, .. } = self.around;
        let covered = own.unlimited || callers::covered(&own, teams, users, global);
        if !covered || check::caps(&own, self.around).next().is_some() {
            return None;
        }
        let own = Arc::new(own);
        pattern.last = Some(own.clone());
        Some(own)
    }

    fn date(&mut self, text: &str) -> Option<DateTime<Utc>> {
        if self.dates.0 != text {
            let parsed = DateTime::parse_from_rfc3339(text).ok();
            self.dates = (text.to_owned(), parsed.map(|date| date.with_timezone(&Utc)));
        }
        self.dates.1
    }

    /// Takes note of an id, which no other key has.
    fn note(&mut self, id: &Name, line: usize, index: usize) {
        if let Some(first) = self.ids.insert(id, line) {
            let place = Place { line: Some(line), path: format!("keys[{index}].id") };
            let message = format!("duplicate id `{}`, first on line {first}", shown(id));
            self.report.problem(&place, message, "Give each key its own id");
        }
    }

    fn insert(&mut self, caller: Caller, line: usize, index: usize) {
        if let Some(other) = self.table.by_hash(&caller.hash) {
            let place = Place { line: Some(line), path: format!("keys[{index}].hash") };
            let message = format!("the same hash as key `{}`", shown(&other.id));
            self.report.problem(&place, message, "Make another key with `tollbar keygen`");
            return;
        }
        let old = self.old.and_then(|old| old.by_hash(&caller.hash));
        let caller = match old.filter(|old| ***old == caller) {
            Some(same) => same.clone(),
            None => Arc::new(caller),
        };
        self.table.insert(caller);
    }

    /// The profile that is equal to this one, if there is one already; first of all that of the
    /// old key with this hash.
    fn one(&mut self, profile: Arc<Profile>, hash: &[u8; 32]) -> Arc<Profile> {
        if let Some(known) = self.profiles.get(&profile) {
            return known.clone();
        }
        let old = self.old.and_then(|old| old.by_hash(hash)).map(|old| &old.profile);
        let profile = old.filter(|old| **old == profile).cloned().unwrap_or(profile);
        self.profiles.insert(profile.clone());
        profile
    }
}

/// Ids and their lines. The strings are those of the callers.
struct Ids {
    places: HashTable<u32>,
    seen: Vec<(Name, u32)>,
    state: RandomState,
}

impl Ids {
    fn with_capacity(ids: usize) -> Ids {
        Ids {
            places: HashTable::with_capacity(ids),
            seen: Vec::with_capacity(ids),
            state: RandomState::new(),
        }
    }

    /// Adds an id. Returns the line of the first one that is the same.
    fn insert(&mut self, id: &Name, line: usize) -> Option<u32> {
        let Ids { places, seen, state } = self;
        let same = |place: &u32| seen.get(*place as usize).is_some_and(|(other, _)| other == id);
        let hash = |place: &u32| {
            seen.get(*place as usize).map_or(0, |(other, _)| state.hash_one(&**other))
        };
        match places.entry(state.hash_one(&**id), same, hash) {
            Entry::Occupied(first) => seen.get(*first.get() as usize).map(|(_, line)| *line),
            Entry::Vacant(free) => {
                free.insert(u32::try_from(seen.len()).unwrap_or(u32::MAX));
                seen.push((id.clone(), u32::try_from(line).unwrap_or(u32::MAX)));
                None
            }
        }
    }
}
