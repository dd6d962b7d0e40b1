use std::time::Duration;

use qrcode::{EcLevel, QrCode};
use ratatui::{Terminal, backend::TestBackend};
use retunnel_client::{ConnectError, Event, LinkError, Refusal, RefusalCode, RequestSummary, StatsSnapshot};
use tokio::time::advance;

use super::{qr::squares, *};
use crate::ui::model::{Severity, TunnelRow};

const PLAIN: Theme = Theme { color: false, unicode: false };
const RICH: Theme = Theme { color: true, unicode: true };

fn request(method: &str, path: &str, status: u16, duration_ms: u32, bytes_out: u64, error: &str) -> Event {
    let mut request = RequestSummary::default();
    (request.method, request.path, request.error) = (method.into(), path.into(), error.into());
    (request.status, request.duration_ms, request.bytes_out) = (status, duration_ms, bytes_out);
    request.visitor = "192.0.2.7:50123".into();
    Event::request("web", request)
}

fn tunnel(name: &str, url: &str, target: &str, requests: u64) -> TunnelRow {
    TunnelRow { name: name.into(), url: url.into(), target: target.into(), requests, trouble: None, is_closed: false }
}

/// A view after a few minutes of work. Time is paused in these tests.
async fn model() -> Model {
    let mut model = Model::new();
    model.tunnels = vec![
        tunnel("web", "http://my-app.tunnel.example.com", "localhost:8080", 41),
        tunnel("ssh", "tcp://tunnel.example.com:20022", "localhost:22", 1),
    ];
    model.server = "https://tunnel.example.com:443".into();
    model.latency = Some(Duration::from_micros(23_400));
    model.note(Severity::Good, "http://my-app.tunnel.example.com is open".into());
    let mut stats = StatsSnapshot::default();
    for moved in [0, 3_000, 80_000, 20_000, 150_000, 40_000] {
        advance(Duration::from_secs(1)).await;
        stats.bytes_in += moved / 7;
        stats.bytes_out += moved;
        model.set_stats(stats.clone());
    }
    (stats.requests, stats.connections, stats.open_connections, stats.errors) = (42, 9, 2, 1);
    stats.uptime = Duration::from_secs(3_723);
    model.set_stats(stats);
    for event in [
        request("GET", "/", 200, 12, 5_120, ""),
        request("POST", "/api/orders?draft=1", 201, 48, 310, ""),
        request("GET", "/favicon.ico", 404, 2, 9, ""),
        request("GET", "/\u{1b}[2J\u{202e}clever", 302, 1, 0, ""),
        request("GET", "/slow", 502, 5_003, 1_900, "local_unreachable"),
        request("", "", 0, 61_000, 20_480, ""),
    ] {
        model.handle(&event);
    }
    let refusal = Refusal::new(RefusalCode::PortsExhausted, "no port of 20000-20100 is free");
    model.handle(&Event::tunnel_failed("ssh", refusal));
    model
}

fn drawn(model: &Model, theme: Theme, (width, height): (u16, u16)) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| draw(frame, model, theme)).expect("drawn");
    terminal.backend().to_string()
}

#[tokio::test(start_paused = true)]
async fn everything_on_one_page() {
    insta::assert_snapshot!(drawn(&model().await, RICH, (120, 40)));
}

#[tokio::test(start_paused = true)]
async fn tabs_on_an_ordinary_terminal() {
    insta::assert_snapshot!(drawn(&model().await, RICH, (80, 24)));
}

#[tokio::test(start_paused = true)]
async fn tabs_on_a_small_terminal() {
    let mut model = model().await;
    let mut all = String::new();
    for tab in Tab::ALL {
        model.go_to(tab);
        all.push_str(&drawn(&model, RICH, (60, 15)));
    }
    insta::assert_snapshot!(all);
}

#[tokio::test(start_paused = true)]
async fn without_unicode_and_colour() {
    let model = model().await;
    let text = drawn(&model, PLAIN, (80, 24)) + &drawn(&model, PLAIN, (120, 40));
    assert!(text.is_ascii(), "{text}");
    insta::assert_snapshot!(text);
    let mut terminal = Terminal::new(TestBackend::new(120, 40)).expect("a terminal");
    terminal.draw(|frame| draw(frame, &model, PLAIN)).expect("drawn");
    let is_plain = |color| color == Color::Reset;
    assert!(terminal.backend().buffer().content.iter().all(|cell| is_plain(cell.fg) && is_plain(cell.bg)));
}

