//! Rows of the reliability list that can be decided without sockets.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::{
    Framing, HeadLimits,
    body::{self, CHUNK_HEAD, Decoder},
    host::Host,
    request::{self, RequestError, RequestHead},
    response,
    write::{self, Visitor},
};
use crate::rules::LocalOrigin;

/// The status that the edge answers with.
fn status_of(error: RequestError) -> u16 {
    match error {
        RequestError::Malformed(_) => 400,
        RequestError::MethodNotAllowed => 405,
        RequestError::UriTooLong => 414,
        RequestError::ExpectationFailed => 417,
        RequestError::HeadersTooLarge => 431,
        RequestError::HttpVersion => 505,
    }
}

fn parse(lines: &str) -> Result<RequestHead, RequestError> {
    let text = format!("{lines}\r\n\r\n");
    let mut scanned = 0;
    let end = request::find_end(text.as_bytes(), &mut scanned, HeadLimits::REQUEST)?.expect("a complete head");
    request::parse(Bytes::from(text).slice(..end), HeadLimits::REQUEST)
}

fn status(lines: &str) -> u16 {
    parse(lines).map_or_else(status_of, |_| 200)
}

fn post(headers: &str) -> Result<Framing, u16> {
    parse(&format!("POST / HTTP/1.1\r\nHost: a.test\r\n{headers}")).map(|head| head.body).map_err(status_of)
}

#[test]
fn rows_1_to_4_ambiguous_framing_is_refused() {
    for headers in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5, 6",
        "Content-Length: 5, 5",
        "Content-Length: +5",
        "Content-Length: -1",
        "Content-Length: 0x5",
        "Content-Length:",
        "Content-Length: 12345678901234567890",
        "Content-Length: 5 5",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding:",
    ] {
        assert_eq!(post(headers), Err(400), "{headers}");
    }
    assert_eq!(post("Transfer-Encoding: Chunked"), Ok(Framing::Chunked));
    assert_eq!(post("Content-Length: 5"), Ok(Framing::Length(5)));
    assert_eq!(status("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked"), 400);
}

#[test]
fn row_5_malformed_headers_are_refused() {
    for header in
        ["Transfer-Encoding : chunked", "A: b\r\n folded: c", "A: b\0c", "A: b\rc", ": nameless", "A b: c", "no colon"]
    {
        assert_eq!(status(&format!("GET / HTTP/1.1\r\nHost: a.test\r\n{header}")), 400, "{header:?}");
    }
    let mut scanned = 0;
    assert!(
        request::find_end(b"GET / HTTP/1.1\nHost: a\n\n", &mut scanned, HeadLimits::REQUEST).is_err(),
        "bare line feeds"
    );
}

#[test]
fn row_10_targets() {
    let long = format!("/{}", "a".repeat(17 * 1024));
    for (line, expected) in [
        ("CONNECT a.test:80 HTTP/1.1", 405),
        ("CONNECT / HTTP/1.1", 405),
        ("GET * HTTP/1.1", 400),
        ("OPTIONS * HTTP/1.1", 200),
        ("GET foo HTTP/1.1", 400),
        ("GET /#a HTTP/1.1", 400),
        ("GET / a HTTP/1.1", 400),
        ("GET ftp://a.test/ HTTP/1.1", 400),
        ("GET / HTTP/1.2", 400),
        ("GET / HTTP/2.0", 505),
        (&format!("GET {long} HTTP/1.1"), 414),
        ("GET /%2e%2e//a?b=c HTTP/1.1", 200),
    ] {
        let found = status(&format!("{line}\r\nHost: a.test"));
        assert!(
            found == expected || (expected == 400 && found == 505) || (expected == 505 && found == 400),
            "{line}: {found}"
        );
    }
    let mut scanned = 0;
    let endless = vec![b'a'; 65 * 1024];
    assert_eq!(request::find_end(&endless, &mut scanned, HeadLimits::REQUEST), Err(RequestError::UriTooLong));
}

#[test]
fn row_14_hosts() {
    for headers in ["A: b", "Host: a\r\nHost: a", "Host:", "Host: a,b", "Host: a@b", "Host: a b", "Host: /"] {
        assert_eq!(status(&format!("GET / HTTP/1.1\r\n{headers}")), 400, "{headers}");
    }
}

