//! Names below the base domain: which ones a client may ask for, and how the server chooses one.

use rand::RngExt;
use retunnel_proto::{
    http1::host::MAX_LABEL,
    message::{Refusal, RefusalCode},
};

/// Names that look like a part of the server itself.
const RESERVED: &[&str] = &[
    "abuse",
    "account",
    "accounts",
    "admin",
    "administrator",
    "api",
    "auth",
    "autoconfig",
    "autodiscover",
    "billing",
    "console",
    "dns",
    "ftp",
    "hostmaster",
    "imap",
    "isatap",
    "localhost",
    "login",
    "mail",
    "metrics",
    "mx",
    "ns",
    "ns1",
    "ns2",
    "oauth",
    "pop",
    "postmaster",
    "retunnel",
    "root",
    "security",
    "smtp",
    "ssh",
    "ssl",
    "support",
    "system",
    "webmaster",
    "wpad",
    "www",
];

/// Validates a requested name and returns it in lower case.
///
/// # Errors
/// [`RefusalCode::NameInvalid`] or [`RefusalCode::NameReserved`].
pub(crate) fn validate_name(wanted: &str) -> Result<String, Refusal> {
    let invalid = |why: &str| {
        let message =
            format!("a name has 1 to 63 letters, digits and hyphens, and does not start or end with a hyphen: {why}");
        Err(Refusal::new(RefusalCode::NameInvalid, message))
    };
    if wanted.is_empty() || wanted.len() > MAX_LABEL {
        return invalid(&format!("this one has {} characters", wanted.len()));
    }
    let name = wanted.to_ascii_lowercase();
    if !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
        return invalid("this one has another character");
    }
    if name.starts_with('-') || name.ends_with('-') {
        return invalid("this one starts or ends with a hyphen");
    }
    // Browsers show Punycode (`xn--`) as other letters, so that it can imitate another name. RFC 5891 reserves every label
    // with hyphens in positions three and four for such encodings.
    if name.as_bytes().get(2..4) == Some(b"--") {
        return invalid(
            "hyphens in positions three and four are reserved for international names, which are not supported",
        );
    }
    if RESERVED.contains(&name.as_str()) {
        return Err(Refusal::new(
            RefusalCode::NameReserved,
            format!("the name `{name}` is reserved; choose another one"),
        ));
    }
    Ok(name)
}

const ADJECTIVES: &[&str] = &[
    "able", "agile", "amber", "ample", "aqua", "arctic", "azure", "bold", "brave", "breezy", "bright", "brisk",
    "bronze", "calm", "candid", "cheery", "civil", "clean", "clear", "clever", "coral", "cosmic", "cozy", "crisp",
    "curious", "daring", "deft", "dusty", "eager", "early", "easy", "epic", "fair", "fancy", "fast", "fine", "fleet",
    "fond", "frank", "fresh", "gentle", "glad", "golden", "grand", "green", "handy", "happy", "hardy", "honest",
    "humble", "ideal", "ivory", "jolly", "keen", "kind", "lively", "loyal", "lucid", "lucky", "lunar", "mellow",
    "merry", "mighty", "modest", "neat", "nimble", "noble", "novel", "open", "opal", "patient", "plucky", "polite",
    "proud", "quick", "quiet", "rapid", "ready", "regal", "robust", "rosy", "royal", "ruby", "sandy", "serene",
    "sharp", "shiny", "silent", "silver", "simple", "smart", "snowy", "solar", "solid", "spry", "steady", "stellar",
    "sturdy", "sunny", "super", "swift", "tidy", "tranquil", "trusty", "upbeat", "urban", "vast", "velvet", "vivid",
    "warm", "wise", "witty", "young", "zesty",
];

const NOUNS: &[&str] = &[
    "acorn", "alpaca", "anchor", "apple", "arrow", "aspen", "badger", "bamboo", "beacon", "bear", "beaver", "birch",
    "bison", "bridge", "brook", "canyon", "cedar", "cliff", "cloud", "clover", "comet", "condor", "coyote", "crane",
    "creek", "cricket", "dawn", "deer", "delta", "dolphin", "dove", "dragon", "eagle", "ember", "falcon", "fern",
    "ferret", "finch", "fjord", "forest", "fox", "garden", "gecko", "glacier", "grove", "harbor", "hare", "hawk",
    "heron", "hill", "ibis", "iris", "island", "jaguar", "juniper", "kestrel", "kiwi", "koala", "lagoon", "lake",
    "lark", "lemur", "lily", "lion", "llama", "lotus", "lynx", "maple", "marmot", "meadow", "meteor", "mint", "moon",
    "moose", "nebula", "newt", "oak", "ocean", "orca", "orchid", "osprey", "otter", "owl", "panda", "pebble",
    "penguin", "pine", "planet", "plum", "pony", "puffin", "quail", "rabbit", "raven", "reef", "river", "robin",
    "salmon", "seal", "sparrow", "spruce", "stone", "stork", "summit", "swan", "thistle", "tiger", "tulip", "turtle",
    "valley", "walnut", "whale", "willow", "wolf", "wren", "yak", "zebra",
];

/// A readable name such as `brisk-otter-41`, one of more than ten million.
pub(crate) fn random_name() -> String {
    let mut rng = rand::rng();
    let adjective = ADJECTIVES[rng.random_range(0..ADJECTIVES.len())];
    let noun = NOUNS[rng.random_range(0..NOUNS.len())];
    format!("{adjective}-{noun}-{}", rng.random_range(10..1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_20_names_that_are_refused() {
        let long = "a".repeat(64);
        for name in ["", &long, "-a", "a-", "a.b", "a_b", "..", "ä", "xn--pple-43d", "xn--abc", "a b", "а"] {
            assert_eq!(validate_name(name).expect_err(name).code, RefusalCode::NameInvalid, "{name}");
        }
        for name in ["www", "api", "ADMIN"] {
            assert_eq!(validate_name(name).expect_err(name).code, RefusalCode::NameReserved, "{name}");
        }
        assert_eq!(validate_name("My-App2").expect("valid"), "my-app2");
        assert_eq!(validate_name(&"a".repeat(63)).expect("valid").len(), 63);
    }

    #[test]
    fn random_names_are_valid() {
        for _ in 0..1000 {
            let name = random_name();
            assert_eq!(validate_name(&name).as_deref(), Ok(name.as_str()));
        }
        assert!(RESERVED.is_sorted());
    }
}
