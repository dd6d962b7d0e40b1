//! Streams that move to lanes over real sockets: the same bytes, once and in order, and an end only after all of them.

#![expect(clippy::unwrap_used, reason = "a failed test says where")]

use std::time::Duration;

use proptest::prelude::*;
use retunnel_link::{Events, Lane, Link, LinkConfig, LinkError, LinkEvent, LinkStream, Pump, Role, link, poll_relay};
use retunnel_proto::{
    TunnelId, TunnelProtocol,
    native::{ReasonCode, control::Open},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};

/// Two ends of a TCP connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (here, there) = tokio::join!(TcpStream::connect(address), listener.accept());
    (here.unwrap(), there.unwrap().0)
}

/// What happens to a lane that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Opens,
    /// The server has it first, and its offer arrives before the client has added the lane.
    OpensLate,
    /// Carried by something that is not plain TCP to the link.
    OpensBoxed,
    Fails,
    /// The server has it, the client does not.
    Unknown,
    /// Both have it, and it is cut after this many bytes in both directions together.
    CutAfter(usize),
}

struct Ends {
    server: Link,
    client: Link,
    opened: mpsc::Receiver<LinkStream>,
    tasks: JoinSet<()>,
}

/// Two ends whose lanes have this `fate`, and whose streams move after `lane_after` bytes.
async fn ends(lane_after: u64, fate: Fate) -> Ends {
    let (a, b) = pair().await;
    let config = || LinkConfig { lane_after, ..LinkConfig::default() };
    let window = config().initial_window;
    let (server, server_events, server_driver) = link(a, Role::Server, config());
    let (client, client_events, client_driver) = link(b, Role::Client, config());
    server.set_peer_window(window);
    client.set_peer_window(window);
    server.enable_lanes();
    let mut tasks = JoinSet::new();
    let ended = |_: LinkError| ();
    tasks.spawn(async move { ended(server_driver.await) });
    tasks.spawn(async move { ended(client_driver.await) });
    tasks.spawn(open_lanes(server.clone(), client.clone(), server_events, fate));
    let (sender, opened) = mpsc::channel(16);
    tasks.spawn(hand_over(client_events, sender));
    Ends { server, client, opened, tasks }
}

async fn hand_over(mut events: Events, sender: mpsc::Sender<LinkStream>) {
    while let Some(event) = events.next().await {
        if let LinkEvent::Opened { stream, .. } = event {
            let _ = sender.send(stream).await;
        }
    }
}

async fn open_lanes(server: Link, client: Link, mut events: Events, fate: Fate) {
    let mut cutters = JoinSet::new();
    while let Some(event) = events.next().await {
        let LinkEvent::LaneWanted(number) = event else { continue };
        assert!(fate == Fate::Unknown || client.expect_lane(number));
        if fate == Fate::Fails {
            server.lane_failed(number);
            continue;
        }
        let (here, there) = pair().await;
        match fate {
            Fate::OpensBoxed => {
                client.add_lane(number, Lane::other(there));
                server.add_lane(number, Lane::other(here));
            }
            Fate::CutAfter(bytes) => {
                let (middle, far) = pair().await;
                cutters.spawn(cut_after(there, middle, bytes));
                client.add_lane(number, Lane::tcp(far));
                server.add_lane(number, Lane::tcp(here));
            }
            Fate::OpensLate => {
                server.add_lane(number, Lane::tcp(here));
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
                client.add_lane(number, Lane::tcp(there));
            }
            _ => {
                if fate == Fate::Opens {
                    client.add_lane(number, Lane::tcp(there));
                }
                server.add_lane(number, Lane::tcp(here));
            }
        }
    }
}

/// Passes this many bytes of both directions together, then closes both sides as cleanly as possible.
async fn cut_after(mut a: TcpStream, mut b: TcpStream, mut left: usize) {
    let (mut from_a, mut from_b) = (vec![0; 4096], vec![0; 4096]);
    while left > 0 {
        let (ahead, back) = (left.min(4096), left.min(4096));
        tokio::select! {
            count = a.read(&mut from_a[..ahead]) => {
                let count = count.unwrap_or(0);
                if count == 0 || b.write_all(&from_a[..count]).await.is_err() { return }
                left -= count;
            }
            count = b.read(&mut from_b[..back]) => {
                let count = count.unwrap_or(0);
                if count == 0 || a.write_all(&from_b[..count]).await.is_err() { return }
                left -= count;
            }
        }
    }
}

