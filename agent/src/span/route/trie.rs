//! The routes of one service as a tree of segments, learned from the paths
//! that came. What looks like a value goes to a node's one parameter; words
//! get a node each until there are too many of them, or too like each other:
//! then the node *collapses*, its words become values too, for good. Thus a
//! path's name can get more general, never flip back.

use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::segment::Segment;
use super::vocabulary;

/// Deepest path that is named.
pub const DEPTH_LIMIT: usize = 16;
/// Nodes of one service.
pub const NODE_LIMIT: usize = 4096;

/// A route's text and the names of its parameters, in order.
#[derive(Debug, PartialEq, Eq)]
pub struct Template {
    /// `/users/{user_id}`
    pub text: Arc<str>,
    /// `user_id`
    pub names: Vec<Arc<str>>,
}

#[derive(Debug)]
enum Label {
    Word(Arc<str>),
    Param,
}

#[derive(Debug)]
struct Node {
    parent: usize,
    label: Label,
    words: FxHashMap<Arc<str>, usize>,
    param: Option<usize>,
    /// Paths that went through.
    hits: u32,
    /// A path ended here.
    ends: bool,
    collapsed: bool,
    /// Leads to the API (root, `api`, `v1`): its words are resources.
    prefix: bool,
    template: Option<(u32, Arc<Template>)>,
}

impl Node {
    fn new(parent: usize, label: Label, prefix: bool) -> Self {
        Node {
            parent,
            label,
            words: FxHashMap::default(),
            param: None,
            hits: 0,
            ends: false,
            collapsed: false,
            prefix,
            template: None,
        }
    }
}

/// How many words a node may have.
struct Limits {
    /// From here on it may collapse, if its words look like values.
    soft: usize,
    /// From here on it does.
    hard: usize,
}

/// The tree.
#[derive(Debug)]
pub struct Trie {
    nodes: Vec<Node>,
    free: Vec<usize>,
    /// Counts collapses: names from before the last one may have changed.
    pub epoch: u32,
}

/// Where a path led.
#[derive(Debug)]
pub struct Found {
    /// The route.
    pub template: Arc<Template>,
    /// Numbers of the segments that are values, in order.
    pub values: Vec<usize>,
}

impl Default for Trie {
    /// A tree that knows nothing.
    fn default() -> Self {
        Trie {
            nodes: vec![Node::new(0, Label::Param, true)],
            free: Vec::new(),
            epoch: 0,
        }
    }
}