#[test]
fn row_17_the_authority_of_an_absolute_target_wins_everywhere() {
    let head = parse("GET http://b.test/x?y HTTP/1.1\r\nHost: a.test").expect("valid");
    assert_eq!(head.host, Host::Name("b.test".into()));
    assert_eq!(&head.target[..], b"/x?y");
    let written = forwarded(&head, false);
    assert!(written.contains("Host: b.test\r\n") && !written.contains("a.test"), "{written}");
}

fn forwarded(head: &RequestHead, by_trusted_proxy: bool) -> String {
    let visitor = Visitor {
        address: "192.0.2.7".parse().expect("an address"),
        by_trusted_proxy,
        is_encrypted: false,
        strip_authorization: false,
        local: None,
    };
    let mut out = BytesMut::new();
    write::request(head, visitor, &mut out);
    String::from_utf8(out.to_vec()).expect("text")
}

#[test]
fn rows_22_to_24_hop_by_hop_and_identity_headers() {
    let head = parse(
        "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: X-Forwarded-For, x-real-ip, Host, Content-Length, X-Private\r\n\
         X-Private: 1\r\nKeep-Alive: 5\r\nTE: gzip, trailers\r\nTrailer: A\r\nProxy-Authorization: x\r\nProxy-Connection: x\r\n\
         Upgrade: h2c\r\nX-Forwarded-For: 6.6.6.6\r\nx_forwarded_for: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n\
         X-Real-IP: 6.6.6.6\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Proto: https\r\nCookie: a=1\r\nCookie: b=2\r\nX-B: 2",
    )
    .expect("valid");
    assert_eq!(
        forwarded(&head, false),
        "GET / HTTP/1.1\r\nHost: a.test\r\nCookie: a=1\r\nCookie: b=2\r\nX-B: 2\r\nX-Forwarded-For: 192.0.2.7\r\n\
         X-Forwarded-Proto: http\r\nX-Forwarded-Host: a.test\r\nConnection: TE\r\nTE: trailers\r\n\r\n"
    );
    let trusted = forwarded(&head, true);
    assert!(trusted.contains("X-Forwarded-For: 6.6.6.6, 192.0.2.7\r\n"), "{trusted}");
    assert!(trusted.contains("X-Forwarded-Proto: https\r\n"), "{trusted}");
}

#[test]
fn row_23_no_spelling_of_an_identity_passes() {
    let lines = [
        "X-Forwarded-Ssl: on",
        "X-Forwarded-Scheme: https",
        "X-Forwarded-Protocol: https",
        "X.Forwarded.For: 6.6.6.6",
        "X_Forwarded-Proto: https",
        "Front-End-Https: on",
        "X-Client-IP: 6.6.6.6",
        "True_Client_IP: 6.6.6.6",
        "CF-Connecting-IP: 6.6.6.6",
        "X-Cluster-Client-Ip: 6.6.6.6",
        "X-Original-URL: /admin",
        "X_Rewrite_URL: /admin",
        "Proxy: http://evil",
        "Forwarded: for=6.6.6.6",
    ];
    let head = parse(&format!("GET / HTTP/1.1\r\nHost: a.test\r\nX-Real: 1\r\n{}", lines.join("\r\n"))).expect("valid");
    assert_eq!(
        forwarded(&head, false),
        "GET / HTTP/1.1\r\nHost: a.test\r\nX-Real: 1\r\nX-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: http\r\n\
         X-Forwarded-Host: a.test\r\n\r\n"
    );
    let trusted = forwarded(&head, true);
    assert!(
        trusted.contains("CF-Connecting-IP: 6.6.6.6\r\n") && trusted.contains("X-Forwarded-Ssl: on\r\n"),
        "{trusted}"
    );
    assert!(
        !trusted.contains("Proxy: ") && !trusted.contains("X_Forwarded-Proto") && !trusted.contains("X.Forwarded"),
        "{trusted}"
    );
}

