//! What to do about each problem, in words that name this program's options.

use retunnel_client::diagnose::Problem;

/// What to do next.
pub(super) const fn next(problem: Problem) -> &'static str {
    match problem {
        Problem::ConfigurationInvalid => "mend what it names; nothing was changed",
        Problem::NameNotFound => {
            "check the spelling given with --server, and that this machine's DNS works; in a company's network its proxy \
             may be needed (HTTPS_PROXY or --proxy)"
        }
        Problem::ConnectionRefused => {
            "start the server there (`retunnel server`), or name the right address and port with --server"
        }
        Problem::Unreachable => {
            "check the address and that no firewall is in between; in a company's network name its proxy with HTTPS_PROXY \
             or --proxy"
        }
        Problem::PartlyUnreachable => {
            "clients try the addresses one after the other and lose time: mend the server's DNS records, or let it listen \
             at all of them"
        }
        Problem::ProxyFailed => {
            "the proxy comes from --proxy, RETUNNEL_PROXY or HTTPS_PROXY, HTTP_PROXY, ALL_PROXY: correct it, or go without \
             (`--proxy none`, NO_PROXY)"
        }
        Problem::NotEncrypted => "reach the server by https:// if it can, or only through networks you trust",
        Problem::CertificateUntrusted => {
            "name your company's certificate authority with --ca-file FILE, or give the server a certificate that this \
             machine trusts"
        }
        Problem::CertificateExpired => {
            "renew the server's certificate; if the dates are right, set this machine's clock"
        }
        Problem::CertificateExpiresSoon => "renew the server's certificate",
        Problem::CertificateNotYetValid => "set this machine's clock, or mend the server's certificate",
        Problem::CertificateWrongName => {
            "use one of its names with --server, or give the server a certificate for this one"
        }
        Problem::CertificateNotChecked => "leave --insecure out: whoever is in between can read the token",
        Problem::TlsFailed => "check that the port is one for TLS; a server without it is named as http://HOST:PORT",
        Problem::HttpsRequired => "name the server with https://",
        Problem::NotAServer => {
            "check host, port and scheme (http:// or https://) of --server; behind a web server, pass everything below \
             /api/v1 on to `retunnel server`"
        }
        Problem::Redirected => "name the server as it is called there, with https:// where that is what it leads to",
        Problem::ServerUnavailable => {
            "try again in a moment; if it stays so, look at the server and at the proxy in front of it"
        }
        Problem::NoAnswer => "check the scheme (http:// or https://) and port of --server, and the server's log",
        Problem::VersionUnknown => "nothing, if tunnels are fine; a newer server tells more",
        Problem::VersionDiffers => "use the same release on both sides; until then sessions speak a published dialect",
        Problem::UpgradeStripped => {
            "let the proxy in front of the server pass `Connection` and `Upgrade` on (docs/operations.md)"
        }
        Problem::UpgradeRefused => {
            "let the proxies on the way pass `Connection` and `Upgrade` on (docs/operations.md), and check --dialect"
        }
        Problem::ClockDiffers => "set the clock that is wrong, as with NTP; certificates and logs depend on it",
        Problem::TokenRefused => "save a valid token with `retunnel authtoken`, or ask the server's operator for one",
        Problem::TokenMissing => "ask the server's operator for a token and save it with `retunnel authtoken`",
        Problem::TokenNotChecked => "see whether a tunnel opens: `retunnel http 8080`",
        Problem::LocalUnreachable => "start the local service, or name the port it listens on",
        Problem::TooSlow => "check the network on the way; something takes what is sent and does not answer",
        _ => "see docs/errors.md",
    }
}
