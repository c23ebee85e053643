//! Words that paths of APIs are made of, whatever the API: they are never
//! taken for a value, even among many. A word that is missing here costs only
//! time to learn; one too many would name a user's value.

/// Whether the word is one of them.
pub fn contains(word: &str) -> bool {
    WORDS.binary_search(&word).is_ok()
}

/// Whether the segment only leads to the API: nothing is addressed by what follows it.
pub fn is_prefix(word: &str) -> bool {
    is_version(word)
        || matches!(
            word,
            "api"
                | "apis"
                | "rest"
                | "rpc"
                | "internal"
                | "public"
                | "private"
                | "external"
                | "service"
                | "services"
                | "svc"
                | "app"
                | "web"
                | "graphql"
                | "latest"
                | "admin"
                | "beta"
                | "alpha"
                | "stable"
        )
}

fn is_version(word: &str) -> bool {
    word.strip_prefix(['v', 'V'])
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()) && rest.len() <= 9)
}

/// Whether what follows the word is a secret, whatever it looks like: one of
/// its parts (`password-reset`, `verifyEmail`) starts with one of these.
pub fn is_secret(word: &str) -> bool {
    let bytes = word.as_bytes();
    let mut before = b'-';
    for (at, byte) in bytes.iter().enumerate() {
        let starts = !before.is_ascii_alphabetic() || (before.is_ascii_lowercase() && byte.is_ascii_uppercase());
        before = *byte;
        let stems: &[&[u8]] = match byte.to_ascii_lowercase() {
            _ if !starts => continue,
            b'a' => &[b"apikey", b"api-key", b"api_key"],
            b'c' => &[b"confirm"],
            b'i' => &[b"invit"],
            b'm' => &[b"magic"],
            b'o' => &[b"otp", b"onetime"],
            b'p' => &[b"password", b"passwd", b"passcode"],
            b'r' => &[b"reset"],
            b's' => &[b"secret"],
            b't' => &[b"token"],
            b'u' => &[b"unsubscribe"],
            b'v' => &[b"verif"],
            _ => continue,
        };
        let rest = bytes.get(at..).unwrap_or_default();
        if stems.iter().any(|stem| {
            rest.get(..stem.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(stem))
        }) {
            return true;
        }
    }
    false
}

/// In byte order.
const WORDS: &[&str] = &[
    "accept",
    "activate",
    "activity",
    "add",
    "admin",
    "all",
    "api",
    "approve",
    "archive",
    "assets",
    "attachments",
    "auth",
    "authorize",
    "balance",
    "batch",
    "bulk",
    "callback",
    "cancel",
    "capture",
    "check",
    "clone",
    "close",
    "comments",
    "commits",
    "complete",
    "config",
    "configuration",
    "confirm",
    "copy",
    "count",
    "create",
    "css",
    "current",
    "deactivate",
    "default",
    "delete",
    "details",
    "diff",
    "disable",
    "docs",
    "download",
    "edit",
    "enable",
    "events",
    "exec",
    "execute",
    "export",
    "favicon.ico",
    "features",
    "feed",
    "files",
    "filter",
    "finalize",
    "find",
    "graphql",
    "health",
    "healthz",
    "history",
    "home",
    "images",
    "img",
    "import",
    "index",
    "index.html",
    "info",
    "js",
    "keys",
    "labels",
    "latest",
    "legacy",
    "list",
    "live",
    "livez",
    "lock",
    "log",
    "login",
    "logout",
    "logs",
    "lookup",
    "me",
    "members",
    "merge",
    "metadata",
    "metrics",
    "move",
    "new",
    "notifications",
    "oauth",
    "open",
    "openapi.json",
    "options",
    "password",
    "pause",
    "permissions",
    "ping",
    "popular",
    "preferences",
    "preview",
    "profile",
    "proxy",
    "publish",
    "query",
    "ready",
    "readyz",
    "recent",
    "refresh",
    "refund",
    "register",
    "reject",
    "remove",
    "render",
    "replies",
    "reset",
    "restart",
    "restore",
    "resume",
    "retry",
    "reviews",
    "revoke",
    "robots.txt",
    "rotate",
    "rpc",
    "save",
    "scale",
    "schema",
    "search",
    "self",
    "send",
    "session",
    "settings",
    "signin",
    "signout",
    "signup",
    "start",
    "static",
    "stats",
    "status",
    "stop",
    "stream",
    "submit",
    "subscribe",
    "suggest",
    "summary",
    "swagger",
    "sync",
    "tags",
    "test",
    "token",
    "transfer",
    "transitions",
    "trending",
    "unlock",
    "unsubscribe",
    "update",
    "upload",
    "uploads",
    "validate",
    "verify",
    "version",
    "void",
    "watch",
    "webhook",
    "webhooks",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_in_order() {
        assert!(WORDS.is_sorted());
    }

    #[test]
    fn secrets_are_known_by_the_word_before_them() {
        for word in [
            "token",
            "tokens",
            "password-reset",
            "verifyEmail",
            "email_verification",
            "api-key",
            "otp",
            "Invite",
        ] {
            assert!(is_secret(word), "{word}");
        }
        for word in ["users", "laptops", "presets", "optical", "tok", ""] {
            assert!(!is_secret(word), "{word}");
        }
    }

    #[test]
    fn versions_lead() {
        assert!(is_prefix("v1") && is_prefix("v1beta1") && is_prefix("api"));
        assert!(!is_prefix("vendors") && !is_prefix("users"));
    }
}