impl Ends {
    async fn stream(&mut self) -> (LinkStream, LinkStream) {
        let open = Open { tunnel: TunnelId::from_text("t"), protocol: TunnelProtocol::Tcp, visitor: String::new() };
        let here = self.server.open(&open).unwrap();
        (here, self.opened.recv().await.unwrap())
    }
}

fn payload(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8).wrapping_add(seed)).collect()
}

async fn write(mut stream: &LinkStream, bytes: &[u8], piece: usize) -> std::io::Result<()> {
    for part in bytes.chunks(piece) {
        stream.write_all(part).await?;
    }
    stream.shutdown().await
}

/// The bytes that can be read, and whether the end came.
async fn read(mut stream: &LinkStream) -> (Vec<u8>, bool) {
    let mut got = Vec::new();
    let ended = stream.read_to_end(&mut got).await.is_ok();
    (got, ended)
}

async fn bytes_pass(fate: Fate, lane_after: u64) {
    let mut ends = ends(lane_after, fate).await;
    let (visitor, local) = ends.stream().await;
    let (question, answer) = (payload(3_000_000, 1), payload(5_000_000, 2));
    let (sent, (asked, asked_all), answered, (got, got_all)) =
        tokio::join!(write(&visitor, &question, 50_000), read(&local), write(&local, &answer, 70_000), read(&visitor));
    sent.unwrap();
    answered.unwrap();
    assert!(asked_all && asked == question, "{fate:?}: {} bytes of the question", asked.len());
    assert!(got_all && got == answer, "{fate:?}: {} bytes of the answer", got.len());
    let moved = matches!(fate, Fate::Opens | Fate::OpensLate | Fate::OpensBoxed);
    assert_eq!(visitor.is_on_lane(), moved, "{fate:?}");
    drop((visitor, local));
    while ends.server.stream_count() + ends.client.stream_count() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn bytes_and_half_closes_pass_with_every_fate_of_the_lane() {
    for fate in [Fate::Opens, Fate::OpensLate, Fate::OpensBoxed, Fate::Fails, Fate::Unknown] {
        for lane_after in [1, 100_000, 1_000_000] {
            bytes_pass(fate, lane_after).await;
        }
    }
}

#[tokio::test]
async fn one_direction_goes_on_after_the_other_has_ended() {
    let mut ends = ends(10_000, Fate::Opens).await;
    let (visitor, local) = ends.stream().await;
    write(&visitor, b"question", 100).await.unwrap();
    assert_eq!(read(&local).await, (b"question".to_vec(), true));
    let answer = payload(4_000_000, 3);
    let (sent, got) = tokio::join!(write(&local, &answer, 64_000), read(&visitor));
    sent.unwrap();
    assert!(got == (answer, true));
    assert!(visitor.is_on_lane());
}

#[tokio::test]
async fn a_reset_ends_a_stream_on_its_lane_for_both() {
    let mut ends = ends(1_000, Fate::Opens).await;
    let (visitor, local) = ends.stream().await;
    let data = payload(600_000, 4);
    let mut got = vec![0; data.len()];
    let (sent, received) = tokio::join!(async { (&mut &visitor).write_all(&data).await }, async {
        (&mut &local).read_exact(&mut got).await
    });
    sent.unwrap();
    received.unwrap();
    visitor.reset(ReasonCode::CANCELLED, "gone");
    let error = (&mut &local).read_u8().await.unwrap_err();
    assert!(error.to_string().contains("gone"), "{error}");
    drop(local);
    while ends.server.stream_count() + ends.client.stream_count() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_was_sent_on_a_lane_before_a_reset_arrives_before_it() {
    for fate in [Fate::Opens, Fate::OpensLate, Fate::OpensBoxed] {
        let mut ends = ends(1_000, fate).await;
        for n in 0..40 {
            let (visitor, local) = ends.stream().await;
            let (from, to) = if n % 2 == 0 { (local, visitor) } else { (visitor, local) };
            let data = payload(300_000 + 10_000 * usize::from(n), n);
            let (end, got) = tokio::join!(
                async {
                    write_all(&from, &data).await.unwrap();
                    from.reset(ReasonCode::CANCELLED, "last words");
                },
                read(&to)
            );
            let ((), (got, whole)) = (end, got);
            assert!(got == data && !whole, "{} of {} bytes, {fate:?}, {n}", got.len(), data.len());
        }
        while ends.server.stream_count() + ends.client.stream_count() > 0 {
            tokio::task::yield_now().await;
        }
    }
}

async fn write_all(mut stream: &LinkStream, data: &[u8]) -> std::io::Result<()> {
    stream.write_all(data).await
}

#[tokio::test]
async fn a_relay_delivers_what_was_sent_before_a_reset() {
    // On the link, on the way to a lane, and on a lane moved by the kernel.
    for len in [10, 49_000, 600_000, 5_000_000] {
        for up in [true, false] {
            let mut ends = ends(50_000, Fate::Opens).await;
            let (_relays, visitor_side, local_side) = relayed(&mut ends).await;
            let (mut from, mut to) = if up { (visitor_side, local_side) } else { (local_side, visitor_side) };
            // Bytes that wait unread make the end of `from` a reset.
            to.write_all(b"unread").await.unwrap();
            from.peek(&mut [0]).await.unwrap();
            let data = payload(len, 9);
            let mut got = Vec::new();
            let ((), ended) = tokio::join!(
                async {
                    from.write_all(&data).await.unwrap();
                    retunnel_link::last_bytes_sent(&from).await;
                    drop(from);
                },
                to.read_to_end(&mut got)
            );
            assert!(got == data, "{} of {len} bytes, {up}, {ended:?}", got.len());
        }
    }
}

#[tokio::test]
async fn a_relay_delivers_the_message_of_a_service_that_takes_no_more() {
    for len in [1_000, 200_000, 5_000_000] {
        let mut ends = ends(50_000, Fate::Opens).await;
        let (_relays, mut visitor_side, mut local_side) = relayed(&mut ends).await;
        let upload = payload(len, 10);
        let mut got = Vec::new();
        let (_, _) = tokio::join!(
            async {
                // It ends before all is sent.
                let _ = visitor_side.write_all(&upload).await;
                visitor_side.read_to_end(&mut got).await
            },
            async {
                local_side.read_exact(&mut vec![0; len / 2]).await.unwrap();
                local_side.write_all(b"too large").await.unwrap();
                drop(local_side);
            }
        );
        assert_eq!(got, b"too large", "{len}");
    }
}

#[tokio::test]
async fn the_end_of_the_link_resets_streams_on_lanes() {
    let mut ends = ends(1_000, Fate::Opens).await;
    let (visitor, local) = ends.stream().await;
    let data = payload(600_000, 5);
    let mut got = vec![0; data.len()];
    let (sent, received) = tokio::join!(async { (&mut &local).write_all(&data).await }, async {
        (&mut &visitor).read_exact(&mut got).await
    });
    sent.unwrap();
    received.unwrap();
    assert!(visitor.is_on_lane());
    ends.tasks.shutdown().await;
    assert_eq!(read(&visitor).await, (Vec::new(), false));
    assert_eq!(read(&local).await, (Vec::new(), false));
}

#[tokio::test]
async fn relays_between_plain_sockets_move_the_same_bytes() {
    let mut ends = ends(50_000, Fate::Opens).await;
    let (mut relays, mut visitor_side, mut local_side) = relayed(&mut ends).await;
    let (question, answer) = (payload(20_000_000, 6), payload(30_000_000, 7));
    let (mut asked, mut got) = (Vec::new(), Vec::new());
    let (mut visitor_reads, mut visitor_writes) = visitor_side.split();
    let (mut local_reads, mut local_writes) = local_side.split();
    tokio::join!(
        async {
            visitor_writes.write_all(&question).await.unwrap();
            visitor_writes.shutdown().await.unwrap();
        },
        async { local_reads.read_to_end(&mut asked).await.unwrap() },
        async {
            local_writes.write_all(&answer).await.unwrap();
            local_writes.shutdown().await.unwrap();
        },
        async { visitor_reads.read_to_end(&mut got).await.unwrap() },
    );
    assert!(asked == question && got == answer);
    while let Some(moved) = relays.join_next().await {
        assert_eq!(moved.unwrap().unwrap(), (20_000_000, 30_000_000));
    }
}

#[tokio::test]
async fn a_relay_that_is_dropped_moves_no_more() {
    let mut ends = ends(50_000, Fate::Opens).await;
    let (mut relays, mut visitor_side, mut local_side) = relayed(&mut ends).await;
    let mut endless = JoinSet::new();
    endless.spawn(async move {
        let piece = payload(100_000, 8);
        while local_side.write_all(&piece).await.is_ok() {}
    });
    let mut got = vec![0; 20_000_000];
    visitor_side.read_exact(&mut got).await.unwrap();
    relays.shutdown().await;
    // Both sides end: they get what was under way, and nothing after it.
    let _ = visitor_side.read_to_end(&mut got).await;
    endless.join_next().await.unwrap().unwrap();
}

/// The relays of both ends between plain sockets, and the far ends of these: the visitor's and the local service's.
async fn relayed(ends: &mut Ends) -> (JoinSet<std::io::Result<(u64, u64)>>, TcpStream, TcpStream) {
    let (here, there) = ends.stream().await;
    let ((visitor, visitor_side), (local_side, local)) = (pair().await, pair().await);
    let mut relays = JoinSet::new();
    relays.spawn(relay(visitor, here));
    relays.spawn(relay(local, there));
    (relays, visitor_side, local_side)
}

/// Bytes towards and from the local service, in this order for both ends.
async fn relay(mut socket: TcpStream, stream: LinkStream) -> std::io::Result<(u64, u64)> {
    let (mut up, mut down) = (Pump::default(), Pump::default());
    std::future::poll_fn(|cx| poll_relay(cx, &mut socket, &stream, &mut up, &mut down)).await?;
    Ok((up.moved().min(down.moved()), up.moved().max(down.moved())))
}

#[tokio::test]
async fn streams_beyond_the_limit_of_lanes_stay_on_the_link() {
    let mut ends = ends(1_000, Fate::Opens).await;
    let mut work = JoinSet::new();
    for n in 0..150 {
        let (visitor, local) = ends.stream().await;
        work.spawn(async move {
            let data = payload(200_000, n);
            let (sent, got) = tokio::join!(write(&local, &data, 9_000), read(&visitor));
            sent.unwrap();
            assert!(got == (data, true));
        });
    }
    while let Some(done) = work.join_next().await {
        done.unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// A lane that is cut, cleanly or not, at any byte: what was read is a prefix, and is never taken for the whole.
    #[test]
    fn a_lane_cut_anywhere_never_makes_a_short_transfer_look_complete(
        after in 0_usize..2_500_000, lane_after in 1_u64..500_000, down in any::<bool>()
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut ends = ends(lane_after, Fate::CutAfter(after)).await;
            let (visitor, local) = ends.stream().await;
            let data = payload(2_000_000, 8);
            let (from, to) = if down { (&local, &visitor) } else { (&visitor, &local) };
            let outcome = tokio::time::timeout(Duration::from_secs(20), async {
                tokio::join!(
                    async {
                        let sent = write(from, &data, 30_000).await;
                        if sent.is_err() {
                            // A relay does the same, so that a transfer that was cut is not taken for a complete one.
                            ends.client.close(ReasonCode::CANCELLED, "the writer failed");
                        }
                        sent
                    },
                    async {
                        let got = read(to).await;
                        if !got.1 {
                            ends.server.close(ReasonCode::CANCELLED, "the reader failed");
                        }
                        got
                    }
                )
            })
            .await;
            let (_, (got, whole)) = outcome.expect("both sides notice");
            assert!(data.starts_with(&got), "{} bytes are not a part from the start", got.len());
            assert_eq!(whole, got.len() == data.len(), "{} of {}", got.len(), data.len());
            Ok::<_, TestCaseError>(())
        })?;
    }
}
