use std::sync::Mutex;

use proptest::prelude::*;

use super::*;

/// Writes everything down, one line for each thing.
#[derive(Debug, Default)]
struct Notes {
    lines: Arc<Mutex<Vec<String>>>,
    limit: usize,
}

#[derive(Debug)]
struct Noted {
    number: usize,
    lines: Arc<Mutex<Vec<String>>>,
    limit: usize,
    seen: [usize; 2],
}

fn first_line(head: &[u8]) -> String {
    assert!(head.ends_with(b"\r\n\r\n"));
    String::from_utf8_lossy(head).lines().next().unwrap_or_default().to_owned()
}

impl Observer for Notes {
    fn request(&self, tunnel: &str, head: &[u8], _began: Instant) -> Option<Box<dyn Exchange>> {
        let mut lines = self.lines.lock().expect("not poisoned");
        let number = lines.iter().filter(|line| line.contains(" request ")).count();
        lines.push(format!("{number} {tunnel} request {}", first_line(head)));
        Some(Box::new(Noted { number, lines: Arc::clone(&self.lines), limit: self.limit, seen: [0; 2] }))
    }
}

impl Noted {
    /// Bytes of one side become one line, however they were cut.
    fn add(&self, side: Side, text: &str) {
        let mut lines = self.lines.lock().expect("not poisoned");
        let start = format!("{} {side:?} ", self.number);
        match lines.iter_mut().rev().find(|line| line.starts_with(&start)) {
            Some(line) => line.push_str(text),
            None => lines.push(format!("{start}{text}")),
        }
    }
}

impl Exchange for Noted {
    fn response(&mut self, head: &[u8]) {
        self.lines.lock().expect("not poisoned").push(format!("{} answer {}", self.number, first_line(head)));
    }

    fn body(&mut self, side: Side, bytes: &[u8]) {
        self.seen[side as usize] += bytes.len();
        self.add(side, &String::from_utf8_lossy(bytes));
    }

    fn wants(&self, side: Side) -> bool {
        self.seen[side as usize] < self.limit
    }

    fn passed(&mut self, side: Side, count: u64) {
        self.add(side, &format!("+{count}"));
    }

    fn end(&mut self, side: Side) {
        self.add(side, "|");
    }

    fn cut(&mut self, side: Side) {
        self.lines.lock().expect("not poisoned").push(format!("{} {side:?} cut", self.number));
    }

    fn failed(&mut self, reason: &str) {
        self.lines.lock().expect("not poisoned").push(reason.to_owned());
    }
}

fn tap(limit: usize) -> (Tap, Arc<Mutex<Vec<String>>>) {
    let lines = Arc::default();
    (Tap::new(Arc::new(Notes { lines: Arc::clone(&lines), limit }), "web".into()), lines)
}

const REQUESTS: &str = "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhelloHEAD /b HTTP/1.1\r\nHost: x\r\n\r\n\
                        PUT /c HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0A\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n\
                        GET /d HTTP/1.1\r\nUpgrade: websocket\r\n\r\n";
const ANSWERS: &str = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: \
                       99\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\nHTTP/1.1 101 Switching \
                       Protocols\r\nUpgrade: websocket\r\n\r\n";

fn expected() -> Vec<&'static str> {
    let mut lines = vec![
        "0 web request POST /a HTTP/1.1",
        "0 Request hello|",
        "0 answer HTTP/1.1 200 OK",
        "0 Response ok|",
        "1 web request HEAD /b HTTP/1.1",
        "1 Request |",
        "1 answer HTTP/1.1 200 OK",
        "1 Response |",
        "2 web request PUT /c HTTP/1.1",
        "2 Request abc0123456789|",
        "2 answer HTTP/1.1 200 OK",
        "2 Response x|",
        "3 web request GET /d HTTP/1.1",
        "3 Request |up|",
        "3 answer HTTP/1.1 101 Switching Protocols",
        "3 Response down|",
    ];
    lines.sort_unstable();
    lines
}

proptest! {
    #[test]
    fn exchanges_are_found_however_the_bytes_are_cut(cuts in prop::collection::vec(1_usize..40, 1..20)) {
        let (mut tap, lines) = tap(usize::MAX);
        for (side, text) in [(Side::Request, REQUESTS), (Side::Response, ANSWERS)] {
            let mut rest = text.as_bytes();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, behind) = rest.split_at((*cut).min(rest.len()));
                tap.seen(side, piece, Instant::now());
                rest = behind;
            }
        }
        tap.seen(Side::Request, b"up", Instant::now());
        tap.seen(Side::Response, b"down", Instant::now());
        tap.closed(Side::Request);
        tap.closed(Side::Response);
        let mut lines = lines.lock().expect("not poisoned").clone();
        lines.sort();
        prop_assert_eq!(lines, expected());
    }

    #[test]
    fn nothing_that_passes_makes_it_fail(pieces in prop::collection::vec((any::<bool>(), piece()), 0..12)) {
        let (mut tap, _) = tap(3);
        for (is_request, bytes) in pieces {
            tap.seen(if is_request { Side::Request } else { Side::Response }, &bytes, Instant::now());
        }
    }
}

fn piece() -> impl Strategy<Value = Vec<u8>> {
    let known = |text: &'static str| Just(text.as_bytes().to_vec());
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..60),
        known("HTTP/1.1 200 OK\r\n\r\n"),
        known("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"),
        known("ffffffffffffffffff\r\n"),
        known("0\r\n\r\n"),
    ]
}

#[test]
fn bytes_that_nobody_wants_may_pass_unseen() {
    let (mut tap, lines) = tap(4);
    tap.seen(Side::Request, b"GET / HTTP/1.1\r\n\r\n", Instant::now());
    tap.seen(Side::Response, b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc", Instant::now());
    assert_eq!(tap.unseen(Side::Response), 0);
    tap.seen(Side::Response, b"d", Instant::now());
    assert_eq!(tap.unseen(Side::Response), 996);
    tap.skip(Side::Response, 990);
    tap.seen(Side::Response, b"uvwxyzHTTP", Instant::now());
    assert_eq!(lines.lock().expect("not poisoned").last().map(String::as_str), Some("0 Response abcd+990uvwxyz|"));
    assert_eq!(tap.unseen(Side::Response), 0);
}

#[test]
fn an_answer_without_length_ends_with_the_connection_and_a_cut_one_does_not_end() {
    for (head, closed, line) in [
        ("HTTP/1.0 200 OK\r\n\r\n", true, "0 Response rest|"),
        ("HTTP/1.0 200 OK\r\n\r\n", false, "0 Response rest"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", true, "0 Response cut"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n", true, "0 Response cut"),
    ] {
        let (mut tap, lines) = tap(99);
        tap.seen(Side::Request, b"GET / HTTP/1.1\r\n\r\n", Instant::now());
        tap.seen(Side::Response, head.as_bytes(), Instant::now());
        tap.seen(Side::Response, b"rest", Instant::now());
        if closed {
            tap.closed(Side::Response);
        }
        drop(tap);
        assert_eq!(lines.lock().expect("not poisoned").last().map(String::as_str), Some(line), "{head}");
    }
}

#[test]
fn heads_without_end_are_given_up() {
    let (mut tap, lines) = tap(99);
    for _ in 0..3000 {
        tap.seen(Side::Request, &[b'a'; 100], Instant::now());
    }
    assert!(matches!(tap.request.next, Next::Ignored));
    assert!(tap.request.head.is_empty() && lines.lock().expect("not poisoned").is_empty());
}
