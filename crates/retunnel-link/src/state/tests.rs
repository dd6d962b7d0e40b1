//! Rules that concern several parts.

use retunnel_proto::{
    TunnelId, TunnelProtocol,
    native::{FLAG_FIN, HEADER_LEN},
};

use super::{incoming::Incoming, *};

fn frame(kind: FrameKind, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader { kind, flags, len: payload.len() as u32, stream };
    [&header.encode(), payload].concat()
}

fn reset(stream: u32) -> Vec<u8> {
    frame(FrameKind::Reset, 0, stream, &native::encode_reason(ReasonCode::CANCELLED, "test"))
}

/// A server's state with `count` streams, ids from 1.
fn server(config: LinkConfig, count: u32) -> State {
    let now = Instant::now();
    let mut state = State::new(Role::Server, config, now);
    state.set_peer_window(100_000, now);
    let open = Open { tunnel: TunnelId::from_text("t"), protocol: TunnelProtocol::Tcp, visitor: String::new() };
    for id in 1..=count {
        assert_eq!(state.open_stream(&open.encode(), now).ok(), Some(id));
    }
    state
}

fn arrive(state: &mut State, bytes: &[u8]) -> Result<(), LinkError> {
    Incoming::default().receive(state, bytes, Instant::now(), &mut Vec::new())
}

/// The kinds of all frames that are to be sent.
fn sent(state: &mut State) -> Vec<FrameKind> {
    let mut out = VecDeque::new();
    state.gather(&mut out, &mut Vec::new());
    let bytes = out.iter().flatten().copied().collect::<Vec<u8>>();
    let (mut rest, mut kinds) = (&bytes[..], Vec::new());
    while let Some((header, payload)) = rest.split_first_chunk::<HEADER_LEN>() {
        let header = FrameHeader::decode(*header, 1 << 16).expect("our own frame");
        kinds.push(header.kind);
        rest = &payload[header.len as usize..];
    }
    kinds
}

#[test]
fn bytes_under_way_to_a_stream_that_was_reset_here_are_dropped() {
    let mut state = server(LinkConfig::default(), 1);
    arrive(&mut state, &frame(FrameKind::Data, 0, 1, b"first")).expect("valid");
    state.reset_here(1, ReasonCode::LIMIT, "too many bytes", &mut Vec::new());
    arrive(&mut state, &frame(FrameKind::Data, FLAG_FIN, 1, b"last")).expect("it was under way");
    assert!(matches!(state.read(1, &mut [0; 10]), ReadOutcome::Reset(ReasonCode::LIMIT, _)), "no end after a gap");
    assert_eq!(state.buffered.bytes(), 0);
}

#[test]
fn a_reset_in_the_middle_of_a_frame_ends_its_stream() {
    let mut state = server(LinkConfig::default(), 1);
    let (now, mut wakers) = (Instant::now(), Vec::new());
    let bytes = frame(FrameKind::Data, FLAG_FIN, 1, b"first and last");
    let mut incoming = Incoming::default();
    incoming.receive(&mut state, &bytes[..13], now, &mut wakers).expect("valid");
    state.reset_here(1, ReasonCode::LIMIT, "too many bytes", &mut wakers);
    incoming.receive(&mut state, &bytes[13..], now, &mut wakers).expect("valid");
    assert!(matches!(state.read(1, &mut [0; 10]), ReadOutcome::Reset(ReasonCode::LIMIT, _)));
}

#[test]
fn a_stream_that_was_reset_here_sends_no_half_close() {
    let mut state = server(LinkConfig::default(), 1);
    sent(&mut state);
    assert!(matches!(state.write(1, &[0; 50_000]), Ok(WriteOutcome::Took(50_000))));
    state.end_sending(1);
    state.reset_here(1, ReasonCode::LIMIT, "too many bytes", &mut Vec::new());
    assert_eq!(sent(&mut state), [FrameKind::Reset], "the peer would take a half-close for a complete end");
}

#[test]
fn over_the_limit_a_complete_answer_of_a_reset_stream_gives_way_as_well() {
    let mut state = server(LinkConfig { max_buffered: 1000, ..LinkConfig::default() }, 2);
    arrive(&mut state, &frame(FrameKind::Data, FLAG_FIN, 1, &[0; 900])).expect("valid");
    arrive(&mut state, &reset(1)).expect("valid");
    assert!(state.is_readable(1) && state.is_reset(1));
    arrive(&mut state, &frame(FrameKind::Data, 0, 2, &[0; 200])).expect("valid");
    assert_eq!(state.buffered.bytes(), 200);
    assert!(matches!(state.read(1, &mut [0; 10]), ReadOutcome::Reset(..)));
    assert!(!state.is_reset(2));
}

#[test]
fn a_hello_may_announce_any_window() {
    let mut state = server(LinkConfig::default(), 1);
    state.peer_window = None;
    arrive(&mut state, &frame(FrameKind::Credit, 0, 1, &[0, 0, 0, 9])).expect("valid");
    state.set_peer_window(u32::MAX, Instant::now());
    assert!(matches!(state.write(1, b"bytes"), Ok(WriteOutcome::Took(5))));
}