#[tokio::test(start_paused = true)]
async fn a_status_has_its_colour() {
    let model = model().await;
    let mut terminal = Terminal::new(TestBackend::new(120, 40)).expect("a terminal");
    terminal.draw(|frame| draw(frame, &model, RICH)).expect("drawn");
    let buffer = terminal.backend().buffer();
    let color_of = |text: &str| {
        let cells = &buffer.content;
        let position = (0..cells.len()).find(|at| {
            text.chars().enumerate().all(|(n, c)| cells.get(at + n).is_some_and(|cell| cell.symbol() == c.to_string()))
        });
        cells[position.expect(text)].fg
    };
    assert_eq!([color_of("201"), color_of("404"), color_of("502")], [Color::Green, Color::Yellow, Color::Red]);
}

#[tokio::test(start_paused = true)]
async fn a_loss_shows_its_cause_and_when_the_next_attempt_is() {
    let mut model = model().await;
    let endpoint = "https://tunnel.example.com".parse().expect("an address");
    let cause = ConnectError::Lost { endpoint, source: LinkError::Silent(Duration::from_secs(10)) };
    let retry_in = Duration::from_secs(4);
    model.handle(&Event::disconnected(cause, retry_in));
    advance(Duration::from_millis(1_500)).await;
    model.go_to(Tab::Events);
    insta::assert_snapshot!(drawn(&model, RICH, (80, 24)));
}

#[tokio::test(start_paused = true)]
async fn filter_scroll_and_the_local_service() {
    let mut model = model().await;
    model.filter = "40".into();
    assert_eq!(model.shown().map(|(_, request)| request.status).collect::<Vec<_>>(), [404]);
    model.filter = "ORDERS".into();
    let text = drawn(&model, RICH, (80, 24));
    assert!(text.contains("/api/orders") && !text.contains("favicon") && text.contains("`ORDERS`"), "{text}");
    model.filter = "nothing".into();
    assert!(drawn(&model, RICH, (80, 24)).contains("Esc clears"));
    model.filter.clear();
    model.scroll(2);
    let text = drawn(&model, RICH, (80, 24));
    assert!(text.contains("(2 newer above)") && !text.contains("192.0.2.7"), "{text}");
    model.handle(&request("GET", "/new", 200, 1, 1, ""));
    assert_eq!(drawn(&model, RICH, (80, 24)).replace("(3 newer", "(2 newer"), text, "the lines stay in place");
    model.scroll(isize::MAX);
    assert!(model.back < model.shown().count());

    let reason = "connection refused: localhost:8080";
    model.handle(&Event::local_unreachable("web", reason));
    model.handle(&Event::local_unreachable("web", reason));
    assert!(drawn(&model, RICH, (60, 15)).contains("local service: connection refused"));
    model.handle(&request("GET", "/", 200, 1, 1, ""));
    model.go_to(Tab::Events);
    let text = drawn(&model, RICH, (80, 24));
    assert_eq!(text.matches("does not answer").count(), 1, "{text}");
    assert!(text.contains("answers again"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn the_qr_code_can_be_read() {
    let mut model = model().await;
    model.qr = true;
    insta::assert_snapshot!(drawn(&model, RICH, (80, 24)));
    assert!(drawn(&model, RICH, (60, 14)).contains("needs a terminal of"));
    // The drawing matches the code, module by module.
    let code = QrCode::with_error_correction_level(&model.tunnels[0].url, EcLevel::L).expect("short");
    let squares = squares(&code, PLAIN);
    assert_eq!(squares.len(), code.width() + 4);
    let light = |x: usize, y: usize| squares[y + 2][2 * (x + 2)..].starts_with("##");
    for (x, y) in [(0, 0), (3, 3), (8, 1), (code.width() - 1, 5)] {
        assert_eq!(light(x, y), code[(x, y)] == qrcode::Color::Light, "{x} {y}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_size_is_too_small() {
    let mut model = model().await;
    for width in [1, 2, 5, 20, 59, 200] {
        for height in [1, 2, 3, 4, 5, 8, 14, 60] {
            for qr in [false, true] {
                model.qr = qr;
                drawn(&model, RICH, (width, height));
            }
        }
    }
}