#[test]
fn a_local_origin_is_all_that_the_service_sees() {
    let head = parse(
        "POST / HTTP/1.1\r\nHost: a.test\r\nOrigin: https://a.test\r\nX-Original-Host: evil\r\nX-Forwarded-Host: evil",
    )
    .expect("valid");
    let local = LocalOrigin::parse("http://localhost:5173").expect("valid");
    let visitor = Visitor {
        address: "192.0.2.7".parse().expect("an address"),
        by_trusted_proxy: false,
        is_encrypted: true,
        strip_authorization: false,
        local: Some(&local),
    };
    let mut out = BytesMut::new();
    write::request(&head, visitor, &mut out);
    assert_eq!(
        String::from_utf8_lossy(&out),
        "POST / HTTP/1.1\r\nHost: localhost:5173\r\nOrigin: http://localhost:5173\r\nX-Forwarded-For: 192.0.2.7\r\n\
         X-Forwarded-Proto: http\r\nX-Forwarded-Host: localhost:5173\r\nX-Original-Proto: https\r\n\
         X-Original-Host: a.test\r\n\r\n"
    );
    assert_eq!(visitor.public_origin(&head), b"https://a.test");
}

#[test]
fn row_25_counts_and_sizes() {
    let many: String = (0..101).map(|n| format!("\r\nX-{n}: 1")).collect();
    assert_eq!(status(&format!("GET / HTTP/1.1\r\nHost: a.test{many}")), 431);
    let big = format!("GET / HTTP/1.1\r\nHost: a.test\r\nX: {}", "a".repeat(70 * 1024));
    let mut scanned = 0;
    assert_eq!(
        request::find_end(big.as_bytes(), &mut scanned, HeadLimits::REQUEST),
        Err(RequestError::HeadersTooLarge)
    );
    let text =
        Bytes::from_static(b"GET / HTTP/1.1\r\nHost: a.test\r\nX: \x80\xff\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n");
    let head = request::parse(text, HeadLimits::REQUEST).expect("opaque bytes are allowed");
    assert_eq!(head.header("x"), Some(&b"\x80\xff"[..]));
    assert_eq!(head.headers.all("set-cookie").count(), 2);
}

/// Feeds `input` in pieces and gives the payload and what was left.
fn decode(framing: Framing, input: &[u8], piece: usize) -> Result<(Vec<u8>, bool, usize), body::BadBody> {
    let mut decoder = Decoder::new(framing);
    let (mut payload, mut pending, mut used) = (Vec::new(), Vec::new(), 0);
    for part in input.chunks(piece) {
        pending.extend_from_slice(part);
        loop {
            let step = decoder.step(&pending)?;
            payload.extend_from_slice(&pending[step.framing..step.framing + step.payload]);
            pending.drain(..step.framing + step.payload);
            used += step.framing + step.payload;
            if decoder.is_done() || step.framing + step.payload == 0 {
                break;
            }
        }
        if decoder.is_done() {
            decoder.trailers()?;
            break;
        }
    }
    Ok((payload, decoder.is_done(), used))
}

#[test]
fn row_6_chunks() {
    let extension = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(1024 * 1024));
    for bad in [
        "ffffffffffffffff\r\n",
        "10000000000000000\r\n",
        "0\n\r\n",
        "5\nhello\r\n",
        "5\r\nhelloX\r\n",
        "5\r\nhello\n",
        "\r\nhello",
        "-5\r\nhello",
        "0x5\r\nhello",
        "+5\r\n",
        "0\r\nA\r\n\r\n",
        "0\r\nA: b\n\r\n",
        &extension,
    ] {
        assert!(decode(Framing::Chunked, bad.as_bytes(), bad.len()).is_err(), "{:?}", &bad[..bad.len().min(30)]);
    }
    let (payload, done, _) = decode(Framing::Chunked, b"5\r\nhello\r\n0\r\n", 99).expect("valid so far");
    assert_eq!((payload.as_slice(), done), (&b"hello"[..], false), "the final line is missing");
}

#[test]
fn row_7_trailers_that_frame_or_route_are_dropped() {
    let mut decoder = Decoder::new(Framing::Chunked);
    let input = b"0\r\nContent-Length: 5\r\nHost: evil\r\nTransfer-Encoding: chunked\r\nX-Sum: 1\r\n\r\n";
    decoder.step(input).expect("valid");
    assert!(decoder.is_done());
    let trailers = decoder.trailers().expect("valid");
    assert_eq!(trailers, [(Bytes::from_static(b"X-Sum"), Bytes::from_static(b"1"))]);
}

