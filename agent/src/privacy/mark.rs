//! What tells a secret by its form: prefixes of issued keys, and words before
//! which a secret stands.

use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, MatchKind};

/// Prefix of keys that somebody issues, and how many characters at least follow it.
pub(super) const PREFIXES: &[(&str, usize)] = &[
    ("AKIA", 12),
    ("ASIA", 12),
    ("AROA", 12),
    ("AIDA", 12),
    ("ABIA", 12),
    ("ACCA", 12),
    ("ghp_", 16),
    ("gho_", 16),
    ("ghu_", 16),
    ("ghs_", 16),
    ("ghr_", 16),
    ("github_pat_", 16),
    ("glpat-", 16),
    ("gldt-", 16),
    ("glrt-", 16),
    ("glptt-", 16),
    ("xoxa-", 8),
    ("xoxb-", 8),
    ("xoxp-", 8),
    ("xoxr-", 8),
    ("xoxs-", 8),
    ("xapp-", 8),
    ("sk_live_", 8),
    ("sk_test_", 8),
    ("rk_live_", 8),
    ("rk_test_", 8),
    ("pk_live_", 8),
    ("whsec_", 8),
    ("sk-ant-", 8),
    ("sk-proj-", 8),
    ("sk-", 20),
    ("AIza", 30),
    ("ya29.", 12),
    ("GOCSPX-", 12),
    ("SG.", 16),
    ("npm_", 30),
    ("pypi-", 16),
    ("dop_v1_", 16),
    ("doo_v1_", 16),
    ("dor_v1_", 16),
    ("hf_", 20),
    ("shpat_", 16),
    ("shpss_", 16),
    ("shpca_", 16),
    ("sq0atp-", 16),
    ("sq0csp-", 16),
    ("hvs.", 16),
    ("hvb.", 16),
    ("dckr_pat_", 16),
    ("lin_api_", 16),
    ("nvapi-", 16),
    ("figd_", 16),
    ("PMAK-", 16),
    ("NRAK-", 16),
    ("dapi", 32),
    ("sntrys_", 12),
    ("sntryu_", 12),
    ("glsa_", 16),
    ("glc_", 16),
    ("ATATT3", 16),
    ("xkeysib-", 16),
    ("AGE-SECRET-KEY-", 16),
    ("eyJ", 17),
];

/// What a private key in PEM (RFC 7468) begins with.
pub(super) const PEM: &str = "-----BEGIN";

/// Words before which, after `=` or `:`, a secret stands. In any case.
const WORDS: &[&str] = &[
    "password",
    "passwd",
    "passphrase",
    "passcode",
    "pwd",
    "secret",
    "token",
    "apikey",
    "api_key",
    "api-key",
    "api key",
    "access_key",
    "accesskey",
    "access-key",
    "accountkey",
    "private_key",
    "privatekey",
    "private-key",
    "authorization",
    "credential",
    "credentials",
    "cookie",
    "session_id",
    "sessionid",
    "session-id",
    "jsessionid",
    "phpsessid",
    "signature",
    "cvv",
    "cvc",
    "ssn",
    "otp",
];

/// Schemes of `Authorization` (RFC 9110 §11.6.2): a secret follows after a space. In any case.
const SCHEMES: &[&str] = &["bearer ", "basic "];

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// [`PREFIXES`], by number.
    Prefix(usize),
    /// [`WORDS`]
    Word,
    /// [`SCHEMES`]
    Scheme,
    /// [`PEM`]
    Pem,
}

/// All marks of a text, in the order in which they begin.
pub(super) fn marks(text: &str) -> impl Iterator<Item = (Mark, std::ops::Range<usize>)> + '_ {
    let found = MARKS.as_ref().map(|marks| marks.find_iter(text));
    found.into_iter().flatten().filter_map(|found| {
        let number = found.pattern().as_usize();
        let mark = match number.checked_sub(PREFIXES.len()) {
            None => {
                // The automaton takes any case; these are told by theirs.
                let (prefix, _) = PREFIXES.get(number)?;
                if text.get(found.range()) != Some(*prefix) {
                    return None;
                }
                Mark::Prefix(number)
            }
            Some(word) if word < WORDS.len() => Mark::Word,
            Some(word) if word < WORDS.len() + SCHEMES.len() => Mark::Scheme,
            Some(_) => Mark::Pem,
        };
        Some((mark, found.range()))
    })
}

static MARKS: LazyLock<Option<AhoCorasick>> = LazyLock::new(|| {
    let prefixes = PREFIXES.iter().map(|(prefix, _)| *prefix);
    let all = prefixes
        .chain(WORDS.iter().copied())
        .chain(SCHEMES.iter().copied())
        .chain([PEM]);
    AhoCorasick::builder()
        .ascii_case_insensitive(true)
        .match_kind(MatchKind::LeftmostLongest)
        .build(all)
        .ok()
});

/// Header fields that are secrets themselves, whoever asked for them. In any case.
pub(super) fn is_credential(name: &str) -> bool {
    const FIELDS: [&str; 8] = [
        "authorization",
        "proxy-authorization",
        "cookie",
        "set-cookie",
        "x-api-key",
        "x-auth-token",
        "x-csrf-token",
        "x-amz-security-token",
    ];
    FIELDS.iter().any(|field| field.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marks_can_be_looked_for() {
        assert!(MARKS.is_some());
    }
}
