//! How to fix each problem, in terms of this program's options.

use retunnel_client::diagnose::Problem;

/// The next step for a problem.
pub(super) const fn next(problem: Problem) -> &'static str {
    match problem {
        Problem::ConfigurationInvalid => "fix the setting that it names",
        Problem::NameNotFound => {
            "check the spelling of --server and that DNS works on this machine; in a company network you may need its \
             proxy (HTTPS_PROXY or --proxy)"
        }
        Problem::ConnectionRefused => {
            "start the server (`retunnel server`), or correct the address and port in --server"
        }
        Problem::Unreachable => {
            "check the address and that no firewall blocks it; in a company network set its proxy with HTTPS_PROXY or \
             --proxy"
        }
        Problem::PartlyUnreachable => {
            "clients lose time on the unreachable addresses: fix the server's DNS records, or make it listen on all of \
             them"
        }
        Problem::ProxyFailed => {
            "the proxy is set by --proxy, RETUNNEL_PROXY, HTTPS_PROXY, HTTP_PROXY or ALL_PROXY: correct it, or disable it \
             (`--proxy none`, NO_PROXY)"
        }
        Problem::NotEncrypted => {
            "use https:// if the server supports it; otherwise connect only through networks you trust"
        }
        Problem::CertificateUntrusted => {
            "trust your company's certificate authority with --ca-file FILE, or install a certificate on the server that \
             this machine trusts"
        }
        Problem::CertificateExpired => "renew the server's certificate; if it is still valid, set this machine's clock",
        Problem::CertificateExpiresSoon => "renew the server's certificate",
        Problem::CertificateNotYetValid => "set this machine's clock, or replace the server's certificate",
        Problem::CertificateWrongName => {
            "use one of the certificate's names in --server, or install a certificate for this name"
        }
        Problem::CertificateNotChecked => "remove --insecure: anyone on the network path can read the token",
        Problem::TlsFailed => "check that the port uses TLS; for a server without TLS use http://HOST:PORT",
        Problem::HttpsRequired => "use https:// in --server",
        Problem::NotAServer => {
            "check the host, port and scheme (http:// or https://) of --server; a web server in front must forward \
             /api/v1 to `retunnel server`"
        }
        Problem::Redirected => "use the address of the redirect in --server, with https:// if it has that",
        Problem::ServerUnavailable => "try again later; if it persists, check the server and the proxy in front of it",
        Problem::NoAnswer => "check the scheme (http:// or https://) and port of --server, and the server's log",
        Problem::VersionUnknown => "nothing to do if tunnels work; newer servers report their version",
        Problem::VersionDiffers => "use the same release on both sides; until then sessions use an older dialect",
        Problem::UpgradeStripped => {
            "configure the proxy in front of the server to forward `Connection` and `Upgrade` (docs/operations.md)"
        }
        Problem::UpgradeRefused => {
            "configure all proxies to forward `Connection` and `Upgrade` (docs/operations.md), and check --dialect"
        }
        Problem::DialectNotChosen => {
            "choose its dialect once with `--dialect 3` or `--dialect 2`; it is remembered (docs/dialects.md)"
        }
        Problem::ClockDiffers => {
            "set the clock that is wrong, for example with NTP; certificates and logs depend on it"
        }
        Problem::TokenRefused => "save a valid token with `retunnel authtoken`, or ask the server's operator for one",
        Problem::TokenMissing => "ask the server's operator for a token and save it with `retunnel authtoken`",
        Problem::TokenNotChecked => "check whether a tunnel opens: `retunnel http 8080`",
        Problem::LocalUnreachable => "start the local service, or correct its address",
        Problem::TooSlow => "check the network path: something accepts data and does not respond",
        _ => "see docs/errors.md",
    }
}