#[test]
fn row_11_answers_with_odd_framing() {
    let parse = |text: &str, to_head| {
        response::parse(&Bytes::from(text.to_owned()), to_head, HeadLimits::RESPONSE)
            .map(|head| head.map(|head| head.body))
    };
    for bad in [
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "HTTP/1.1 99 OK\r\n\r\n",
        "SSH-2.0-OpenSSH\r\n\r\n",
    ] {
        assert!(parse(bad, false).is_err(), "{bad}");
    }
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "a".repeat(257 * 1024));
    assert!(parse(&endless, false).is_err());
    let lines = |count: usize| format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: 1\r\n".repeat(count));
    assert_eq!(parse(&lines(256), false), Ok(Some(Framing::UntilClose)));
    assert!(parse(&lines(257), false).is_err());
    let long = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: {}\r\n\r\n", "a".repeat(200 * 1024));
    assert_eq!(parse(&long, false), Ok(Some(Framing::Length(2))));
    let sized = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n";
    assert_eq!(parse(sized, true), Ok(Some(Framing::None)));
    assert_eq!(parse(sized, false), Ok(Some(Framing::Length(7))));
    assert_eq!(parse(&sized.replace("200 OK", "204 No"), false), Ok(Some(Framing::None)));
    assert_eq!(parse(&sized.replace("200 OK", "304 No"), false), Ok(Some(Framing::None)));
    assert_eq!(parse("HTTP/1.0 200 OK\r\n\r\n", false), Ok(Some(Framing::UntilClose)));
    assert_eq!(parse("HTTP/1.1 200 O", false), Ok(None));
}

#[test]
fn answers_that_curl_understands_are_repaired() {
    let chunked = Framing::Chunked;
    for (head, framing, keep_alive) in [
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked", chunked, false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5", Framing::Length(5), true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5, 5", Framing::Length(5), true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked", chunked, false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: odd", chunked, false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: Chunked", chunked, true),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 5", Framing::Length(5), true),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: identity", Framing::UntilClose, false),
    ] {
        let text = Bytes::from(format!("{head}\r\n\r\n"));
        let parsed = response::parse(&text, false, HeadLimits::RESPONSE).expect(head).expect("complete");
        assert_eq!((parsed.body, parsed.keep_alive), (framing, keep_alive), "{head}");
        let mut out = BytesMut::new();
        let answer = write::Answer { framing: parsed.body, keep_alive: true, visitor_is_http_11: true };
        write::response(&parsed, answer, &mut out);
        let again = response::parse(&out.freeze(), false, HeadLimits::RESPONSE).expect(head).expect("complete");
        let fields = |name| again.headers.all(name).count();
        let expected = (usize::from(framing == Framing::Length(5)), usize::from(framing == chunked));
        assert_eq!((fields("content-length"), fields("transfer-encoding")), expected, "{head}");
        assert_eq!(again.body, framing, "{head}");
    }
}

