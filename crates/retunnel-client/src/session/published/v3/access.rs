//! The password of a tunnel. In this dialect the server is never told, so the client asks visitors.

use data_encoding::BASE64;
use retunnel_proto::message::HttpAuth;
use subtle::ConstantTimeEq;

/// What a visitor without the password is told to give.
pub(super) const CHALLENGE: (&str, &str) = ("www-authenticate", "Basic realm=\"retunnel\"");

/// Whether a visitor's headers have the password. It is taken out of them: it is not the local service's business.
pub(super) fn is_granted(auth: Option<&HttpAuth>, headers: &mut Vec<(String, String)>) -> bool {
    let Some(HttpAuth(expected)) = auth else { return true };
    let mut given = headers.extract_if(.., |(name, _)| name.eq_ignore_ascii_case("authorization"));
    // Two of them would be read differently by two programs.
    let (Some((_, value)), None) = (given.next(), given.next()) else { return false };
    let decoded = value
        .split_once(' ')
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))
        .and_then(|(_, credentials)| BASE64.decode(credentials.trim().as_bytes()).ok());
    decoded.is_some_and(|decoded| decoded.ct_eq(expected.as_bytes()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_password_is_let_in_and_it_is_not_passed_on() {
        let auth = HttpAuth("me:secret".into());
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
            assert_eq!(is_granted(Some(&auth), &mut headers), granted, "{values:?}");
            if granted {
                assert_eq!(headers.len(), 1);
            }
        }
        let mut headers = vec![("Authorization".to_owned(), "Basic x".to_owned())];
        assert!(is_granted(None, &mut headers) && headers.len() == 1, "it is the local service's then");
    }
}
