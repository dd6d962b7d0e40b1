//! The password of a tunnel. In this dialect the server does not know it, so the client asks visitors.

use retunnel_proto::rules::BasicAuth;

/// What a visitor without the password is asked for.
pub(super) const CHALLENGE: (&str, &str) = ("www-authenticate", "Basic realm=\"retunnel\"");

/// Whether a visitor's headers have the credentials. They are removed: the local service does not receive them.
pub(super) fn is_granted(rules: &[BasicAuth], headers: &mut Vec<(String, String)>) -> bool {
    if rules.is_empty() {
        return true;
    }
    let is_credentials = |(name, _): &mut (String, String)| name.eq_ignore_ascii_case("authorization");
    let given: Vec<(String, String)> = headers.extract_if(.., is_credentials).collect();
    rules.iter().all(|rule| rule.admits(given.iter().map(|(_, value)| value.as_bytes())))
}

#[cfg(test)]
mod tests {
    use retunnel_proto::message::HttpAuth;

    use super::*;

    #[test]
    fn only_the_password_is_let_in_and_it_is_not_passed_on() {
        let rules = [BasicAuth::new(&HttpAuth("me:secret".into())).expect("valid")];
        for (values, granted) in [
            (&["Basic bWU6c2VjcmV0"][..], true),
            (&["basic  bWU6c2VjcmV0"], true),
            (&["Basic bWU6d3Jvbmc="], false),
            (&["Basic bWU6c2VjcmV0", "Basic bWU6c2VjcmV0"], false),
            (&["Bearer bWU6c2VjcmV0"], false),
            (&["Basic"], false),
            (&["Basic ***"], false),
            (&[], false),
        ] {
            let mut headers = vec![("Host".to_owned(), "a".to_owned())];
            headers.extend(values.iter().map(|value| ("AUTHORIZATION".to_owned(), (*value).to_owned())));
            assert_eq!(is_granted(&rules, &mut headers), granted, "{values:?}");
            if granted {
                assert_eq!(headers.len(), 1);
            }
        }
        let mut headers = vec![("Authorization".to_owned(), "Basic x".to_owned())];
        assert!(is_granted(&[], &mut headers) && headers.len() == 1, "it is the local service's then");
    }
}