impl Trie {
    /// Nodes in use.
    pub fn size(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// The route of a path. With `learn`, what is new becomes part of the
    /// tree (if `room` allows); without, only a route known before is given.
    pub fn walk(&mut self, segments: &[Segment<'_>], learn: bool, room: bool) -> Option<Found> {
        if segments.len() > DEPTH_LIMIT {
            return None;
        }
        let room = learn && room && self.size() + 2 * segments.len() < NODE_LIMIT;
        let mut at = 0;
        let mut values = Vec::new();
        for (number, segment) in segments.iter().enumerate() {
            if learn {
                let node = self.nodes.get_mut(at)?;
                node.hits = node.hits.saturating_add(1);
            }
            let (next, is_value) = self.step(at, segment, room)?;
            if is_value {
                values.push(number);
            }
            at = next;
            if !segment.verb.is_empty() {
                at = self.word(at, segment.verb, room)?;
            }
        }
        let node = self.nodes.get_mut(at)?;
        if learn {
            node.hits = node.hits.saturating_add(1);
            node.ends = true;
        } else if !node.ends {
            return None;
        }
        let template = self.template(at)?;
        Some(Found { template, values })
    }

    /// The child that a segment leads to, and whether it is the parameter.
    fn step(&mut self, at: usize, segment: &Segment<'_>, room: bool) -> Option<(usize, bool)> {
        let node = self.nodes.get(at)?;
        if !segment.shape.is_value() {
            if let Some(child) = node.words.get(&*segment.text) {
                return Some((*child, false));
            }
            if !node.collapsed || vocabulary::contains(&segment.text) {
                let child = self.word(at, &segment.text, room)?;
                if !self.collapse_if_due(at) {
                    return Some((child, false));
                }
                if let Some(child) = self.nodes.get(at)?.words.get(&*segment.text) {
                    return Some((*child, false));
                }
            }
        }
        let child = match self.nodes.get(at)?.param {
            Some(child) => child,
            None if room => {
                let child = self.add(Node::new(at, Label::Param, false));
                self.nodes.get_mut(at)?.param = Some(child);
                child
            }
            None => return None,
        };
        Some((child, true))
    }

    fn word(&mut self, at: usize, text: &str, room: bool) -> Option<usize> {
        let node = self.nodes.get(at)?;
        if let Some(child) = node.words.get(text) {
            return Some(*child);
        }
        if !room {
            return None;
        }
        let text: Arc<str> = text.into();
        let prefix = node.prefix && vocabulary::is_prefix(&text);
        let child = self.add(Node::new(at, Label::Word(Arc::clone(&text)), prefix));
        self.nodes.get_mut(at)?.words.insert(text, child);
        Some(child)
    }

    fn add(&mut self, node: Node) -> usize {
        if let Some(slot) = self.free.pop()
            && let Some(place) = self.nodes.get_mut(slot)
        {
            *place = node;
            return slot;
        }
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn limits(&self, node: &Node) -> Limits {
        match (&node.label, node.prefix, node.param) {
            (_, true, _) => Limits { soft: 32, hard: 192 },
            (Label::Param, ..) => Limits { soft: 16, hard: 96 },
            (Label::Word(_), _, Some(_)) => Limits { soft: 8, hard: 32 },
            (Label::Word(_), _, None) => Limits { soft: 12, hard: 48 },
        }
    }

    /// Whether the words of a node are values by their number and looks.
    fn is_due(&self, node: &Node) -> bool {
        let limits = self.limits(node);
        if node.collapsed || node.words.len() < limits.soft {
            return false;
        }
        let mut count = 0usize;
        let mut odd = 0usize;
        let mut rare = 0usize;
        // How many of the words have this word below them.
        let mut below: FxHashMap<&str, usize> = FxHashMap::default();
        // The same two levels down.
        let mut below2: FxHashMap<&str, usize> = FxHashMap::default();
        for (word, child) in &node.words {
            if vocabulary::contains(word) || word.starts_with(':') {
                continue;
            }
            let Some(child) = self.nodes.get(*child) else { continue };
            count += 1;
            odd += usize::from(
                word.bytes()
                    .any(|b| b.is_ascii_digit() || b.is_ascii_uppercase() || b == b'.'),
            );
            rare += usize::from(child.hits <= 2);
            // Words that any resource may have below it tell nothing.
            for word in child.words.keys().filter(|word| !vocabulary::contains(word)) {
                *below.entry(word).or_default() += 1;
            }
            let mut deeper = FxHashSet::default();
            for child in child.words.values().filter_map(|child| self.nodes.get(*child)) {
                deeper.extend(child.words.keys().filter(|word| !vocabulary::contains(word)));
            }
            for word in deeper {
                *below2.entry(word).or_default() += 1;
            }
        }
        if count >= limits.hard {
            return true;
        }
        if count < limits.soft {
            return false;
        }
        let shared = below.values().chain(below2.values()).max().copied().unwrap_or(0);
        let after_word = matches!(node.label, Label::Word(_)) && !node.prefix;
        shared * 5 >= count * 2 || (!node.prefix && odd * 2 >= count) || (after_word && rare * 2 >= count)
    }

    /// Turns the words of a node into values if it is time; says whether it did.
    fn collapse_if_due(&mut self, at: usize) -> bool {
        let due = self.nodes.get(at).is_some_and(|node| self.is_due(node));
        if due {
            self.collapse(at);
        }
        due
    }

    fn collapse(&mut self, at: usize) {
        self.epoch = self.epoch.wrapping_add(1);
        let kept = self.kept(at);
        let Some(node) = self.nodes.get_mut(at) else { return };
        node.collapsed = true;
        let words = std::mem::take(&mut node.words);
        let mut param = node.param;
        let mut stay = FxHashMap::default();
        for (word, child) in words {
            if kept.contains(&word) {
                stay.insert(word, child);
                continue;
            }
            match param {
                Some(target) => self.merge(target, child),
                None => {
                    if let Some(node) = self.nodes.get_mut(child) {
                        node.label = Label::Param;
                        node.prefix = false;
                    }
                    param = Some(child);
                }
            }
        }
        if let Some(node) = self.nodes.get_mut(at) {
            node.words = stay;
            node.param = param;
        }
        if let Some(param) = param {
            self.collapse_if_due(param);
        }
    }

    /// Words that stay words: the vocabulary's, verbs, and those that were
    /// used much and lead to what no other word leads to.
    fn kept(&self, at: usize) -> FxHashSet<Arc<str>> {
        let Some(node) = self.nodes.get(at) else {
            return FxHashSet::default();
        };
        let mut below: FxHashMap<&str, usize> = FxHashMap::default();
        for child in node.words.values().filter_map(|child| self.nodes.get(*child)) {
            for word in child.words.keys() {
                *below.entry(word).or_default() += 1;
            }
        }
        node.words
            .iter()
            .filter(|(word, child)| {
                vocabulary::contains(word)
                    || word.starts_with(':')
                    || self.nodes.get(**child).is_some_and(|child| {
                        child.hits >= 8
                            && !child.words.is_empty()
                            && child.words.keys().all(|word| below.get(&**word) == Some(&1))
                    })
            })
            .map(|(word, _)| Arc::clone(word))
            .collect()
    }

    /// Makes `from` and all below it part of `into`.
    fn merge(&mut self, into: usize, from: usize) {
        let Some(node) = self.nodes.get_mut(from) else { return };
        let (hits, ends, collapsed) = (node.hits, node.ends, node.collapsed);
        let (words, param) = (std::mem::take(&mut node.words), node.param.take());
        node.template = None;
        self.free.push(from);
        let Some(target) = self.nodes.get_mut(into) else { return };
        target.hits = target.hits.saturating_add(hits);
        target.ends |= ends;
        match (target.param, param) {
            (Some(mine), Some(theirs)) => self.merge(mine, theirs),
            (None, Some(theirs)) => {
                target.param = Some(theirs);
                self.adopt(into, theirs);
            }
            _ => {}
        }
        for (word, child) in words {
            match self.nodes.get(into).and_then(|target| target.words.get(&word).copied()) {
                Some(mine) => self.merge(mine, child),
                None => {
                    if let Some(target) = self.nodes.get_mut(into) {
                        target.words.insert(word, child);
                    }
                    self.adopt(into, child);
                }
            }
        }
        let target = self.nodes.get(into);
        let values_already =
            target.is_some_and(|target| collapsed != target.collapsed || (collapsed && !target.words.is_empty()));
        if values_already {
            self.collapse(into);
        } else {
            self.collapse_if_due(into);
        }
    }

    fn adopt(&mut self, parent: usize, child: usize) {
        if let Some(child) = self.nodes.get_mut(child) {
            child.parent = parent;
        }
    }

    /// The route that ends at a node.
    fn template(&mut self, at: usize) -> Option<Arc<Template>> {
        if let Some((epoch, template)) = &self.nodes.get(at)?.template
            && *epoch == self.epoch
        {
            return Some(Arc::clone(template));
        }
        let mut way = Vec::with_capacity(DEPTH_LIMIT);
        let mut up = at;
        while up != 0 {
            let node = self.nodes.get(up)?;
            way.push(node);
            up = node.parent;
        }
        let mut text = String::with_capacity(64);
        let mut names: Vec<Arc<str>> = Vec::new();
        let mut last: Option<&str> = None;
        for node in way.iter().rev() {
            match &node.label {
                Label::Word(word) if word.starts_with(':') => text.push_str(word),
                Label::Word(word) => {
                    text.push('/');
                    text.push_str(word);
                    last = (!node.prefix).then_some(word);
                }
                Label::Param => {
                    let name = param_name(last, &names);
                    text.push_str("/{");
                    text.push_str(&name);
                    text.push('}');
                    names.push(name);
                }
            }
        }
        if text.is_empty() {
            text.push('/');
        }
        let template = Arc::new(Template {
            text: text.into(),
            names,
        });
        let epoch = self.epoch;
        self.nodes.get_mut(at)?.template = Some((epoch, Arc::clone(&template)));
        Some(template)
    }
}

/// A parameter's name: the word before it in the singular and `_id`
/// (`/users/{user_id}`), `id` where there is none, numbered if it comes again.
fn param_name(word: Option<&str>, taken: &[Arc<str>]) -> Arc<str> {
    let stem = word.map(singular).unwrap_or_default();
    let base = if stem.is_empty() {
        "id".to_owned()
    } else {
        format!("{stem}_id")
    };
    let mut name = base.clone();
    let mut number = 2;
    while taken.iter().any(|t| **t == *name) {
        name = format!("{base}_{number}");
        number += 1;
    }
    name.into()
}

/// Snake case, singular as far as English spelling tells.
fn singular(word: &str) -> String {
    let mut snake = String::with_capacity(word.len() + 4);
    let mut lower = false;
    for c in word.chars() {
        if c.is_ascii_uppercase() && lower {
            snake.push('_');
        }
        lower = c.is_ascii_lowercase() || c.is_ascii_digit();
        if c.is_ascii_alphanumeric() {
            snake.push(c.to_ascii_lowercase());
        } else if !snake.is_empty() && !snake.ends_with('_') {
            snake.push('_');
        }
    }
    let snake = snake.trim_end_matches('_');
    let cut = |n: usize| snake.get(..snake.len().saturating_sub(n)).unwrap_or(snake).to_owned();
    if snake.len() <= 3 || snake.ends_with("series") || snake.ends_with("news") {
        snake.to_owned()
    } else if snake.ends_with("ies") {
        cut(3) + "y"
    } else if ["sses", "uses", "xes", "ches", "shes", "zes"]
        .iter()
        .any(|end| snake.ends_with(end))
    {
        cut(2)
    } else if snake.ends_with('s') && !["ss", "us", "is"].iter().any(|end| snake.ends_with(end)) {
        cut(1)
    } else {
        snake.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_called_after_what_they_belong_to() {
        for (word, name) in [
            ("users", "user_id"),
            ("categories", "category_id"),
            ("addresses", "address_id"),
            ("branches", "branch_id"),
            ("statuses", "status_id"),
            ("status", "status_id"),
            ("userProfiles", "user_profile_id"),
            ("check-runs", "check_run_id"),
            ("series", "series_id"),
            (".well-known", "well_known_id"),
            ("---", "id"),
        ] {
            assert_eq!(&*param_name(Some(word), &[]), name);
        }
        assert_eq!(&*param_name(None, &[]), "id");
        assert_eq!(&*param_name(Some("repos"), &["repo_id".into()]), "repo_id_2");
    }
}