#[test]
fn an_answer_to_head_keeps_its_length_once() {
    let text = Bytes::from_static(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n");
    let head = response::parse(&text, true, HeadLimits::RESPONSE).expect("valid").expect("complete");
    let mut out = BytesMut::new();
    let answer = write::Answer { framing: Framing::None, keep_alive: true, visitor_is_http_11: true };
    write::response(&head, answer, &mut out);
    assert_eq!(&out[..], b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
}

#[test]
fn a_handshake_may_declare_an_empty_body() {
    let head = parse(
        "GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0",
    )
    .expect("valid");
    assert_eq!((head.upgrade.as_deref(), head.body), (Some(&b"websocket"[..]), Framing::None));
}

#[test]
fn an_offer_of_http_2_is_not_passed_on() {
    let lines = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\nUpgrade: ";
    let head = parse(&format!("{lines}h2c")).expect("valid");
    assert_eq!(head.upgrade, None);
    assert!(!forwarded(&head, false).to_ascii_lowercase().contains("h2c"));
    let head = parse(&format!("{lines}h2c, websocket")).expect("valid");
    assert_eq!(head.upgrade.as_deref(), Some(&b"websocket"[..]));
    let text = forwarded(&head, false).to_ascii_lowercase();
    assert!(text.contains("upgrade: websocket\r\n") && !text.contains("http2-settings"), "{text}");
}

#[test]
fn targets_with_bytes_beyond_ascii_pass_as_they_are() {
    for target in [&b"/caf\xe9"[..], "/café?x=ü".as_bytes(), b"/\x80\xff"] {
        let text = [b"GET ", target, b" HTTP/1.1\r\nHost: a.test\r\nX: \xe9\r\n\r\n"].concat();
        let head = request::parse(text.into(), HeadLimits::REQUEST).expect("valid");
        assert_eq!(&head.target[..], target);
        assert_eq!(head.header("x"), Some(&b"\xe9"[..]));
    }
    for target in [&b"/a\x7f"[..], b"/a\x01\xe9", b"http://caf\xe9/", b"/\xe9#x"] {
        let text = [b"GET ", target, b" HTTP/1.1\r\nHost: a.test\r\n\r\n"].concat();
        let parsed = request::parse(text.into(), HeadLimits::REQUEST);
        assert_eq!(parsed.err().map(status_of), Some(400), "{target:?}");
    }
}

#[test]
fn a_space_in_a_target_is_a_bad_request() {
    assert_eq!(status("GET /a b HTTP/1.1\r\nHost: a.test"), 400);
    assert_eq!(status("GET / HTTP/3.0\r\nHost: a.test"), 505);
}

#[test]
fn a_chunk_head_stands_right_before_its_payload() {
    for (len, text) in [(0, "0"), (15, "f"), (16, "10"), (32_768, "8000")] {
        let mut buffer = [0; CHUNK_HEAD];
        let start = body::chunk_head(&mut buffer, len);
        assert_eq!(&buffer[start..], format!("{text}\r\n").as_bytes());
    }
}

proptest! {
    #[test]
    fn a_body_is_the_same_however_it_is_split(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
        piece in 1_usize..64,
    ) {
        let mut wire = BytesMut::new();
        for chunk in &chunks {
            wire.extend_from_slice(format!("{:x};ext\r\n", chunk.len()).as_bytes());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(b"0\r\nX-T: v\r\n\r\n");
        let length = wire.len();
        wire.extend_from_slice(b"GET / HTTP/1.1\r\n");
        let (payload, done, used) = decode(Framing::Chunked, &wire, piece).expect("valid");
        prop_assert!(done);
        prop_assert_eq!(payload, chunks.concat());
        prop_assert_eq!(used, length, "what follows is untouched");
    }

    #[test]
    fn bytes_of_a_stranger_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), piece in 1_usize..50) {
        let mut scanned = 0;
        if let Ok(Some(end)) = request::find_end(&bytes, &mut scanned, HeadLimits::REQUEST) {
            let _ = request::parse(Bytes::copy_from_slice(&bytes[..end]), HeadLimits::REQUEST);
        }
        let _ = request::parse(Bytes::copy_from_slice(&bytes), HeadLimits::REQUEST);
        let _ = response::parse(&Bytes::copy_from_slice(&bytes), false, HeadLimits::RESPONSE);
        let _ = decode(Framing::Chunked, &bytes, piece);
    }

    #[test]
    fn what_is_written_parses_to_the_same(
        path in "/[a-z0-9%./_-]{0,30}",
        names in prop::collection::vec("[A-Za-z][A-Za-z0-9-]{0,12}", 0..6),
        value in "[!-~]([ -~]{0,20}[!-~])?",
    ) {
        let lines: String = names.iter().map(|name| format!("X{name}: {value}\r\n")).collect();
        let text = format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n{lines}\r\n");
        let head = request::parse(Bytes::from(text), HeadLimits::REQUEST).expect("valid");
        let again = request::parse(Bytes::from(forwarded(&head, false)), HeadLimits::REQUEST).expect("what we write is valid");
        prop_assert_eq!(&again.target[..], path.as_bytes());
        let kept: Vec<_> = again.headers.iter().filter(|(name, _)| !name.starts_with(b"X-Forwarded")).collect();
        let sent: Vec<_> = head.headers.iter().filter(|(name, _)| !name.starts_with(b"X-Forwarded")).collect();
        prop_assert_eq!(kept, sent);
    }
}
